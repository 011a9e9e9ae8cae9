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
        rounds: Messages, or simultaneous exchanges, between the parties.
        bytes: Sent by all parties to one another, length prefixes included, TLS framing not.
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
    counting, bits = _Counting(plan.parties), plan.bits
    total = counting.message(HANDSHAKE_BYTES, among_all=True)
    for step in plan.steps:
        total += counting.step(step, batch, plan.shapes[step.inputs[0]], bits[step.name])
    return total


@dataclass(frozen=True)
class _Counting:
    """What messages and operations cost among so many parties."""

    parties: int

    def message(self, size: int, among_all: bool, dealt: int = 0) -> Cost:
        """One round: a message from each party to each other one, or from each to party 0."""
        others = self.parties - 1
        return Cost(1, (HEADER_BYTES + size) * others * (self.parties if among_all else 1), dealt)

    def step(self, step: Step, batch: int, source: Shape, bits: int) -> Cost:
        size, given = batch * math.prod(step.shape), batch * math.prod(source)
        match step.kind:
            case "Linear" | "Conv2d":
                return self.product(given, size, size * math.prod(step.parameters["weight"][1:]), bits)
            case "Sign":
                return self.comparison(size, step.parameters["width"])
            case "QuantRelu":
                return self.comparison(size * step.parameters["levels"], step.parameters["width"])
            case "Lookup":
                terms = step.parameters["weight"][0]
                compared = self.comparison(size * terms, step.parameters["width"])
                return compared + self.product(size * terms, size, size * terms, bits) if terms else Cost()
            case "Max":
                return self.maximum(size, math.prod(step.parameters["kernel"]), step.parameters["width"])
            case "Polynomial":
                return self.polynomial(size, step.parameters["weight"][0], step.parameters["shift"], bits)
            case _:
                return Cost()

    def product(self, given: int, size: int, multiplications: int, bits: int) -> Cost:
        message = self.message(bits // 8 * given, among_all=False, dealt=HEADER_BYTES + 8 * size)
        return message + Cost(multiplications=multiplications)

    def conjunction(self, words: int, left: int, right: int) -> Cost:
        dealt = HEADER_BYTES + 8 * words * max(left, right)
        return self.message(8 * words * (left + right), among_all=True, dealt=dealt)

    def pairs(self, words: int) -> Cost:
        return self.message(8 * words, among_all=True, dealt=HEADER_BYTES + 8 * words)

    def carries(self, words: int, levels: int) -> Cost:
        total = self.pairs(words) + (self.conjunction(words, 1, 1) if self.parties > 2 else Cost())
        for level in range(levels):
            total += self.conjunction(words, 1, 1 if level == levels - 1 else 2)
        return total

    def to_arithmetic(self, bits: int) -> Cost:
        return self.message((bits + 7) // 8, among_all=True, dealt=HEADER_BYTES + 8 * bits)

    def comparison(self, count: int, bits: int) -> Cost:
        if not count:
            return Cost()
        words, blocks = math.ceil(count / 64), bits - 1
        total = self.pairs(words * blocks)
        if self.parties > 2:
            blocks -= 1
            total += self.conjunction(words * blocks, 1, 1)
        while blocks > 1:
            total += self.conjunction(words * (blocks // 2), 1, 1 if blocks == 2 else 2)
            blocks -= blocks // 2
        return total + self.to_arithmetic(count) + Cost(comparisons=count)

    def multiplication(self, left: int, right: int) -> Cost:
        dealt = HEADER_BYTES + 8 * max(left, right)
        message = self.message(8 * (left + right), among_all=True, dealt=dealt)
        return message + Cost(multiplications=max(left, right))

    def maximum(self, size: int, window: int, bits: int) -> Cost:
        total = Cost()
        while window > 1:
            half = window // 2
            total += self.comparison(size * half, bits) + self.multiplication(size * half, size * half)
            window -= half
        return total

    def polynomial(self, size: int, degree: int, shift: int, bits: int) -> Cost:
        total, powers = Cost(), 1
        while powers < degree:
            more = min(powers, degree - powers)
            total += self.multiplication(size * more, size)
            powers += more
        if degree:
            total += self.product(size * degree, size, size * degree, 64 if shift else bits)
        if not shift:
            return total
        return total + self.carries(size, 6) + self.to_arithmetic(2 * (self.parties - 1) * size)
