"""Runs a plan on an engine: encodes all plaintexts once, then evaluates any number of inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic

import numpy as np

from secure_infer.backends.ckks.crew import Crew
from secure_infer.backends.ckks.engine import C, Engine, P
from secure_infer.backends.ckks.lower import Reals
from secure_infer.backends.ckks.packing import spread
from secure_infer.backends.ckks.plan import Plan, Step, Vector
from secure_infer.backends.ckks.polynomial import Tree
from secure_infer.graph import INPUT

_LEAST = 0.5
"""A plaintext that is nowhere larger rounds to zero."""


@dataclass(frozen=True)
class _Product(Generic[P]):
    """One diagonal: rotate block `block` of term `term` by `baby`, multiply by `plaintext`, or by one number."""

    term: int
    block: int
    baby: int
    plaintext: P | float


class Stretch(Generic[C, P]):
    """The affine part of a step, encoded."""

    def __init__(self, engine: Engine[C, P], plan: Plan, step: Step, sources: Mapping[str, Vector]) -> None:
        self._engine, self._step = engine, step
        self._slots = plan.parameters.slots
        prime = plan.parameters.primes[step.level] if step.power > 1 else 1
        self._scales = [prime * step.affine.scale / sources[term.source].scale for term in step.terms]
        # giants[block][giant]: the products whose sum is rotated by `giant` and added to block `block`.
        self._giants: list[dict[int, list[_Product[P]]]] = [{} for _ in range(step.affine.blocks)]
        self._encode()
        self._babies: dict[tuple[int, int], set[int]] = {}
        for product in (p for giants in self._giants for group in giants.values() for p in group):
            self._babies.setdefault((product.term, product.block), set()).add(product.baby)
        self._biases = [self._bias(row) for row in step.bias]

    def _bias(self, row: Reals) -> P | float | None:
        """The bias of a block; a number, which is encoded when needed, if it is the same in all slots."""
        affine = self._step.affine
        if len(row) == 1:
            return float(row[0]) if abs(row[0]) * affine.scale >= _LEAST else None
        return self._engine.encode(spread(row, self._slots, affine.turn), affine.level, affine.scale)

    def _encode(self) -> None:
        step = self._step
        babies, giants = step.rotations
        for (term, block, result, _), baby, giant, vector in zip(
            step.diagonals.keys, babies, giants, step.diagonals.vectors(), strict=True
        ):
            plaintext = self._plaintext(vector, int(giant), self._scales[term])
            if plaintext is not None:
                group = self._giants[result].setdefault(int(giant) % self._slots, [])
                group.append(_Product(int(term), int(block), int(baby) % self._slots, plaintext))
        for group_of_block in self._giants:
            if not group_of_block:
                group_of_block[0] = [self._smallest()]

    def _plaintext(self, vector: Reals, giant: int, scale: float) -> P | float | None:
        """A diagonal, encoded; a number is encoded when it is needed, as there are many of them."""
        if len(vector) == 1:
            return float(vector[0]) if abs(vector[0]) * scale >= _LEAST else None
        values = np.tile(np.roll(vector, giant), self._slots // len(vector))
        return self._engine.encode(values, self._step.level, scale)

    def _smallest(self) -> _Product[P]:
        """A product that adds no more than encoding rounds off anyway: SEAL refuses sums that are exactly zero."""
        tiny = np.full(1, 1 / self._scales[0])
        plaintext = self._engine.encode(tiny, self._step.level, self._scales[0])
        assert plaintext is not None
        return _Product(0, 0, 0, plaintext)

    def products(self) -> float:
        """Products for one block, on average."""
        return len(self._step.diagonals.keys) / len(self._giants)

    def __call__(self, sources: Mapping[str, Sequence[C]]) -> Callable[[int], C]:
        """A function that makes a block of the stretch's result."""
        engine, step = self._engine, self._step
        rotated = {}
        for (term, block), babies in self._babies.items():
            source = engine.lower(sources[step.terms[term].source][block], step.level)
            steps = sorted(babies)
            vectors = engine.rotate_many(source, steps)
            rotated.update({(term, block, k): vector for k, vector in zip(steps, vectors, strict=True)})
        return lambda block: self._block(rotated, self._giants[block], self._biases[block])

    def _block(
        self,
        rotated: Mapping[tuple[int, int, int], C],
        giants: Mapping[int, Sequence[_Product[P]]],
        bias: P | float | None,
    ) -> C:
        engine, step = self._engine, self._step
        total: C | None = None
        for giant, group in giants.items():
            products = (self._multiplied(rotated[p.term, p.block, p.baby], p) for p in group)
            inner = next(products)
            for product in products:
                inner = engine.add(inner, product)
            inner = engine.rotate(inner, giant) if giant else inner
            total = inner if total is None else engine.add(total, inner)
        assert total is not None
        if step.power > 1:
            total = engine.rescale(total, step.affine.scale)
        total = self._summed(total)
        if isinstance(bias, float):
            bias = engine.constant(bias, step.affine.level, step.affine.scale)
        return total if bias is None else engine.add_plain(total, bias)

    def _multiplied(self, c: C, product: _Product[P]) -> C:
        factor = product.plaintext
        if isinstance(factor, float):
            factor = self._engine.constant(factor, self._step.level, self._scales[product.term])
        return self._engine.multiply_plain(c, factor)

    def _summed(self, total: C) -> C:
        """The sums that the diagonals ask for."""
        engine, first = self._engine, total
        for k, (steps, doubles) in enumerate(self._step.diagonals.sums.chain()):
            rotated = engine.rotate(total if doubles else first, steps)
            # The first sum must leave what came in as it is, if that is read again.
            total = engine.add(rotated, total) if not k else engine.add(total, rotated)
        return total


class Program(Generic[C, P]):
    """A plan with all its plaintexts encoded.

    Args:
        engine: Does the arithmetic.
        plan: What to do.

    Attributes:
        crew: Shares the blocks of a step among processes; None for this one alone.
    """

    def __init__(self, engine: Engine[C, P], plan: Plan) -> None:
        self._engine, self._plan = engine, plan
        self.crew: Crew[C] | None = None
        vectors = {INPUT: plan.input}
        self._steps = []
        for step in plan.steps:
            stretch = Stretch(engine, plan, step, vectors)
            trees = (
                None
                if step.coefficients is None
                else [Tree(engine, plan.parameters, step, block) for block in range(step.affine.blocks)]
            )
            self._steps.append((step, stretch, trees))
            vectors[step.name] = step.result

    def run(self, blocks: Sequence[C]) -> list[C]:
        """The result's ciphertexts for the input's."""
        sources: dict[str, Sequence[C]] = {INPUT: blocks}
        result: list[C] = []
        for step, stretch, trees in self._steps:
            affine = stretch(sources)

            def made(block: int, step: Step = step, affine: Any = affine, trees: Any = trees) -> C:
                return self._activated(step, affine(block), trees and trees[block])

            count = step.affine.blocks
            if self.crew is not None and count > 1 and self.crew.pays(stretch.products(), step.level):
                result = self.crew.share(made, count)
            else:
                result = [made(block) for block in range(count)]
            sources[step.name] = result
        return result

    def _activated(self, step: Step, c: C, tree: Tree[C, P] | None) -> C:
        if tree is not None:
            return tree(c)
        return self._engine.rescale(self._engine.multiply(c, c), step.result.scale) if step.power == 2 else c
