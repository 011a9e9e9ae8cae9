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

from secure_infer.backends.ckks.arrange import BATCH, Placed, arrange
from secure_infer.backends.ckks.batch import place_elements
from secure_infer.backends.ckks.lower import Affine, Indices, Reals
from secure_infer.backends.ckks.normalize import Normalized, Unit
from secure_infer.backends.ckks.packing import (
    Costs,
    Diagonals,
    Layout,
    Split,
    Sums,
    Term,
    diagonalize,
    moduli,
)
from secure_infer.backends.ckks.parameters import Parameters
from secure_infer.graph import INPUT

OUTPUT = ""
"""Name of the step that makes the result; no node has it."""
_NONE = (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0))


@dataclass(frozen=True)
class Vector:
    """The ciphertexts of one value.

    Attributes:
        level: Primes after the first.
        scale: Exact scale of the plaintexts inside.
        period: Slots after which a block repeats.
        blocks: Number of ciphertexts.
        turn: Each copy begins so many elements later than the one before.
    """

    level: int
    scale: float
    period: int
    blocks: int
    turn: int = 0


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
        explicit: Positions of terms are slots, not elements of a period, and sums are given and not derived.
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
    explicit: bool

    @property
    def rotations(self) -> tuple[Indices, Indices]:
        """Baby and giant rotation of each diagonal."""
        rows_period = self.diagonals.period if self.explicit else self.affine.period
        return self.diagonals.rotations(moduli(self.terms, rows_period))


@dataclass(frozen=True, eq=False)
class Plan:
    """A program for an engine.

    Attributes:
        parameters: Ring and primes.
        input: What the client sends.
        columns: Which input each slot of it holds, shape `(period, blocks)`; -1 for none.
        steps: In order; the last one makes the result.
        input_plan: What the client sends: "raw", "im2col", "copies" or "batch".
    """

    parameters: Parameters
    input: Vector
    columns: Indices
    steps: tuple[Step, ...]
    input_plan: str

    @property
    def batch(self) -> bool:
        """Whether slots hold samples, and each ciphertext one element."""
        return self.input_plan == BATCH

    def rotations(self) -> set[int]:
        """All rotations, in `1 .. slots - 1`."""
        slots = self.parameters.slots
        amounts: set[int] = set()
        for step in self.steps:
            folds = {k for k, _ in step.diagonals.sums.chain()}
            amounts |= {int(k) % slots for part in (*step.rotations, folds) for k in part}
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


def make_plan(
    network: Normalized, parameters: Parameters, input_plan: str = "auto", measured: Mapping[str, float] | None = None
) -> tuple[Plan, Layout]:
    """Place all vectors and fix all levels and scales.

    Args:
        network: What to plan.
        parameters: Ring and primes.
        input_plan: What the client sends.
        measured: Seconds of operations on this machine, as `Costs` takes them; SEAL's usual relations if left out.

    Returns:
        The plan, and the layout of its result.

    Raises:
        ParametersError: The network allows no such input plan.
    """
    runs = levels(network)
    last = Unit(OUTPUT, network.output, (1, len(network.output.bias)), None)
    units = [*(unit for unit in network.units if unit.name in runs), last]
    costs = {unit.name: Costs(runs[unit.name] + 1, measured or {}) for unit in units}
    if input_plan == BATCH:
        columns, placed = place_elements(units, network.inputs)
    else:
        input_plan, columns, placed = arrange(units, network.inputs, network.image, costs, parameters.slots, input_plan)
    first = Vector(runs[INPUT], parameters.scale, *columns.shape)
    steps = [_step(unit, at, costs[unit.name], parameters) for unit, at in zip(units, placed, strict=True)]
    return Plan(parameters, first, columns, tuple(steps), input_plan), placed[-1].layout


def _step(unit: Unit, placed: Placed, costs: Costs, parameters: Parameters) -> Step:
    layout = placed.layout
    coefficients = None if unit.coefficients is None else layout.place(unit.coefficients.T)
    power = 1 if unit.name == OUTPUT else unit.degree
    bias = layout.place(unit.affine.bias)
    body = Body(placed.terms, placed.sums, layout.turn)
    return make_step(unit.name, body, bias, costs.primes - 1, power, coefficients, parameters, costs)


@dataclass(frozen=True)
class Body:
    """What a stretch multiplies.

    Attributes:
        terms: The matrices, between positions, or between slots if there are sums.
        sums: What is summed after the diagonals; None for what periods call for.
        turn: Each copy of the result begins so many elements later than the one before.
    """

    terms: tuple[Term, ...]
    sums: Sums | None = None
    turn: int = 0


def make_step(
    name: str,
    body: Body,
    bias: Reals,
    level: int,
    power: int,
    coefficients: Reals | None,
    parameters: Parameters,
    split: Split | Costs,
) -> Step:
    """A step from what does not follow from the rest: scales, later levels and diagonals do; costs decide the split."""
    blocks, period = bias.shape
    if power == 1:
        affine = Vector(0, parameters.output_scale, period, blocks, body.turn)
        result = affine
    else:
        affine = Vector(level - 1, parameters.affine_scale, period, blocks, body.turn)
        result = _activated(affine, power, coefficients is None, parameters)
    explicit = body.sums is not None
    rows_period = parameters.slots if explicit else period
    terms = body.terms or (Term(INPUT, period, *_NONE),)
    diagonals = diagonalize(terms, rows_period, blocks, split, body.sums)
    return Step(name, terms, bias, level, affine, power, coefficients, result, diagonals, explicit)


def _activated(affine: Vector, power: int, square: bool, parameters: Parameters) -> Vector:
    if square:
        scale = affine.scale**2 / parameters.primes[affine.level]
        return Vector(affine.level - 1, scale, affine.period, affine.blocks, affine.turn)
    spent = int(np.ceil(np.log2(power + 1)))
    return Vector(affine.level - spent, parameters.scale, affine.period, affine.blocks, affine.turn)
