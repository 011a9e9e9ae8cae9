"""From a graph to a plan and its secret arrays: thresholds, rings by range analysis, widths of comparisons."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from secure_infer.backends.mpc_fss.generator import Form
from secure_infer.backends.mpc_fss.plan import Plan, Step
from secure_infer.backends.mpc_fss.ring import GREATEST_DEPTH, KINDS, Ring, depth_of, kind_of
from secure_infer.errors import Problem, UnsupportedNetwork
from secure_infer.graph.graph import INPUT, Graph, Node
from secure_infer.graph.ops import Add, Conv2d, Linear, Lookup, Max, Polynomial, QuantRelu, Reshape, Sign, Sum
from secure_infer.graph.text import underline
from secure_infer.graph.types import ACCUMULATOR_BITS, Integers, Shape, TensorType, bits_of, channelwise

Arrays = dict[str, Integers]
_LARGEST_TABLE = 1 << 12
_GREATEST_SHIFT = 62
_BLOCK_S = 12e-9  # seconds that a block of a function's value takes, about
_EXCHANGE_S = 1e-4  # and a round between two processes of one machine
_GREATEST_DEGREE = 7  # a plan's parameters are short lists, and powers are shared one by one


@dataclass(frozen=True)
class Draft:
    """One step before the rings are known, with its secret arrays.

    Attributes:
        step: Its ring is still zero.
        arrays: Secret arrays, by name, as signed integers.
        local: Whether its value and what it reads are in one ring.
        need: Bits that the ring it reads from has to have, beside those of the values themselves.
        range: Least and greatest value.
    """

    step: Step
    arrays: Arrays
    local: bool
    need: int
    range: tuple[int, int]


@dataclass(frozen=True)
class Lowered:
    """A plan, and each step's secret arrays as elements of its ring."""

    plan: Plan
    secrets: Mapping[str, Mapping[str, Ring]]


@dataclass(frozen=True)
class Fusing:
    """When an activation and the linear layer after it become one step, which saves a round and takes longer functions.

    Attributes:
        most_bytes: Dealt for the comparisons of such a step, at most; 0 for never.
        round_trip_s: Seconds between the servers there and back: a round less must gain more time than it costs.
    """

    most_bytes: int = 0
    round_trip_s: float = math.inf

    def pays(self, step: Step, kind: np.dtype[Any]) -> bool:
        """Whether a step of comparisons and products is better than two."""
        outputs, inputs = step.parameters["weight"]
        functions = inputs * step.parameters["thresholds"][1]
        form, plain = (Form(step.parameters["bits"] - 1, payload, kind) for payload in (1 + outputs, 1))
        blocks = functions * ((form.levels + 1) * form.blocks - (plain.levels + 1) * plain.blocks)
        size = functions * (form.bytes + form.payload * kind.itemsize)
        return bool(0 < size <= self.most_bytes) and blocks * _BLOCK_S < self.round_trip_s / 2 + _EXCHANGE_S


NEVER = Fusing()
"""Every activation and every layer is a step of its own."""


def lower(graph: Graph, model: str, mode: str, timeout: float, ahead: int, fusing: Fusing = NEVER) -> Lowered:
    """Lower a graph.

    Raises:
        UnsupportedNetwork: Numbers that no ring holds, or tables and polynomials that are too large; all are listed.
    """
    _require_fit(graph)
    drafts = [draft for node in graph.nodes for draft in _drafts(graph, node)]
    drafts = _fused(graph, drafts, _rings(graph, drafts), fusing)
    rings = _rings(graph, drafts)
    steps = [Step(**{**draft.step.__dict__, "ring": rings[draft.step.name]}) for draft in drafts]
    plan = Plan(model, mode, timeout, ahead, graph.input.shape, rings[INPUT], tuple(steps), graph.output)
    secrets = {
        step.name: {
            name: values.astype(kind_of(secret_ring(plan, step, name))) for name, values in draft.arrays.items()
        }
        for step, draft in zip(steps, drafts, strict=True)
    }
    return Lowered(plan, secrets)


def secret_ring(plan: Plan, step: Step, name: str) -> int:
    """Bits of the ring that a secret array is shared in: thresholds and what fills a border in that of the input."""
    return plan.rings[step.inputs[0]] if name in ("thresholds", "fill") else step.ring


