"""What every party may know of a network, and what is secret in it: shapes, but never a weight, in the plan."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from secure_infer.backends.parties.halves import fields_of, integer, parameters_of, refused, refusing, require_order
from secure_infer.errors import BundleError, Problem, UnsupportedNetwork
from secure_infer.graph.graph import INPUT, Graph, Node
from secure_infer.graph.ops import Add, Conv2d, Linear, Lookup, Max, Polynomial, QuantRelu, Reshape, Sign, Sum
from secure_infer.graph.text import underline
from secure_infer.graph.types import MOST_ELEMENTS, Integers, Shape, TensorType, bits_of

SCHEMA = 1
ABY3, CHEETAH = "aby3", "cheetah"
PARTIES = {ABY3: 3, CHEETAH: 2}
"""Parties of each scheme."""
RING = 64
"""Bits of the ring. In one of 32 bits, matrix products of SPU 0.9.5 end its process where memory lies unfavorably."""
_LARGEST_TABLE = 1 << 10  # one comparison an entry

PARAMETERS: Mapping[str, frozenset[str]] = {
    "Linear": frozenset({"weight"}),
    "Conv2d": frozenset({"weight", "stride", "padding", "dilation", "groups"}),
    "Add": frozenset({"gains"}),
    "Sum": frozenset({"kernel", "stride", "padding"}),
    "Max": frozenset({"kernel", "stride", "padding"}),
    "Reshape": frozenset(),
    "Compare": frozenset({"thresholds", "gain"}),
    "Lookup": frozenset({"table"}),
    "Polynomial": frozenset({"coefficients", "shift"}),
}
"""Of each kind of step:

weight thresholds table coefficients   shape of the secret array of that name
gain                   what the output grows by at each threshold
shift                  bits that are shifted out, rounding
kernel ... groups      as in the graph
"""
_ARRAYS = ("weight", "thresholds", "table", "coefficients")


@dataclass(frozen=True)
class Step:
    """One operation.

    Attributes:
        name: Name of its value.
        kind: One of `PARAMETERS`.
        inputs: Names of the values that it reads.
        shape: Shape of its value for one sample.
        parameters: Integers or short lists of them.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    shape: Shape
    parameters: Mapping[str, Any]

    @property
    def secrets(self) -> dict[str, Shape]:
        """Shapes of its secret arrays, by name, in the order in which they are stored.

        A table is stored as its first entry and the steps from each entry to the next. `base` is the least output of
        a staircase, or the zero that is added after a shift; `fill` is the least input of a table or a maximum.
        """
        p = self.parameters
        found = {name: tuple(p[name]) for name in _ARRAYS if name in p}
        if "weight" in p:
            found["bias"] = (p["weight"][0],)
        if self.kind == "Compare" or p.get("shift"):
            found["base"] = (1,)
        if self.kind in ("Max", "Lookup"):
            found["fill"] = (1,)
        return found


