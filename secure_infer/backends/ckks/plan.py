"""Levels, scales and layouts of every value: all that is decided before anything is encrypted.

Levels are assigned from the output backwards, as low as possible, since low levels are cheap; a source that several
stretches read is dropped to each one's level. Every scale is an exact number known here: the plaintexts of a stretch
that reads a source of scale `s` and runs at level `l` have scale `q_l * target / s`, so that after the one rescale all
terms meet at `target` and nothing drifts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from secure_infer.backends.ckks.lower import Affine, Indices, Matrix, Reals
from secure_infer.backends.ckks.normalize import Normalized, Unit
from secure_infer.backends.ckks.packing import (
    Costs,
    Diagonals,
    Layout,
    Split,
    Term,
    choose_layout,
    diagonalize,
    moduli,
    packed,
    positioned,
)
from secure_infer.backends.ckks.parameters import Parameters
from secure_infer.graph import INPUT

OUTPUT = ""
"""Name of the step that makes the result; no node has it."""


@dataclass(frozen=True)
class Vector:
    """The ciphertexts of one value.

    Attributes:
        level: Primes after the first.
        scale: Exact scale of the plaintexts inside.
        period: Slots after which a block repeats.
        blocks: Number of ciphertexts.
    """

    level: int
    scale: float
    period: int
    blocks: int


@dataclass(frozen=True, eq=False)
class Step:
    """A stretch of affine layers and the polynomial after it.

    Attributes:
        name: Name of the value it makes.
        terms: The matrices, between positions.
        bias: Added after the matrices, shape `(blocks, period)`.
        level: Level at which the matrices are applied.
        affine: What the stretch makes.
        power: Degree of the polynomial that follows; 2 is a plain square, 1 means none.
        coefficients: Of a polynomial that is not a plain square, shape `(degree + 1, blocks, period)`; else None.
        result: What the polynomial makes.
        diagonals: The matrices as diagonals.
    """

    name: str
    terms: tuple[Term, ...]
    bias: Reals
    level: int
    affine: Vector
    power: int
    coefficients: Reals | None
    result: Vector
    diagonals: Diagonals

    @property
    def rotations(self) -> tuple[Indices, Indices]:
        """Baby and giant rotation of each diagonal."""
        return self.diagonals.rotations(moduli(self.terms, self.affine.period))


@dataclass(frozen=True, eq=False)
class Plan:
    """A program for an engine.

    Attributes:
        parameters: Ring and primes.
        input: What the client sends.
        steps: In order; the last one makes the result.
    """

    parameters: Parameters
    input: Vector
    steps: tuple[Step, ...]

    def rotations(self) -> set[int]:
        """All rotations, in `1 .. slots - 1`."""
        slots = self.parameters.slots
        amounts: set[int] = set()
        for step in self.steps:
            amounts |= {int(k) % slots for part in step.rotations for k in part} | set(step.diagonals.folds)
        return amounts - {0}

    @property
    def multiplies(self) -> bool:
        """Whether ciphertexts are multiplied, which takes relinearization keys."""
        return any(step.power > 1 for step in self.steps)


def levels(network: Normalized) -> dict[str, int]:
    """Level at which every stretch runs and, under `INPUT`, that of a fresh ciphertext; unused units are absent."""
    runs = {OUTPUT: 0}
    needed: dict[str, int] = {INPUT: 0}
    _need(needed, network.output, 0)
    for unit in network.units[::-1]:
        if unit.name in needed:
            runs[unit.name] = needed[unit.name] + unit.levels + 1
            _need(needed, unit.affine, runs[unit.name])
    return {**runs, INPUT: needed[INPUT]}


def _need(needed: dict[str, int], affine: Affine, level: int) -> None:
    for source in affine.terms or (INPUT,):
        needed[source] = max(needed.get(source, 0), level)


def make_plan(network: Normalized, parameters: Parameters) -> tuple[Plan, Layout]:
    """Place all vectors and fix all levels and scales.

    Returns:
        The plan, and the layout of its result.
    """
    runs = levels(network)
    layouts = {INPUT: packed(network.inputs, parameters.slots)}
    first = Vector(runs[INPUT], parameters.scale, layouts[INPUT].period, layouts[INPUT].blocks)
    vectors = {INPUT: first}
    steps = []
    last = Unit(OUTPUT, network.output, len(network.output.bias), None)
    for unit in [*(unit for unit in network.units if unit.name in runs), last]:
        layouts[unit.name], step = _step(unit, runs[unit.name], layouts, parameters)
        vectors[unit.name] = step.result
        steps.append(step)
    return Plan(parameters, first, tuple(steps)), layouts[OUTPUT]


def _step(unit: Unit, level: int, layouts: Mapping[str, Layout], parameters: Parameters) -> tuple[Layout, Step]:
    costs = Costs(level + 1)
    matrices = unit.affine.terms or {INPUT: _nothing(unit.size, len(layouts[INPUT].positions))}
    layout = choose_layout(matrices, layouts, unit.size, unit.group, parameters.slots, costs)
    terms = tuple(positioned(matrices, layouts, layout))
    coefficients = None if unit.coefficients is None else layout.place(unit.coefficients.T)
    power = 1 if unit.name == OUTPUT else unit.degree
    return layout, make_step(unit.name, terms, layout.place(unit.affine.bias), level, power, coefficients, parameters)


def make_step(
    name: str,
    terms: tuple[Term, ...],
    bias: Reals,
    level: int,
    power: int,
    coefficients: Reals | None,
    parameters: Parameters,
    split: Split | None = None,
) -> Step:
    """A step from what does not follow from the rest: scales, later levels and diagonals do."""
    blocks, period = bias.shape
    if power == 1:
        affine = Vector(0, parameters.output_scale, period, blocks)
        result = affine
    else:
        affine = Vector(level - 1, parameters.affine_scale, period, blocks)
        result = _activated(affine, power, coefficients is None, parameters)
    diagonals = diagonalize(terms, period, blocks, split, Costs(level + 1))
    return Step(name, terms, bias, level, affine, power, coefficients, result, diagonals)


def _activated(affine: Vector, power: int, square: bool, parameters: Parameters) -> Vector:
    if square:
        scale = affine.scale**2 / parameters.primes[affine.level]
        return Vector(affine.level - 1, scale, affine.period, affine.blocks)
    spent = int(np.ceil(np.log2(power + 1)))
    return Vector(affine.level - spent, parameters.scale, affine.period, affine.blocks)


def _nothing(rows: int, columns: int) -> Matrix:
    empty = np.zeros(0, dtype=np.int64)
    return Matrix(empty, empty, np.zeros(0), (rows, columns))
