"""What a run of a plan costs in rounds, bytes and comparisons, and its correlations in bytes: counted from the plan."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from secure_infer.backends.mpc_fss.dcf import foreseeable
from secure_infer.backends.mpc_fss.generator import Form
from secure_infer.backends.mpc_fss.material import Layout, gates, tournament
from secure_infer.backends.mpc_fss.plan import OWNER, Plan, Step
from secure_infer.backends.mpc_fss.ring import depth_of, wire_kind
from secure_infer.backends.mpc_fss.wire import TAG_BYTES
from secure_infer.backends.parties.messages import HEADER_BYTES


@dataclass(frozen=True)
class Cost:
    """What a run costs; a run reports the same rounds and bytes from its channels.

    Attributes:
        rounds: Simultaneous exchanges of messages between the servers, or messages of one of them.
        bytes: Sent by both servers to each other, length prefixes included, TLS framing not.
        dealt_bytes: Sent by the dealer to both servers, ahead of the run.
        comparisons: Evaluations of comparison functions, at each server.
        multiplications: Multiply-accumulates with secret weights, at each server.
        nodes: Blocks of AES in these comparisons, but for what is foreseen of a single sample's, at each server.
    """

    rounds: int = 0
    bytes: int = 0
    dealt_bytes: int = 0
    comparisons: int = 0
    multiplications: int = 0
    nodes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))


def cost(plan: Plan, batch: int = 1) -> Cost:
    """What one run on `batch` samples costs."""
    layout = Layout(plan)
    total = Cost(dealt_bytes=batch * sum(layout.item_bytes(party) for party in (0, 1)))
    for step in plan.steps:
        total += _step_cost(plan, step, batch) + Cost(nodes=_nodes(plan, step, batch))
    return total + _first(plan, total)


def _first(plan: Plan, total: Cost) -> Cost:
    """The tags of the first message; where that has one direction only, they need a length the other way."""
    if not total.rounds:
        return Cost(1, 2 * (HEADER_BYTES + TAG_BYTES))
    one_way = plan.mode == OWNER and next(step for step in plan.steps if _talks(step)).kind in ("Linear", "Conv2d")
    return Cost(0, 2 * TAG_BYTES + (HEADER_BYTES if one_way else 0))


def _talks(step: Step) -> bool:
    return _step_cost(None, step, 1).rounds > 0


def _step_cost(plan: Plan | None, step: Step, batch: int) -> Cost:
    p, size, word = step.parameters, batch * step.size, step.ring // 8
    match step.kind:
        case "Linear" | "Conv2d":
            given = batch * math.prod(plan.shapes[step.inputs[0]]) if plan else 0
            message = _message(given * word, both=plan is None or plan.mode != OWNER)
            return message + Cost(multiplications=size * depth_of(tuple(p["weight"])))
        case "Compare" if p["thresholds"][1]:
            compared = Cost(comparisons=size * p["thresholds"][1])
            return _message(size * wire_kind(p["bits"]).itemsize) + compared
        case "CompareLinear":
            outputs, inputs = p["weight"]
            spent = Cost(comparisons=batch * inputs * p["thresholds"][1], multiplications=batch * inputs * outputs)
            return _message(batch * inputs * wire_kind(p["bits"]).itemsize) + spent
        case "Max":
            total = Cost()
            for pairs in tournament(step):
                total += _message(batch * pairs * word) + Cost(comparisons=batch * pairs)
            return total
        case "Lookup":
            return _message(size * wire_kind(p["bits"]).itemsize)
        case "Polynomial" if p["coefficients"][1] > 1:
            return _message(size * word)
        case "Shift":
            return _message(size * wire_kind(p["bits"]).itemsize) + Cost(comparisons=2 * size)
        case _:
            return Cost()


def _nodes(plan: Plan, step: Step, batch: int) -> int:
    total = 0
    for gate in gates(plan, step):
        foreseen = foreseeable(gate.form, gate.count) if batch == 1 else 0
        total += batch * gate.count * nodes_of(gate.form, foreseen)
    return total


def nodes_of(form: Form, foreseen: int = 0) -> int:
    """Blocks of AES that an evaluation takes, if so many levels are foreseen."""
    return (form.levels - foreseen) * (1 + form.blocks) + form.blocks


def _message(size: int, both: bool = True) -> Cost:
    return Cost(1, (HEADER_BYTES + size) * (2 if both else 1))
