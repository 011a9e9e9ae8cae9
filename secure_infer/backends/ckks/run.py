"""Runs a plan on an engine: encodes all plaintexts once, then evaluates any number of inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic

import numpy as np

from secure_infer.backends.ckks.engine import C, Engine, P
from secure_infer.backends.ckks.plan import Plan, Step, Vector
from secure_infer.backends.ckks.polynomial import Tree
from secure_infer.graph import INPUT


@dataclass(frozen=True)
class _Product(Generic[P]):
    """One diagonal: rotate block `block` of term `term` by `baby`, multiply by `plaintext`."""

    term: int
    block: int
    baby: int
    plaintext: P


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
        biases = (np.tile(row, self._slots // row.size) for row in step.bias)
        self._biases = [engine.encode(bias, step.affine.level, step.affine.scale) for bias in biases]

    def _encode(self) -> None:
        step = self._step
        babies, giants = step.rotations
        for (term, block, result, _), baby, giant, vector in zip(
            step.diagonals.keys, babies, giants, step.diagonals.vectors(), strict=True
        ):
            values = np.tile(np.roll(vector, giant), self._slots // len(vector))
            plaintext = self._engine.encode(values, step.level, self._scales[term])
            if plaintext is not None:
                group = self._giants[result].setdefault(int(giant) % self._slots, [])
                group.append(_Product(int(term), int(block), int(baby) % self._slots, plaintext))
        for group_of_block in self._giants:
            if not group_of_block:
                group_of_block[0] = [self._smallest()]

    def _smallest(self) -> _Product[P]:
        """A product that adds no more than encoding rounds off anyway: SEAL refuses sums that are exactly zero."""
        tiny = np.full(self._slots, 1 / self._scales[0])
        plaintext = self._engine.encode(tiny, self._step.level, self._scales[0])
        assert plaintext is not None
        return _Product(0, 0, 0, plaintext)

    def __call__(self, sources: Mapping[str, Sequence[C]]) -> list[C]:
        """The blocks of the stretch's result."""
        engine, step = self._engine, self._step
        rotated = {}
        for (term, block), babies in self._babies.items():
            source = engine.lower(sources[step.terms[term].source][block], step.level)
            rotated.update({(term, block, k): engine.rotate(source, k) if k else source for k in babies})
        return [self._block(rotated, giants, bias) for giants, bias in zip(self._giants, self._biases, strict=True)]

    def _block(
        self, rotated: Mapping[tuple[int, int, int], C], giants: Mapping[int, Sequence[_Product[P]]], bias: P | None
    ) -> C:
        engine, step = self._engine, self._step
        total: C | None = None
        for giant, group in giants.items():
            products = (engine.multiply_plain(rotated[p.term, p.block, p.baby], p.plaintext) for p in group)
            inner = next(products)
            for product in products:
                inner = engine.add(inner, product)
            inner = engine.rotate(inner, giant) if giant else inner
            total = inner if total is None else engine.add(total, inner)
        assert total is not None
        if step.power > 1:
            total = engine.rescale(total, step.affine.scale)
        for fold in step.diagonals.folds:
            total = engine.add(total, engine.rotate(total, fold))
        return total if bias is None else engine.add_plain(total, bias)


class Program(Generic[C, P]):
    """A plan with all its plaintexts encoded."""

    def __init__(self, engine: Engine[C, P], plan: Plan) -> None:
        self._engine, self._plan = engine, plan
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
            result = stretch(sources)
            if trees is not None:
                result = [tree(block) for tree, block in zip(trees, result, strict=True)]
            elif step.power == 2:
                result = [self._engine.rescale(self._engine.multiply(c, c), step.result.scale) for c in result]
            sources[step.name] = result
        return result