def _require_fit(graph: Graph) -> None:
    problems = []
    if graph.input.bits > ACCUMULATOR_BITS:
        problems.append(Problem(INPUT, f"It has {graph.input.bits} bits.", f"use at most {ACCUMULATOR_BITS}."))
    for node in graph.nodes:
        match node.op:
            case Linear(weight=weight) | Conv2d(weight=weight) if depth_of(weight.shape) > GREATEST_DEPTH:
                problems.append(Problem(node.name, f"It sums {depth_of(weight.shape)} terms.", "split the layer."))
            case Lookup(table=table) if table.shape[-1] > _LARGEST_TABLE:
                problems.append(
                    Problem(node.name, f"Its table has {table.shape[-1]} entries.", "quantize its input to 12 bits.")
                )
            case Polynomial() if node.op.shift > _GREATEST_SHIFT:
                problems.append(Problem(node.name, f"It shifts by {node.op.shift} bits.", "shift by at most 62."))
            case Polynomial() if node.op.degree > _GREATEST_DEGREE:
                problems.append(Problem(node.name, f"Its degree is {node.op.degree}.", "use a degree of at most 7."))
            case _:
                continue
    if problems:
        raise UnsupportedNetwork("The network does not fit mpc-fss.", problems, underline(graph, problems))


def _drafts(graph: Graph, node: Node) -> list[Draft]:
    kind, after = graph.input_type(node), graph.types[node.name]

    def draft(name: str, parameters: dict[str, Any], arrays: Arrays, local: bool = True, need: int = 0) -> Draft:
        step = Step(node.name, name, node.inputs, after.shape, 0, parameters)
        return Draft(step, arrays, local, need, (after.low, after.high))

    match node.op:
        case Linear(weight=weight, bias=bias):
            return [draft("Linear", {"weight": list(weight.shape)}, {"weight": weight, "bias": bias})]
        case Conv2d(weight=weight, bias=bias):
            sizes = {"weight": list(weight.shape), "groups": node.op.groups}
            lists = {key: list(getattr(node.op, key)) for key in ("stride", "padding", "dilation")}
            return [draft("Conv2d", {**sizes, **lists}, {"weight": weight, "bias": bias})]
        case Add():
            return [draft("Add", {"gains": list(node.op.gains)}, {})]
        case Sum():
            return [draft("Sum", _window(node.op), {})]
        case Reshape():
            return [draft("Reshape", {}, {})]
        case Max():
            bits = bits_of(kind.low - kind.high, kind.high - kind.low)
            fill = np.array([kind.low], dtype=np.int64)
            return [draft("Max", {**_window(node.op), "bits": bits}, {"fill": fill}, need=bits)]
        case Sign() | QuantRelu():
            return [_compare(node, kind, after)]
        case Lookup():
            return [_look_up(node, kind, after)]
        case Polynomial():
            return _polynomial(node, kind, after)


def _window(op: Sum | Max) -> dict[str, Any]:
    return {"kernel": list(op.kernel), "stride": list(op.stride), "padding": list(op.padding)}


def _compare(node: Node, kind: TensorType, after: TensorType) -> Draft:
    """A staircase `base + gain * #{thresholds <= x}`; thresholds move into the range of x, where they say the same."""
    op = node.op
    if isinstance(op, Sign):
        rows, base, gain = op.threshold[:, None], -1, 2
    else:
        assert isinstance(op, QuantRelu)
        rows, base, gain = np.atleast_2d(op.thresholds), op.low, 1
    rows = np.clip(rows, kind.low, kind.high + 1)
    least, most = int(rows.min(initial=kind.high + 1)), int(rows.max(initial=kind.low))
    bits = max(2, bits_of(min(kind.low - most, -1), max(kind.high - least, 0)))
    parameters = {"thresholds": list(rows.shape), "bits": bits, "gain": gain}
    arrays = {"thresholds": rows, "base": np.array([base], dtype=np.int64)}
    step = Step(node.name, "Compare", node.inputs, after.shape, 0, parameters)
    return Draft(step, arrays, False, bits, (after.low - gain * rows.shape[1], after.high))


def _look_up(node: Node, kind: TensorType, after: TensorType) -> Draft:
    """A table from the least input on; entries beyond the greatest are never read."""
    assert isinstance(node.op, Lookup)
    entries = kind.high - kind.low + 1
    bits = max(1, (entries - 1).bit_length())
    rows = np.atleast_2d(node.op.table)[:, kind.low - node.op.start :][:, :entries]
    table = np.pad(rows, ((0, 0), (0, (1 << bits) - entries)))
    arrays = {"table": table, "fill": np.array([kind.low], dtype=np.int64)}
    step = Step(node.name, "Lookup", node.inputs, after.shape, 0, {"table": list(table.shape), "bits": bits})
    return Draft(step, arrays, False, bits, (after.low, after.high))


