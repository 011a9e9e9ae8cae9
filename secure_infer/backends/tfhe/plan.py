"""A graph planned for TFHE: each value as `gain * t + offset` of an encrypted t, each activation as a look-up.

Holding a sign as a bit b with value 2b - 1 leaves the sums of the next layer half as wide; its constant part,
`W @ -1` (for a convolution with zero padding: `W * pad0(-1)`), moves into the next thresholds, which are free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from secure_infer.backends.tfhe import ranges
from secure_infer.backends.tfhe.lookup import MAX_BITS, MAX_TABLE_BITS, Bootstraps, LookUp, function, steps
from secure_infer.backends.tfhe.options import Options
from secure_infer.backends.tfhe.ranges import Range
from secure_infer.backends.tfhe.rounded import rounded
from secure_infer.errors import ParametersError, Problem
from secure_infer.graph.graph import INPUT, Graph, Node
from secure_infer.graph.interpret import apply
from secure_infer.graph.ops import Add, Conv2d, Linear, Lookup, Max, Op, QuantRelu, Reshape, Sign, Sum
from secure_infer.graph.text import underline
from secure_infer.graph.types import Integers, bits_of, channelwise


@dataclass(frozen=True, eq=False)
class Held:
    """How a value is held: `parts * value = gain * t + offset`, where `scale * t` is encrypted.

    Attributes:
        gain: A positive integer.
        offset: Constant of each element; shape of one sample.
        reach: Range of t.
        parts: A positive integer.
        scale: A positive integer. A table can give a multiple of t for nothing, while a later product adds noise.
    """

    gain: int
    offset: Integers
    reach: Range
    parts: int = 1
    scale: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.offset.shape


@dataclass(frozen=True, eq=False)
class Step:
    """One operation on encrypted values.

    Attributes:
        name: Name of the node.
        op: The operation on t; linear ones have no bias and no common factor in their weights.
        inputs: Names of the values it reads.
        held: How its output is held.
        plan: Look-up of an activation, or of each comparison of a maximum; None for linear steps.
        before: Multiplier and constant applied to t before the step; only a maximum needs them.
    """

    name: str
    op: Op
    inputs: tuple[str, ...]
    held: Held
    plan: Bootstraps | None = None
    before: tuple[int, Integers] = field(default_factory=lambda: (1, np.zeros(1, dtype=np.int64)))


@dataclass(frozen=True, eq=False)
class Plan:
    """All steps of a network.

    Attributes:
        input: How the input is held.
        steps: In topological order.
        output: Name of the result.
        worst_case: Names of activations that no input can overflow.
    """

    input: Held
    steps: tuple[Step, ...]
    output: str
    worst_case: frozenset[str]

    @property
    def result(self) -> Held:
        """How the result is held."""
        return {INPUT: self.input, **{step.name: step.held for step in self.steps}}[self.output]


def plan(graph: Graph, calibration: Integers, options: Options) -> Plan:
    """Plan a graph.

    Args:
        graph: The network.
        calibration: Integers, shape `(n, *input shape)`.
        options: Checked options.

    Raises:
        ParametersError: Accumulators that no look-up can hold; all of them are listed and underlined.
    """
    worst = ranges.worst_case(graph)
    sigmas = ranges.of(options.rounding)
    likely = worst if options.ranges == "worst_case" else ranges.calibrated(graph, calibration, worst, sigmas)
    planner = _Planner(graph, worst, likely, options, {}).run()
    scales = planner.scales()
    if scales:
        planner = _Planner(graph, worst, likely, options, scales).run()
    if planner.problems:
        raise ParametersError(
            "No TFHE parameters fit the network.", planner.problems, underline(graph, planner.problems)
        )
    return Plan(planner.held[INPUT], tuple(planner.steps), graph.output, frozenset(planner.safe))


@dataclass(frozen=True, eq=False)
class _Found:
    """A look-up, and how its results are held."""

    plan: Bootstraps
    gain: int
    offset: Integers
    parts: int = 1


def _price(plan: Bootstraps) -> tuple[float, float]:
    """What is compared first and second between plans of one layer: cost, then width; of rounded ones noise alone."""
    if isinstance(plan, LookUp) and plan.approximate:
        return 0.0, float(np.mean(2.0**plan.removed / (1 if plan.factor is None else plan.factor)))
    return plan.cost, float(plan.bits)


class _Planner:
    """Plans one node after another."""

    def __init__(
        self,
        graph: Graph,
        worst: Mapping[str, Range],
        likely: Mapping[str, Range],
        options: Options,
        scales: Mapping[str, int],
    ) -> None:
        self.graph, self.worst, self.likely, self.options, self.scale = graph, worst, likely, options, scales
        low = graph.input.low
        zero = np.zeros(graph.input.shape, dtype=np.int64)
        self.held = {INPUT: Held(1, zero + low, Range(zero, zero + graph.input.high - low))}
        self.steps: list[Step] = []
        self.problems: list[Problem] = []
        self.safe: set[str] = set()

    def run(self) -> _Planner:
        """Plan all nodes."""
        for node in self.graph.nodes:
            self._add(node)
        return self

    def scales(self) -> dict[str, int]:
        """The scale that each activation's table can take on for the look-ups that read it: half of their factors."""
        plans = {step.name: step.plan for step in self.steps}
        factors = {name: p.factor for name, p in plans.items() if isinstance(p, LookUp) and p.factor is not None}
        found = {}
        for name, look_up in plans.items():
            readers = self._readers(name) if isinstance(look_up, LookUp) else None
            if readers and readers <= factors.keys():
                found[name] = min(int(factors[reader].min()) for reader in readers) // 2
        return {name: scale for name, scale in found.items() if scale > 1}

    def _add(self, node: Node) -> None:
        """Plan a node; an activation that does not fit becomes a problem, and a stand-in lets planning go on."""
        linear = isinstance(node.op, Linear | Conv2d | Add | Sum | Reshape)
        step = self._linear(node) if linear else self._activation(node)
        self.held[node.name] = step.held
        self.steps.append(step)

    def _linear(self, node: Node) -> Step:
        held = [self.held[name] for name in node.inputs]
        op, gain = node.op, held[0].gain
        parts = int(np.lcm.reduce([h.parts for h in held]))
        offsets = [h.offset[None] * (parts // h.parts) for h in held]
        if isinstance(op, Linear | Conv2d):
            op = replace(op, bias=op.bias * parts)
        offset = apply(op, *offsets)[0]
        match op:
            case Linear() | Conv2d():
                factor = max(1, int(np.gcd.reduce(op.weight, axis=None)))
                gain *= factor
                op = replace(op, weight=op.weight // factor, bias=np.zeros_like(op.bias))
            case Add():
                left, right = (g * h.gain * (parts // h.parts) for g, h in zip(op.gains, held, strict=True))
                gain = int(np.gcd(left, right))
                op = Add((left // gain, right // gain))
        result = Held(gain, offset, _inner(self.likely[node.name], gain, offset, parts), parts, held[0].scale)
        return Step(node.name, op, node.inputs, result)

    def _activation(self, node: Node) -> Step:
        if isinstance(node.op, Max):
            return self._maximum(node, node.op)
        held = self.held[node.inputs[0]]
        certain = replace(held, reach=_inner(self.worst[node.inputs[0]], held.gain, held.offset, held.parts))
        found, likely = self._function(node, certain), self._function(node, held)
        if found is None or (likely is not None and _price(likely.plan) < _price(found.plan)):
            found = likely
        else:
            self.safe.add(node.name)
        zero = np.zeros(held.shape, dtype=np.int64)
        if found is None:
            self._refuse(node, held.reach)
            return Step(node.name, node.op, node.inputs, Held(1, zero, Range(zero, zero + 1)))
        bounds, scale, look_up = Range(zero + found.plan.low, zero + found.plan.top), 1, found.plan
        if isinstance(look_up, LookUp):
            scale = self.scale.get(node.name, 1)
            look_up = replace(look_up, tables=scale * look_up.tables)
        result = Held(found.gain, zero + found.offset, bounds, found.parts, scale)
        return Step(node.name, node.op, node.inputs, result, look_up)

    def _function(self, node: Node, held: Held) -> _Found | None:
        """The look-up of an activation of `held`."""
        op, keep = node.op, self.options.kept(node.name)
        match op:
            case Sign():
                thresholds, low, gain = channelwise(op.threshold[:, None], held.shape), -1, 2
            case QuantRelu():
                thresholds, low, gain = channelwise(op.thresholds, held.shape), op.low, 1
            case _:
                return _tabulated(op, held)
        thresholds = _in_units(thresholds, held)
        if keep is not None:
            wraps = self._only_summed(node.name)
            plan = rounded(thresholds, held.reach, keep, wraps, held.scale)
            if plan is not None and wraps:  # value = low + gain * (t + levels) / 2
                parts = 2 // gain
                return _Found(plan, 1, np.array(parts * low + len(thresholds)), parts)
            if plan is not None or held.scale > 1:
                return _Found(plan, gain, np.array(low)) if plan is not None else None
        steps_plan = steps(thresholds, held.reach, keep)
        return _Found(steps_plan, gain, np.array(low), 1) if steps_plan is not None else None

    def _readers(self, name: str) -> set[str] | None:
        """The thresholds that read a value through sums alone; None if anything else reads it, or the client."""
        found: set[str] = set()
        for user in self.graph.users(name):
            through = isinstance(user.op, Linear | Conv2d | Sum | Reshape)
            more = self._readers(user.name) if through else {user.name}
            if more is None or not isinstance(user.op, Linear | Conv2d | Sum | Reshape | Sign | QuantRelu):
                return None
            found |= more
        return None if name == self.graph.output else found

    def _only_summed(self, name: str) -> bool:
        """Whether a value goes through sums alone until thresholds, or the client, read it."""
        return all(
            isinstance(user.op, Sign | QuantRelu)
            or (isinstance(user.op, Linear | Conv2d | Add | Sum | Reshape) and self._only_summed(user.name))
            for user in self.graph.users(name)
        )

    def _maximum(self, node: Node, op: Max) -> Step:
        held = self.held[node.inputs[0]]
        gain, offset, scale = held.gain, held.offset[:, :1, :1], 1
        add = -held.reach.low.min() * np.ones_like(offset)
        if np.any(held.offset != offset):  # offsets that differ within a channel have to be added before comparing
            scale, gain = gain, 1
            add = held.offset - (held.offset + scale * held.reach.low).min()
            offset = held.offset - add
        else:
            offset = offset - gain * add
        top = int((scale * held.reach.high + add).max())
        shape = self.graph.types[node.name].shape
        plan = _comparison(top, op.kernel[0] * op.kernel[1])
        if plan is None:
            self._refuse(node, Range(np.array([-top]), np.array([top])))
        bounds = Range(np.zeros(shape, dtype=np.int64), np.full(shape, top))
        return Step(
            node.name,
            op,
            node.inputs,
            Held(gain, np.broadcast_to(offset[:, :1, :1], shape), bounds, held.parts),
            plan,
            (scale, add),
        )

    def _refuse(self, node: Node, reach: Range) -> None:
        low, high = int(reach.low.min()), int(reach.high.max())
        limit, most = f"sums of up to {MAX_BITS} bits can be cut into narrow look-ups", MAX_BITS
        if not isinstance(node.op, Sign | QuantRelu):
            limit, most = f"tables of up to {MAX_TABLE_BITS} bits are practical", MAX_TABLE_BITS
        fix = self._cheapest_change(node, max(1, bits_of(low, high) - most))
        self.problems.append(
            Problem(
                node.name,
                f"Its look-up reads [{low}, {high}] in units of its input, {bits_of(low, high)} bits; {limit}.",
                fix,
            )
        )

    def _cheapest_change(self, node: Node, excess: int) -> str:
        """What makes a sum `excess` bits narrower."""
        source = node
        while source.inputs[0] != INPUT and not isinstance(source.op, Linear | Conv2d):
            source = self.graph.node(source.inputs[0])
        if not isinstance(source.op, Linear | Conv2d):
            return f"quantize the input to {excess} fewer bits."
        weights = bits_of(int(source.op.weight.min()), int(source.op.weight.max()))
        read = self.graph.input_type(source).bits
        return (
            f"quantize {source.name} to {excess} fewer bits in all: its weights have {weights}, the values it reads "
            f"{read}; or divide its {source.op.weight[0].size} inputs a sum by {1 << excess}."
        )


def _inner(reach: Range, gain: int, offset: Integers, parts: int) -> Range:
    """The range of `(parts * value - offset) / gain`."""
    return Range(-((offset - parts * reach.low) // gain), (parts * reach.high - offset) // gain)


def _in_units(thresholds: Integers, held: Held) -> Integers:
    """`value >= threshold` as a threshold on t, shape `(levels, *shape)`."""
    return -((held.offset - held.parts * thresholds) // held.gain)


def _tabulated(op: Op, held: Held) -> _Found | None:
    """Plan, gain and offset of any function, from its values on the whole range of t."""
    low, high = int(held.reach.low.min()), int(held.reach.high.max())
    if high - low >= 1 << MAX_TABLE_BITS:
        return None
    entries = np.arange(low, high + 1).reshape((-1,) + (1,) * len(held.shape))
    x = (held.gain * entries + held.offset) // held.parts
    if isinstance(op, Lookup):  # a table ends where its input's range ends; the rest of the entries is never read
        x = np.clip(x, op.start, op.start + op.table.shape[-1] - 1)
    values = apply(op, x)
    reached = values[(entries >= held.reach.low) & (entries <= held.reach.high)]
    least = int(reached.min())
    gain = max(1, int(np.gcd.reduce(reached - least)))
    plan = function(np.clip(values - least, 0, reached.max() - least) // gain, held.reach)
    return _Found(plan, gain, np.array(least)) if plan is not None else None


def _comparison(top: int, window: int) -> Bootstraps | None:
    """Look-up of a maximum of values in [0, top]: any(bits) from their sum, else max(a - b, 0)."""
    if top <= 1:
        zero = np.zeros(1, dtype=np.int64)
        return steps(zero[None] + 1, Range(zero, zero + window), None)
    reach = Range(np.array([-top]), np.array([top]))
    return function(np.maximum(np.arange(-top, top + 1), 0)[:, None], reach)
