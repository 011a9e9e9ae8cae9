"""What all parties may know of a network: operations, shapes and widths, never a weight."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from secure_infer.backends.parties.client import MOST_PARTIES, PARTIES, RINGS
from secure_infer.backends.parties.halves import fields_of, integer, parameters_of, refused, refusing
from secure_infer.graph.graph import INPUT, Graph, Node
from secure_infer.graph.ops import Add, Conv2d, Linear, Lookup, Max, Polynomial, QuantRelu, Reshape, Sign, Sum
from secure_infer.graph.types import Shape, TensorType, bits_of

SCHEMA = 2
DEALER, FIRST_PARTY = "dealer", "first-party"
WIDTHS = (8, 16, 32, 64)

_PARAMETERS: dict[str, frozenset[str]] = {
    "Linear": frozenset({"weight"}),
    "Conv2d": frozenset({"weight", "stride", "padding", "dilation", "groups"}),
    "Add": frozenset({"gains"}),
    "Sum": frozenset({"kernel", "stride", "padding"}),
    "Max": frozenset({"kernel", "stride", "padding", "width"}),
    "Reshape": frozenset(),
    "Polynomial": frozenset({"weight", "shift"}),
    "Sign": frozenset({"width"}),
    "QuantRelu": frozenset({"levels", "width"}),
    "Lookup": frozenset({"weight", "width"}),
}


@dataclass(frozen=True)
class Step:
    """One operation as all parties see it.

    Attributes:
        name: Name of its value.
        kind: Name of the operation.
        inputs: Names of the values that it reads.
        shape: Shape of its value for one sample.
        parameters: Integers or short lists of them: window sizes, shapes of weights, widths of comparisons.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    shape: Shape
    parameters: Mapping[str, Any]

    @property
    def weight(self) -> Shape | None:
        """Shape of the secret weight, if it has one with elements."""
        shape = tuple(self.parameters.get("weight", ()))
        return shape if shape and math.prod(shape) else None


@dataclass(frozen=True)
class Plan:
    """A network without its weights.

    Attributes:
        model: Random name, given at compilation; unlike a hash of the weights it confirms no guess of them.
        provider: Who deals correlated randomness: "dealer" or "first-party".
        timeout: Seconds that a party waits for another.
        input_shape: Shape of one sample.
        steps: Operations in topological order.
        output: Name of the result.
        output_bits: Replies add up to the result modulo two to this power.
        parties: How many compute.
    """

    model: str
    provider: str
    timeout: float
    input_shape: Shape
    steps: tuple[Step, ...]
    output: str
    output_bits: int
    parties: int = PARTIES

    @property
    def output_shape(self) -> Shape:
        """Shape of the result for one sample."""
        return self.shapes[self.output]

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shape of every value."""
        return {INPUT: self.input_shape, **{step.name: step.shape for step in self.steps}}

    @property
    def bits(self) -> dict[str, int]:
        """Low bits of every value that matter to what reads it, as one of `WIDTHS`: the others may be anything."""
        needed = dict.fromkeys(self.shapes, WIDTHS[0]) | {self.output: self.output_bits}
        for step in reversed(self.steps):
            for source in step.inputs:
                needed[source] = max(needed[source], _read_bits(step, needed[step.name]))
        return needed

    def to_bytes(self) -> bytes:
        """The plan as JSON, which names the number of parties if it is not two."""
        fields = asdict(self)
        if self.parties == PARTIES:
            del fields["parties"]
        return json.dumps({"schema": SCHEMA, **fields}, sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Plan:
        """The plan that `to_bytes` wrote, checked: nothing in it can carry weights.

        Raises:
            BundleError: Not such a plan, one of a newer schema, or one that holds more than a plan may.
        """
        with refusing():
            plan = cls(**fields_of(data, SCHEMA, _step))
            if plan.provider not in (DEALER, FIRST_PARTY) or not 0 < float(plan.timeout) < 1e6:
                raise refused("Its provider or timeout is not one of ours.")
            if plan.output not in plan.shapes or len(plan.model) != 32 or plan.output_bits not in RINGS:
                raise refused("Its output or its name is malformed.")
            if integer(plan.parties) not in range(PARTIES, MOST_PARTIES + 1):
                raise refused(f"It is for {plan.parties} parties.")
            _ = plan.bits
        return plan


def _read_bits(step: Step, needed: int) -> int:
    """Bits of what a step reads that matter, if so many of its value do."""
    match step.kind:
        case "Sign" | "QuantRelu" | "Lookup":
            return int(step.parameters["width"])
        case "Max":
            return max(int(step.parameters["width"]), needed)
        case "Polynomial" if step.parameters["shift"]:
            return WIDTHS[-1]
        case _:
            return needed


def _step(entry: Mapping[str, Any]) -> Step:
    parameters = parameters_of(entry, Step.__dataclass_fields__, _PARAMETERS)
    inputs = tuple(str(name) for name in entry["inputs"])
    return Step(str(entry["name"]), entry["kind"], inputs, tuple(map(integer, entry["shape"])), parameters)


def plan(graph: Graph, model: str, provider: str, timeout: float, parties: int = PARTIES) -> Plan:
    """The plan of a graph."""
    steps = tuple(
        Step(node.name, node.kind, node.inputs, graph.types[node.name].shape, _parameters(graph, node))
        for node in graph.nodes
    )
    after = graph.output_type
    output_bits = next(bits for bits in RINGS if bits >= bits_of(min(after.low, -1), max(after.high, 0)))
    return Plan(model, provider, timeout, graph.input.shape, steps, graph.output, output_bits, parties)


def _parameters(graph: Graph, node: Node) -> dict[str, Any]:
    kind = graph.input_type(node)
    match node.op:
        case Linear(weight=weight):
            return {"weight": list(weight.shape)}
        case Conv2d(weight=weight):
            return {
                "weight": list(weight.shape),
                "stride": list(node.op.stride),
                "padding": list(node.op.padding),
                "dilation": list(node.op.dilation),
                "groups": node.op.groups,
            }
        case Add():
            return {"gains": list(node.op.gains)}
        case Sum():
            return _window(node.op)
        case Max():
            return {**_window(node.op), "width": width(kind)}
        case Polynomial():
            rows = node.op.coefficients.reshape(-1, node.op.degree + 1).shape[0]
            return {"weight": _weighted_shape(node.op.degree, rows, kind), "shift": node.op.shift}
        case Sign():
            return {"width": width(kind)}
        case QuantRelu():
            return {"levels": node.op.levels, "width": width(kind)}
        case Lookup():
            entries = node.op.table.shape[-1]
            rows = node.op.table.reshape(-1, entries).shape[0]
            return {"weight": _weighted_shape(entries - 1, rows, kind), "width": width(kind)}
        case Reshape():
            return {}


def _window(op: Sum | Max) -> dict[str, Any]:
    return {"kernel": list(op.kernel), "stride": list(op.stride), "padding": list(op.padding)}


def _weighted_shape(terms: int, rows: int, kind: TensorType) -> list[int]:
    return [terms, rows] + [1] * (len(kind.shape) - 1)


def width(kind: TensorType) -> int:
    """Bits in which differences of two values, or of a value and a threshold in its range, are compared."""
    spread = kind.high - kind.low + 1
    return next(bits for bits in WIDTHS if bits >= bits_of(-spread, spread))
