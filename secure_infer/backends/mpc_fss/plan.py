"""What everybody but the client may know of a network: operations, shapes, rings and widths, never a weight."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from secure_infer.backends.mpc_fss.ring import KINDS
from secure_infer.backends.parties.halves import fields_of, integer, parameters_of, refused, refusing, require_order
from secure_infer.graph.graph import INPUT
from secure_infer.graph.types import MOST_ELEMENTS, Shape

SCHEMA = 2  # the sizes of correlations follow from the plan
OUTSOURCED, OWNER = "outsourced", "owner"
MODES = (OUTSOURCED, OWNER)

AFFINE = frozenset({"Linear", "Conv2d"})
"""Kinds of steps that open their input and multiply it."""
PARAMETERS: Mapping[str, frozenset[str]] = {
    "Linear": frozenset({"weight"}),
    "Conv2d": frozenset({"weight", "stride", "padding", "dilation", "groups"}),
    "Add": frozenset({"gains"}),
    "Sum": frozenset({"kernel", "stride", "padding"}),
    "Max": frozenset({"kernel", "stride", "padding", "bits"}),
    "Reshape": frozenset(),
    "Compare": frozenset({"thresholds", "bits", "gain"}),
    "CompareLinear": frozenset({"thresholds", "bits", "weight"}),
    "Lookup": frozenset({"table", "bits"}),
    "Polynomial": frozenset({"coefficients"}),
    "Shift": frozenset({"places", "bits"}),
}
"""Of each kind of step:

weight thresholds table coefficients   shape of the secret array of that name; a threshold's, `(rows, levels)`, say how
                       many thresholds there are for each channel, or, with one row, for all
bits                   of the numbers that are compared, of a table's index, of a number that is shifted
gain                   what the output grows by at each threshold
                       (a CompareLinear multiplies its weight by the number of thresholds above each input)
places                 bits that are shifted out
kernel ... groups      as in the graph
"""


@dataclass(frozen=True)
class Step:
    """One operation.

    Attributes:
        name: Name of its value.
        kind: One of `PARAMETERS`.
        inputs: Names of the values that it reads.
        shape: Shape of its value for one sample.
        ring: Bits of the ring that its value is shared in.
        parameters: Integers or short lists of them.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    shape: Shape
    ring: int
    parameters: Mapping[str, Any]

    @property
    def size(self) -> int:
        """Elements of its value for one sample."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Plan:
    """A network without its weights.

    Attributes:
        model: Random name, given at compilation; unlike a hash of the weights it confirms no guess of them.
        mode: "outsourced": both servers hold shares of the weights; "owner": party 0 holds them in the clear.
        timeout: Seconds that a party waits for another.
        ahead: Inferences for which correlations are kept ready.
        input_shape: Shape of one sample.
        input_ring: Bits of the ring that the input is shared in.
        steps: Operations in topological order.
        output: Name of the result.
    """

    model: str
    mode: str
    timeout: float
    ahead: int
    input_shape: Shape
    input_ring: int
    steps: tuple[Step, ...]
    output: str

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shape of every value."""
        return {INPUT: self.input_shape, **{step.name: step.shape for step in self.steps}}

    @property
    def rings(self) -> dict[str, int]:
        """Ring of every value."""
        return {INPUT: self.input_ring, **{step.name: step.ring for step in self.steps}}

    def given(self, step: Step) -> Shape:
        """Shape of what a step reads."""
        return self.shapes[step.inputs[0]]

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
    if plan.mode not in MODES or not 0 < float(plan.timeout) < 1e6 or not 0 < integer(plan.ahead) <= 1 << 20:
        raise refused("Its mode, timeout or stock is not one of ours.")
    if len(plan.model) != 32 or not set(plan.rings.values()) <= set(KINDS):
        raise refused("Its name or a ring is malformed.")


def _step(entry: Mapping[str, Any]) -> Step:
    parameters = parameters_of(entry, Step.__dataclass_fields__, PARAMETERS)
    if not 0 < parameters.get("bits", 1) <= 64 or not parameters.get("places", 0) < parameters.get("bits", 64):
        raise refused("A step compares or shifts by more bits than a ring has.")
    shape = tuple(map(integer, entry["shape"]))
    if math.prod(shape) > MOST_ELEMENTS:
        raise refused("A step's value is too large.")
    inputs = tuple(str(name) for name in entry["inputs"])
    return Step(str(entry["name"]), entry["kind"], inputs, shape, integer(entry["ring"]), parameters)
