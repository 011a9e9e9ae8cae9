"""Brings every value near [-1, 1] by calibrated ranges, and makes a quadratic a pure square; all factors are folded.

A quadratic a u^2 + b u + c is a (u + b/2a)^2 + const: the shift goes into the affine map before, the gain and the
constant into the ones after, so that it costs one level. Where the vertex -b/2a lies far outside the range of u (a
channel that is almost or exactly linear), completing the square would cancel catastrophically; there the quadratic is
the difference of two squares, alpha (t + K)^2 + beta (t - K)^2 with alpha + beta = a and 2 K (alpha - beta) = b, which
is as well conditioned as the quadratic itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from secure_infer.backends.ckks.lower import Activation, Affine, Indices, Matrix, Network, Reals, horner
from secure_infer.graph import INPUT, TensorType

MARGIN = 1.25
"""Ranges are this much wider than calibration showed."""
_FAR_VERTEX = 8.0
_FLOOR = 0.1


@dataclass(frozen=True, eq=False)
class Unit:
    """One activation between normalized values: `w = affine(...)`, then `v = w**2` or `v = p(w)`.

    Attributes:
        name: Name of the graph's node.
        affine: Map from earlier units to `w`.
        image: Height and width of a channel, whose pixels are consecutive elements.
        coefficients: None for the square, else one polynomial in `w` for each element, `(elements, degree + 1)`.
    """

    name: str
    affine: Affine
    image: tuple[int, int]
    coefficients: Reals | None

    @property
    def size(self) -> int:
        """Number of elements."""
        return len(self.affine.bias)

    @property
    def group(self) -> int:
        """Consecutive elements that belong to one channel."""
        return self.image[0] * self.image[1]

    @property
    def degree(self) -> int:
        """Degree of the polynomial."""
        return 2 if self.coefficients is None else self.coefficients.shape[1] - 1

    @property
    def levels(self) -> int:
        """Levels that the polynomial spends: one for a square, `ceil(log2(degree + 1))` otherwise."""
        return 1 if self.coefficients is None else int(np.ceil(np.log2(self.degree + 1)))


@dataclass(frozen=True, eq=False)
class Normalized:
    """A network between values near [-1, 1].

    Attributes:
        inputs: Number of inputs.
        image: Height and width of one of their channels.
        middle: Subtracted from an input, in its integer units ...
        half: ... which is then divided by this.
        units: Activations in topological order.
        output: Map from units to outputs divided by `output_range`.
        output_range: In units of the output's scale.
    """

    inputs: int
    image: tuple[int, int]
    middle: float
    half: float
    units: tuple[Unit, ...]
    output: Affine
    output_range: float

    def scale_input(self, x: Reals) -> Reals:
        """Integers of shape `(n, ...)` as normalized values of shape `(n, inputs)`."""
        return np.asarray((x.reshape(len(x), -1) - self.middle) / self.half)

    def evaluate(self, x: Reals) -> Reals:
        """Outputs in units of the output's scale, shape `(n, outputs)`, for integers of shape `(n, ...)`."""
        sources = {INPUT: self.scale_input(x)}
        for unit in self.units:
            w = unit.affine.apply(sources)
            sources[unit.name] = w**2 if unit.coefficients is None else horner(unit.coefficients, w)
        return self.output.apply(sources) * self.output_range


@dataclass(frozen=True, eq=False)
class _Expansion:
    """How a true source is had from squares: `p[e] = constant[e] + sum over element[k] = e of gain[k] v[k]`.

    The first entries of `element` are 0 .. n-1; any further ones are second squares.
    """

    element: Indices
    gain: Reals
    constant: Reals


def normalize(network: Network, kind: TensorType, calibration: Reals) -> Normalized:
    """Fold ranges into the matrices.

    Args:
        network: The lowered graph.
        kind: Type of its input.
        calibration: Inputs in integer units, shape `(n, ...)`, that show the range of every value.
    """
    read, outputs = network.evaluate(calibration.reshape(len(calibration), -1))
    middle, half = (kind.low + kind.high) / 2, max((kind.high - kind.low) / 2, 0.5)
    n = network.inputs
    expansions = {INPUT: _Expansion(np.arange(n), np.full(n, half), np.full(n, middle))}
    units = []
    for activation in network.activations:
        unit, expansions[activation.name] = _unit(activation, read[activation.name], expansions)
        units.append(unit)
    output_range = MARGIN * float(np.abs(outputs).max()) or 1.0
    rows = np.arange(outputs.shape[1])
    output = _fold(network.output, expansions, rows, np.zeros(len(rows)), np.full(len(rows), output_range))
    return Normalized(n, picture(kind.shape), middle, half, tuple(units), output, output_range)