@dataclass(frozen=True)
class Plan:
    """A network without its weights.

    Attributes:
        model: Random name, given at compilation; unlike a hash of the weights it confirms no guess of them.
        scheme: "aby3" or "cheetah".
        ring: Bits of the ring that everything is shared in.
        timeout: Seconds that a party waits for another.
        input_shape: Shape of one sample.
        steps: Operations in topological order.
        output: Name of the result.
    """

    model: str
    scheme: str
    ring: int
    timeout: float
    input_shape: Shape
    steps: tuple[Step, ...]
    output: str

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shape of every value."""
        return {INPUT: self.input_shape, **{step.name: step.shape for step in self.steps}}

    @property
    def secrets(self) -> dict[str, Shape]:
        """Shapes of all secret arrays, by the names of step and array, in the order in which they are stored."""
        return {f"{step.name}.{name}": shape for step in self.steps for name, shape in step.secrets.items()}

    @property
    def word(self) -> np.dtype[Any]:
        """Type of the ring's elements, as they are stored."""
        return np.dtype(f"<u{self.ring // 8}")

    def to_bytes(self) -> bytes:
        """The plan as JSON."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Plan:
        """The plan that `to_bytes` wrote, checked: nothing in it can carry weights.

        Raises:
            BundleError: Not such a plan, one of a newer schema, or one that holds more than a plan may.
        """
        with refusing():
            plan = cls(**fields_of(data, SCHEMA, _step))
            _require_sound(plan)
        return plan


def _require_sound(plan: Plan) -> None:
    require_order(plan.steps, INPUT, plan.output)
    if plan.scheme not in PARTIES or plan.ring not in (32, 64) or not 0 < float(plan.timeout) < 1e6:
        raise refused("Its scheme, ring or timeout is not one of ours.")
    if len(plan.model) != 32:
        raise refused("Its name is malformed.")


def _step(entry: Mapping[str, Any]) -> Step:
    parameters = parameters_of(entry, Step.__dataclass_fields__, PARAMETERS)
    if not parameters.get("shift", 0) < RING:
        raise refused("A step shifts by more bits than a ring has.")
    shape = tuple(map(integer, entry["shape"]))
    if math.prod(shape) > MOST_ELEMENTS:
        raise refused("A step's value is too large.")
    inputs = tuple(str(name) for name in entry["inputs"])
    return Step(str(entry["name"]), entry["kind"], inputs, shape, parameters)


def lower(graph: Graph, model: str, scheme: str, timeout: float, ring: int = RING) -> tuple[Plan, dict[str, Integers]]:
    """The plan of a graph and its secret arrays, by name.

    Raises:
        UnsupportedNetwork: Numbers that the ring does not hold, or tables that are too large; all are listed.
    """
    steps, secrets, needs = [], dict[str, Integers](), {INPUT: graph.input.bits + 1}
    for node in graph.nodes:
        kind, parameters, arrays, needs[node.name] = _lowered(graph, node)
        steps.append(Step(node.name, kind, node.inputs, graph.types[node.name].shape, parameters))
        secrets |= {f"{node.name}.{name}": values for name, values in arrays.items()}
    problems = [
        Problem(name, f"It needs a ring of {bits} bits.", f"quantize to fewer bits: the ring has {ring}.")
        for name, bits in needs.items()
        if bits > ring
    ]
    problems += [
        Problem(node.name, f"Its table has {node.op.table.shape[-1]} entries.", "quantize its input to 10 bits.")
        for node in graph.nodes
        if isinstance(node.op, Lookup) and node.op.table.shape[-1] > _LARGEST_TABLE
    ]
    if problems:
        raise UnsupportedNetwork("The network does not fit mpc-spu.", problems, underline(graph, problems))
    return Plan(model, scheme, ring, timeout, graph.input.shape, tuple(steps), graph.output), secrets


_Lowered = tuple[str, dict[str, Any], dict[str, Integers], int]
"""Kind, parameters and secret arrays of a step, and bits of the ring that it needs."""


def _lowered(graph: Graph, node: Node) -> _Lowered:
    before, after = graph.input_type(node), graph.types[node.name]
    # Signed numbers: what is compared with them has its sign in the topmost bit.
    need = bits_of(min(after.low, -1), after.high)
    spread = bits_of(before.low - before.high - 1, before.high - before.low + 1)
    match node.op:
        case Linear(weight=weight, bias=bias):
            return "Linear", {"weight": list(weight.shape)}, {"weight": weight, "bias": bias}, need
        case Conv2d(weight=weight, bias=bias):
            lists = {key: list(getattr(node.op, key)) for key in ("stride", "padding", "dilation")}
            sizes = {"weight": list(weight.shape), "groups": node.op.groups}
            return "Conv2d", {**sizes, **lists}, {"weight": weight, "bias": bias}, need
        case Add(gains=gains):
            return "Add", {"gains": list(gains)}, {}, need
        case Sum():
            return "Sum", _window(node.op), {}, need
        case Max():
            return "Max", _window(node.op), {"fill": np.array([before.low])}, spread
        case Reshape():
            return "Reshape", {}, {}, need
        case Sign(threshold=threshold):
            return _compare(threshold[:, None], -1, 2, before, max(need, spread))
        case QuantRelu(thresholds=thresholds, low=low):
            return _compare(np.atleast_2d(thresholds), low, 1, before, max(need, spread))
        case Lookup():
            return _look_up(node.op, before, max(need, spread))
        case Polynomial():
            return _polynomial(node.op, before, need)


def _window(op: Sum | Max) -> dict[str, Any]:
    return {"kernel": list(op.kernel), "stride": list(op.stride), "padding": list(op.padding)}


def _compare(rows: Integers, base: int, gain: int, before: TensorType, need: int) -> _Lowered:
    """A staircase `base + gain * #{thresholds <= x}`; thresholds move into the range of x, where they say the same."""
    rows = np.clip(rows, before.low, before.high + 1)
    arrays = {"thresholds": rows, "base": np.array([base])}
    return "Compare", {"thresholds": list(rows.shape), "gain": gain}, arrays, need


def _look_up(op: Lookup, before: TensorType, need: int) -> _Lowered:
    """A table from the least input to the greatest."""
    rows = np.atleast_2d(op.table)[:, before.low - op.start :][:, : before.high - before.low + 1]
    table = np.diff(rows, axis=1, prepend=0)
    return "Lookup", {"table": list(table.shape)}, {"table": table, "fill": np.array([before.low])}, need


def _polynomial(op: Polynomial, before: TensorType, need: int) -> _Lowered:
    rows, half = np.atleast_2d(op.coefficients).copy(), (1 << op.shift) >> 1
    arrays = {"coefficients": rows}
    if op.shift:
        shifted = Polynomial(op.coefficients).infer(before)
        need = max(need, bits_of(min(shifted.low + half, -1), max(shifted.high + half, 0)))
        rows[:, 0] += half if need <= RING else 0
        arrays["base"] = np.array([0])
    return "Polynomial", {"coefficients": list(rows.shape), "shift": op.shift}, arrays, need


def split(plan: Plan, secrets: Mapping[str, Integers]) -> list[bytes]:
    """Each party's words of all secrets: uniformly random, all parties' own words adding up to the secrets.

    Under ABY3, a party holds the next one's words as well, behind its own, so that any two parties hold all.
    """
    whole = np.concatenate([secrets[name].reshape(-1) for name in plan.secrets] or [np.zeros(0, dtype=np.int64)])
    count, total = PARTIES[plan.scheme], whole.astype(plan.word)
    own = [np.frombuffer(os.urandom(total.nbytes), plan.word) for _ in range(count - 1)]
    own.append(total - sum(own, np.zeros_like(total)))
    return [b"".join(own[(party + step) % count].tobytes() for step in range(_held(plan))) for party in range(count)]


def words_of(plan: Plan, party: int, data: bytes) -> dict[str, list[npt.NDArray[Any]]]:
    """One party's words of each secret, its own first, from what `split` gave it.

    Raises:
        BundleError: They are of another length.
    """
    sizes = [math.prod(shape) for shape in plan.secrets.values()]
    due = _held(plan) * sum(sizes) * plan.word.itemsize
    if len(data) != due:
        raise BundleError(
            f"The half of party {party} does not fit its plan.",
            [Problem("weights", f"Expected {due} bytes, got {len(data)}.", "fetch or compile the model again.")],
        )
    words = np.frombuffer(data, plan.word).reshape(_held(plan), -1)
    ends = np.cumsum(sizes, dtype=np.int64)
    return {name: list(words[:, end - size : end]) for name, size, end in zip(plan.secrets, sizes, ends, strict=True)}


def _held(plan: Plan) -> int:
    """How many words of each secret a party holds."""
    return 2 if plan.scheme == ABY3 else 1
