"""Runs a plan on an engine: encodes all plaintexts once, then evaluates any number of inputs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, cast

import numpy as np

from secure_infer.backends.ckks.crew import Crew
from secure_infer.backends.ckks.engine import C, Engine, P, Summing
from secure_infer.backends.ckks.lower import Indices, Reals
from secure_infer.backends.ckks.packing import spread
from secure_infer.backends.ckks.plan import OUTPUT, Plan, Step, Vector
from secure_infer.backends.ckks.polynomial import Tree
from secure_infer.backends.ckks.sums import grouped
from secure_infer.graph import INPUT

_LEAST = 0.5
"""A plaintext that is nowhere larger rounds to zero."""
_LEAST_READ = 16
"""With fewer products for each set of sources that rows read, SEAL makes them as fast."""
WORTH_SHARING = 0.2
"""Seconds of a step below which processes take longer to start than they can save."""


@dataclass(frozen=True)
class _Product(Generic[P]):
    """One diagonal: rotate block `block` of term `term` by `baby`, multiply by `plaintext`, or by one number."""

    term: int
    block: int
    baby: int
    plaintext: P | float


@dataclass(frozen=True)
class Prepared(Generic[C]):
    """What the products of a stretch read.

    Attributes:
        rotated: Ciphertexts by term, block and rotation.
        frozen: All sources, frozen, in place of those; None if there are none.
    """

    rotated: Mapping[tuple[int, int, int], C]
    frozen: Sequence[C] | None


class Stretch(Generic[C, P]):
    """The affine part of a step, encoded."""

    def __init__(self, engine: Engine[C, P], plan: Plan, step: Step, sources: Mapping[str, Vector]) -> None:
        self._engine, self._step = engine, step
        self._slots = plan.parameters.slots
        self._prime = plan.parameters.primes[step.level] if step.power > 1 else 1
        self._scales = [self._prime * step.affine.scale / sources[term.source].scale for term in step.terms]
        # giants[block][giant]: the products whose sum is rotated by `giant` and added to block `block`.
        self._giants: list[dict[int, list[_Product[P]]]] = [{} for _ in range(step.affine.blocks)]
        self._encode()
        self._babies: dict[tuple[int, int], set[int]] = {}
        for product in (p for giants in self._giants for group in giants.values() for p in group):
            self._babies.setdefault((product.term, product.block), set()).add(product.baby)
        self._biases = [self._bias(row) for row in step.bias]
        self._rows = self._numbers(sources) if engine.capabilities.sums else None

    def _numbers(self, sources: Mapping[str, Vector]) -> list[tuple[Indices, Indices]] | None:
        """Each block's sources and whole weights, if all products are with numbers and enough read the same sources."""
        starts = np.cumsum([0, *(sources[term.source].blocks for term in self._step.terms)])
        rows, count = [], 0
        for giants in self._giants:
            products = [product for group in giants.values() for product in group]
            numbers = [(p.plaintext, p) for p in products if isinstance(p.plaintext, float)]
            if len(numbers) < len(products):
                return None
            order = sorted((int(starts[p.term]) + p.block, _nearest(w * self._scales[p.term])) for w, p in numbers)
            rows.append((np.array([at for at, _ in order]), np.array([weight for _, weight in order])))
            count += len(products)
        return rows if count >= _LEAST_READ * len(grouped(rows)) else None

    def _products_scale(self) -> float:
        """Scale before the rescale."""
        step = self._step
        return step.affine.scale * self._prime

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
        return _Product(0, 0, 0, 1 / self._scales[0])

    @property
    def parts(self) -> int:
        """Into how many parts it can be shared: blocks, or the giants of a single one."""
        return len(self._giants) if len(self._giants) > 1 else len(self._giants[0])

    def prepared(self, sources: Mapping[str, Sequence[C]]) -> Prepared[C]:
        """What the products read: sources rotated by babies, or frozen ones as they are."""
        engine, step = self._engine, self._step
        read = [sources[term.source] for term in step.terms]
        if self._rows is not None and all(_summing(engine).is_frozen(c) for source in read for c in source):
            return Prepared({}, [c for source in read for c in source])
        rotated = {}
        for (term, block), babies in self._babies.items():
            source = read[term][block]
            source = engine.lower(_summing(engine).thaw(source) if engine.capabilities.sums else source, step.level)
            steps = sorted(babies)
            vectors = engine.rotate_many(source, steps)
            rotated.update({(term, block, k): vector for k, vector in zip(steps, vectors, strict=True)})
        return Prepared(rotated, None)

    def blocks(self, prepared: Prepared[C], numbers: range) -> Iterator[C]:
        """The blocks of these numbers."""
        if prepared.frozen is None or self._rows is None:
            yield from (self.finished(self.part(prepared, n, list(self._giants[n])), n) for n in numbers)
            return
        groups = grouped([self._rows[n] for n in numbers])
        scale = self._products_scale()
        sums = _summing(self._engine).sums(prepared.frozen, groups, self._step.level, scale)
        yield from (self.finished(c, n) for c, n in zip(sums, numbers, strict=True))

    def part(self, prepared: Prepared[C], block: int, giants: Sequence[int]) -> C:
        """What some giants contribute to a block, not rescaled."""
        engine = self._engine
        total: C | None = None
        for giant in giants:
            products = (
                self._multiplied(prepared.rotated[p.term, p.block, p.baby], p) for p in self._giants[block][giant]
            )
            inner = next(products)
            for product in products:
                inner = engine.add(inner, product)
            inner = engine.rotate(inner, giant) if giant else inner
            total = inner if total is None else engine.add(total, inner)
        assert total is not None
        return total

    def shared(self, prepared: Prepared[C], crew: Crew[C]) -> C:
        """The one block, its giants shared among processes."""
        giants = list(self._giants[0])

        def work(numbers: range) -> Iterator[C]:
            yield from (self.part(prepared, 0, giants[number :: crew.processes]) for number in numbers)

        first, *others = crew.share(work, crew.processes)
        for other in others:
            first = self._engine.add(first, other)
        return self.finished(first, 0)

    def finished(self, total: C, block: int) -> C:
        """A block from the sum of its products: rescaled, summed, with its bias."""
        engine, step, bias = self._engine, self._step, self._biases[block]
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
        self._seconds: dict[tuple[str, bool], float] = {}  # the least that a step has taken alone, and shared
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
            prepared = stretch.prepared(sources)
            made = partial(self._made, step, stretch, trees, prepared)
            crew = self.crew if self.crew is not None and self._shares(self.crew, step, stretch) else None
            start = time.perf_counter()
            if crew is None:
                result = list(made(range(step.affine.blocks)))
            elif step.affine.blocks > 1:
                result = crew.share(made, step.affine.blocks)
            else:
                result = [self._activated(step, stretch.shared(prepared, crew), trees[0] if trees else None)]
            way, taken = (step.name, crew is not None), time.perf_counter() - start
            self._seconds[way] = min(taken, self._seconds.get(way, taken))
            sources[step.name] = result
        return result

    def _shares(self, crew: Crew[C], step: Step, stretch: Stretch[C, P]) -> bool:
        """Whether sharing was faster than working alone; each is tried once if the step is long enough for both."""
        if not 1 < crew.processes <= stretch.parts or step.level == 0:
            return False
        if self._freezes(step):
            return True  # a batch: long, and what it makes has to leave the engine anyway
        alone, shared = (self._seconds.get((step.name, way)) for way in (False, True))
        if alone is None or shared is None:
            return alone is not None and alone > WORTH_SHARING
        return shared < alone

    def _freezes(self, step: Step) -> bool:
        return self._plan.batch and step.name != OUTPUT and self._engine.capabilities.sums

    def _made(
        self,
        step: Step,
        stretch: Stretch[C, P],
        trees: Sequence[Tree[C, P]] | None,
        prepared: Prepared[C],
        numbers: range,
    ) -> Iterator[C]:
        """The blocks of these numbers; frozen if they are many and sums are to read them."""
        freezes = self._freezes(step)
        for block, c in zip(numbers, stretch.blocks(prepared, numbers), strict=True):
            made = self._activated(step, c, trees[block] if trees else None)
            yield _summing(self._engine).freeze(made) if freezes else made

    def _activated(self, step: Step, c: C, tree: Tree[C, P] | None) -> C:
        if tree is not None:
            return tree(c)
        return self._engine.rescale(self._engine.multiply(c, c), step.result.scale) if step.power == 2 else c


def _nearest(number: float) -> int:
    """The nearest integer, halves away from zero as in SEAL."""
    return int(np.copysign(np.floor(abs(number) + 0.5), number))


def _summing(engine: Engine[C, P]) -> Summing[C, P]:
    """The same engine, known to make sums at once."""
    return cast(Summing[C, P], engine)