def picture(shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of a channel of a tensor, channels first."""
    return (int(np.prod(shape[1:-1])), shape[-1]) if len(shape) > 1 else (1, 1)


def _unit(activation: Activation, read: Reals, expansions: Mapping[str, _Expansion]) -> tuple[Unit, _Expansion]:
    low, high = _channel_ranges(read, activation.shape[0])
    image = picture(activation.shape)
    if activation.coefficients.shape[1] == 3:
        element, shift, width, expansion = _squares(activation.coefficients, low, high)
        affine = _fold(activation.affine, expansions, element, shift, width)
        return Unit(activation.name, affine, image, None), expansion
    middle, half = (low + high) / 2, MARGIN * (high - low) / 2
    table = _substitute(activation.coefficients, middle, half)
    peak = np.abs(horner(activation.coefficients, read)).max(axis=0)
    peak = MARGIN * np.maximum(peak, _FLOOR * peak.max()) + (peak.max() == 0)
    every = np.arange(len(middle))
    affine = _fold(activation.affine, expansions, every, -middle, half)
    return Unit(activation.name, affine, image, table / peak[:, None]), _Expansion(every, peak, np.zeros(len(middle)))


def _channel_ranges(read: Reals, channels: int) -> tuple[Reals, Reals]:
    """Least and greatest value of each element's channel, widened where calibration hardly moved it."""
    grouped = read.reshape(len(read), channels, -1)
    low, high = grouped.min(axis=(0, 2)), grouped.max(axis=(0, 2))
    half = (high - low) / 2
    least = _FLOOR * max(half.max(), 1e-3 * np.abs(read).max(), 1e-9)
    extra = np.maximum(least - half, 0)
    per_channel = read.shape[1] // channels
    return np.repeat(low - extra, per_channel), np.repeat(high + extra, per_channel)


def _squares(table: Reals, low: Reals, high: Reals) -> tuple[Indices, Reals, Reals, _Expansion]:
    """Squares that make each element's quadratic.

    Returns:
        For each square the element it reads, what is added and by what the sum is divided; and the expansion.
    """
    c, b, a = table[:, 0], table[:, 1], table[:, 2]
    middle, half = (low + high) / 2, MARGIN * (high - low) / 2
    near = (a != 0) & (np.abs(b / 2 + a * middle) <= np.abs(a) * _FAR_VERTEX * half)
    vertex = np.where(near, b, 0.0) / (2 * np.where(near, a, 1.0))
    slope = b + 2 * a * middle
    linear = slope / (2 * half)
    shift = np.where(near, vertex, half - middle)
    width = np.where(near, np.abs(vertex + middle) + half, 2 * half)
    gain = np.where(near, a, (a + linear) / 2) * width**2
    constant = np.where(near, c - a * vertex**2, c + b * middle + a * middle**2 - a * half**2)
    twice = np.flatnonzero(~near & ((a != 0) | (b != 0)))
    element = np.concatenate([np.arange(len(a)), twice])
    gain = np.concatenate([gain, ((a - linear) / 2 * width**2)[twice]])
    shift = np.concatenate([shift, (-half - middle)[twice]])
    return element, shift, np.concatenate([width, width[twice]]), _Expansion(element, gain, constant)


def _substitute(table: Reals, middle: Reals, half: Reals) -> Reals:
    """Coefficients in `w` of polynomials in `u = middle + half w`, by Horner's rule on polynomials."""
    result: Reals = np.zeros(table.shape)
    for coefficient in table.T[::-1]:
        shifted = np.roll(result, 1, axis=1)
        shifted[:, 0] = 0
        result = np.add(result * middle[:, None], shifted * half[:, None])
        result[:, 0] += coefficient
    return result


def _fold(affine: Affine, expansions: Mapping[str, _Expansion], element: Indices, shift: Reals, width: Reals) -> Affine:
    """`(affine[element] + shift) / width`, reading normalized sources instead of true ones."""
    bias = affine.bias.copy()
    terms = {}
    for name, matrix in affine.terms.items():
        expansion = expansions[name]
        bias += matrix.apply(expansion.constant[None])[0]
        columns = _expand_columns(matrix, expansion)
        folded = _expand_rows(columns, element, width)
        if len(folded.values):
            terms[name] = folded
    return Affine(terms, (bias[element] + shift) / width)


def _expand_columns(matrix: Matrix, expansion: _Expansion) -> Matrix:
    rows, cols, picked = _duplicates(matrix.rows, matrix.cols, expansion.element, matrix.shape[1])
    values = matrix.values[picked] * expansion.gain[cols]
    keep = values != 0
    return Matrix(rows[keep], cols[keep], values[keep], (matrix.shape[0], len(expansion.element)))


def _expand_rows(matrix: Matrix, element: Indices, width: Reals) -> Matrix:
    cols, rows, picked = _duplicates(matrix.cols, matrix.rows, element, matrix.shape[0])
    return Matrix(rows, cols, matrix.values[picked] / width[rows], (len(element), matrix.shape[1]))


def _duplicates(other: Indices, index: Indices, element: Indices, size: int) -> tuple[Indices, Indices, Indices]:
    """Entries once more for every index that `element` lists a second time, under that place's number."""
    second = np.full(size, -1)
    second[element[size:]] = np.arange(size, len(element))
    extra = np.flatnonzero(second[index] >= 0)
    picked = np.concatenate([np.arange(len(index)), extra])
    return other[picked], np.concatenate([index, second[index[extra]]]), picked