def _polynomial(node: Node, kind: TensorType, after: TensorType) -> list[Draft]:
    """An exact polynomial in one ring, then a shift out of it."""
    op = node.op
    assert isinstance(op, Polynomial)
    rows = np.atleast_2d(op.coefficients).copy()
    rows[:, 0] += (1 << op.shift) >> 1
    low, high = _polynomial_range(rows, kind)
    bits = bits_of(min(low, -1), max(high, 0))
    name = f"{node.name} before its shift" if op.shift else node.name
    first = Step(name, "Polynomial", node.inputs, after.shape, 0, {"coefficients": list(rows.shape)})
    drafts = [Draft(first, {"coefficients": rows}, True, 0, (low, high))]
    if op.shift:
        parameters = {"places": op.shift, "bits": max(bits, op.shift + 1)}
        step = Step(node.name, "Shift", (name,), after.shape, 0, parameters)
        drafts.append(Draft(step, {}, False, parameters["bits"], (after.low, after.high)))
    return drafts


def _polynomial_range(rows: Integers, kind: TensorType) -> tuple[int, int]:
    """A range that holds the values, by interval arithmetic on the monomials."""
    powers = []
    for degree in range(rows.shape[1]):
        ends = sorted((kind.low**degree, kind.high**degree))
        powers.append((0 if degree and degree % 2 == 0 and kind.low < 0 < kind.high else ends[0], ends[1]))
    sums = [
        [sum(pick(int(c) * lo, int(c) * hi) for c, (lo, hi) in zip(row, powers, strict=True)) for pick in (min, max)]
        for row in rows
    ]
    return min(low for low, _ in sums), max(high for _, high in sums)


def _fused(graph: Graph, drafts: list[Draft], rings: Mapping[str, int], fusing: Fusing) -> list[Draft]:
    """With a round less for each activation that a linear layer alone reads, where that pays."""
    readers = Counter([graph.output, *(source for draft in drafts for source in draft.step.inputs)])
    found: dict[str, Draft] = {}
    for draft in drafts:
        found[draft.step.name] = draft
        path = _back_to_activation(draft, found, readers) if draft.step.kind == "Linear" else []
        if path:
            joined = _joined(path[-1], draft)
            if fusing.pays(joined.step, kind_of(rings[draft.step.name])):
                found[draft.step.name] = joined
                for each in path:
                    del found[each.step.name]
    return list(found.values())


def _back_to_activation(draft: Draft, known: Mapping[str, Draft], readers: Mapping[str, int]) -> list[Draft]:
    """What lies between a layer and the activation before it, which comes last; empty if others read that as well."""
    path: list[Draft] = []
    while not path or path[-1].step.kind == "Reshape":
        before = known.get((path[-1] if path else draft).step.inputs[0])
        if before is None or readers[before.step.name] > 1:
            return []
        path.append(before)
    return path if path[-1].step.kind == "Compare" else []


def _joined(first: Draft, second: Draft) -> Draft:
    """`W (base + gain (levels - below)) + bias`, where so many thresholds are below each input, as a map of `below`."""
    levels, gain = first.step.parameters["thresholds"][1], first.step.parameters["gain"]
    weight, bias = second.arrays["weight"], second.arrays["bias"]
    arrays = {
        "thresholds": first.arrays["thresholds"],
        "weight": -gain * weight,
        "bias": bias + weight.sum(axis=1) * (first.arrays["base"] + gain * levels),
    }
    parameters = {name: first.step.parameters[name] for name in ("thresholds", "bits")}
    parameters["weight"] = second.step.parameters["weight"]
    step = Step(second.step.name, "CompareLinear", first.step.inputs, second.step.shape, 0, parameters)
    return Draft(step, arrays, False, first.need, second.range)


def _rings(graph: Graph, drafts: list[Draft]) -> dict[str, int]:
    """The ring of every value: values that are computed from one another without a comparison share one.

    A ring holds the greatest number in it, and as many bits as are compared in it.
    """
    parent = {name: name for name in (INPUT, *(draft.step.name for draft in drafts))}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    need = {name: 1 for name in parent}
    need[INPUT] = graph.input.bits
    for draft in drafts:
        name = draft.step.name
        need[name] = max(need[name], bits_of(min(draft.range[0], -1), max(draft.range[1], 0)))
        for source in draft.step.inputs:
            need[source] = max(need[source], draft.need)
            if draft.local:
                parent[root(source)] = root(name)
    widest: dict[str, int] = {}
    for name, bits in need.items():
        widest[root(name)] = max(widest.get(root(name), 1), bits)
    return {name: next(bits for bits in KINDS if bits >= widest[root(name)]) for name in parent}


def by_channel(values: Ring, shape: Shape) -> Ring:
    """Rows `(channels | 1, k)`, each of the k columns broadcasting against `shape`: `(k, channels | 1, 1, ...)`."""
    return np.ascontiguousarray(channelwise(values, shape))
