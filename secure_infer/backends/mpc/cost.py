"""What a run of a plan costs in messages, bytes and operations, counted without running it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from secure_infer.backends.mpc.plan import Plan, Step
from secure_infer.backends.parties.messages import HANDSHAKE_BYTES, HEADER_BYTES
from secure_infer.graph.types import Shape


@dataclass(frozen=True)
class Cost:
    """What a run costs, counted from the plan; a run reports the same figures from its channels.

    Attributes:
        rounds: Messages, or simultaneous exchanges, between the two parties.
        bytes: Sent by party 0 and party 1 to each other, length prefixes included, TLS framing not.
        dealer_bytes: Sent by the dealer to party 0.
        comparisons: Secret comparisons.
        multiplications: Multiply-accumulates with secret weights, and products of two secrets.
    """

    rounds: int = 0
    bytes: int = 0
    dealer_bytes: int = 0
    comparisons: int = 0
    multiplications: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))


def cost(plan: Plan, batch: int = 1) -> Cost:
    """What one run on `batch` samples costs; a run begins with one exchange that names the query."""
    total = _message(HANDSHAKE_BYTES, both=True)
    bits = plan.bits
    for step in plan.steps:
        total += _step_cost(step, batch, plan.shapes[step.inputs[0]], bits[step.name])
    return total


def _message(size: int, both: bool, dealt: int = 0) -> Cost:
    return Cost(1, (HEADER_BYTES + size) * (2 if both else 1), dealt)


def _step_cost(step: Step, batch: int, source: Shape, bits: int) -> Cost:
    size, given = batch * math.prod(step.shape), batch * math.prod(source)
    match step.kind:
        case "Linear" | "Conv2d":
            return _product(given, size, size * math.prod(step.parameters["weight"][1:]), bits)
        case "Sign":
            return _comparison(size, step.parameters["width"])
        case "QuantRelu":
            return _comparison(size * step.parameters["levels"], step.parameters["width"])
        case "Lookup":
            terms = step.parameters["weight"][0]
            compared = _comparison(size * terms, step.parameters["width"])
            return compared + _product(size * terms, size, size * terms, bits) if terms else Cost()
        case "Max":
            return _maximum(size, math.prod(step.parameters["kernel"]), step.parameters["width"])
        case "Polynomial":
            return _polynomial(size, step.parameters["weight"][0], step.parameters["shift"], bits)
        case _:
            return Cost()


def _product(given: int, size: int, multiplications: int, bits: int) -> Cost:
    message = _message(bits // 8 * given, both=False, dealt=HEADER_BYTES + 8 * size)
    return message + Cost(multiplications=multiplications)


def _and(words: int, left: int, right: int) -> Cost:
    return _message(8 * words * (left + right), both=True, dealt=HEADER_BYTES + 8 * words * max(left, right))


def _conjunction(words: int) -> Cost:
    return _message(8 * words, both=True, dealt=HEADER_BYTES + 8 * words)


def _carries(words: int, levels: int) -> Cost:
    total = _conjunction(words)
    for level in range(levels):
        total += _and(words, 1, 1 if level == levels - 1 else 2)
    return total


def _to_arithmetic(bits: int) -> Cost:
    return _message((bits + 7) // 8, both=True, dealt=HEADER_BYTES + 8 * bits)


def _comparison(count: int, bits: int) -> Cost:
    if not count:
        return Cost()
    words, blocks = math.ceil(count / 64), bits - 1
    total = _conjunction(words * blocks)
    while blocks > 1:
        total += _and(words * (blocks // 2), 1, 1 if blocks == 2 else 2)
        blocks -= blocks // 2
    return total + _to_arithmetic(count) + Cost(comparisons=count)


def _multiplication(left: int, right: int) -> Cost:
    dealt = HEADER_BYTES + 8 * max(left, right)
    return _message(8 * (left + right), both=True, dealt=dealt) + Cost(multiplications=max(left, right))


def _maximum(size: int, window: int, bits: int) -> Cost:
    total = Cost()
    while window > 1:
        half = window // 2
        total += _comparison(size * half, bits) + _multiplication(size * half, size * half)
        window -= half
    return total


def _polynomial(size: int, degree: int, shift: int, bits: int) -> Cost:
    total, powers = Cost(), 1
    while powers < degree:
        more = min(powers, degree - powers)
        total += _multiplication(size * more, size)
        powers += more
    if degree:
        total += _product(size * degree, size, size * degree, 64 if shift else bits)
    return total + _carries(size, 6) + _to_arithmetic(2 * size) if shift else total
