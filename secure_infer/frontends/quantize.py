"""Reals to integers: weights, the grid of an activation, and the exact thresholds of a step function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from secure_infer.graph.types import Integers

Reals: TypeAlias = npt.NDArray[np.float64]
RealFunction: TypeAlias = Callable[[Reals], Reals]

_SAMPLES = 100_000
_COARSE = 8
_WIDEST = 1200


@dataclass(frozen=True)
class Grid:
    """The reals `scale * k` for integers k in [low, high]."""

    scale: float
    low: int
    high: int

    def index(self, values: Reals) -> Reals:
        """The nearest k, clipped; still float64."""
        return np.asarray(np.clip(np.rint(values / self.scale), self.low, self.high))


def input_grid(values: Reals, bits: int) -> Grid:
    """A grid that reaches from the least to the greatest value; unsigned if none is negative."""
    peak = float(np.abs(values).max(initial=0.0)) or 1.0
    if values.min(initial=0.0) >= 0:
        high = (1 << bits) - 1
        return Grid(peak / high, 0, high)
    high = max(1, (1 << (bits - 1)) - 1)
    return Grid(peak / high, -high, high)


def activation_grid(values: Reals, bits: int) -> Grid:
    """The grid of `2**bits` points through zero with the least mean squared error on the values."""
    flat = values.reshape(-1)
    flat = flat[:: max(1, flat.size // _SAMPLES)]
    least, most = min(float(flat.min(initial=0.0)), 0.0), max(float(flat.max(initial=0.0)), 0.0)
    if most == least:
        return Grid(1.0, 0, (1 << bits) - 1)
    best, grid = np.inf, Grid(1.0, 0, 1)
    for share in np.linspace(1.0, 0.25, 46):
        scale = share * (most - least) / ((1 << bits) - 1)
        low = int(np.rint(share * least / scale))
        candidate = Grid(scale, low, low + (1 << bits) - 1)
        error = float(np.square(candidate.index(flat) * scale - flat).mean())
        if error < best:
            best, grid = error, candidate
    return grid


def quantize_weight(weight: Reals, inputs: Reals | None, scale: Reals | None, bits: int) -> tuple[Integers, Reals]:
    """Symmetric integers with a scale for each output.

    Args:
        weight: Shape `(out, in)`.
        inputs: Typical inputs, shape `(n, in)`; with them, the error of the outputs is kept small, not that of the
            weights alone.
        scale: Scales to use, shape `(out,)`; None for those with the least squared error.
        bits: Bits of a weight, sign included; 1 means +1 and -1.

    Returns:
        Integers of the same shape, and scales of shape `(out,)`.
    """
    if bits == 1:
        scale = np.abs(weight).mean(axis=1)
        return np.where(weight >= 0, 1, -1).astype(np.int64), np.where(scale > 0, scale, 1.0)
    top = (1 << (bits - 1)) - 1
    if scale is None:
        scale = _best_scale(weight, bits)
    if inputs is None or bits > _COARSE or weight.shape[1] > _WIDEST:
        return _rounded(weight, scale, top), scale
    return _compensated(weight, scale, top, inputs), scale


def _best_scale(weight: Reals, bits: int) -> Reals:
    top = (1 << (bits - 1)) - 1
    peak = np.abs(weight).max(axis=1, initial=0.0)
    peak = np.where(peak > 0, peak, top)
    shares = np.linspace(1.0, 0.35, 27) if bits <= _COARSE else np.ones(1)
    scales = shares[:, None] * peak / top
    errors = [np.square(_rounded(weight, s, top) * s[:, None] - weight).sum(axis=1) for s in scales]
    return np.asarray(scales[np.argmin(errors, axis=0), np.arange(len(weight))])


def _rounded(weight: Reals, scale: Reals, top: int) -> Integers:
    return np.asarray(np.clip(np.rint(weight / scale[:, None]), -top, top), dtype=np.int64)


def _compensated(weight: Reals, scale: Reals, top: int, inputs: Reals) -> Integers:
    """Round column by column, each error made up for by the columns to come (GPTQ, Frantar et al., ICLR 2023)."""
    centered = inputs - inputs.mean(axis=0)
    moment = centered.T @ centered / len(inputs)
    damping = 0.01 * float(np.trace(moment)) / len(moment) + 1e-12
    factor = np.linalg.cholesky(np.linalg.inv(moment + damping * np.eye(len(moment)))).T
    rest, result = weight.copy(), np.zeros(weight.shape, dtype=np.int64)
    for column in range(weight.shape[1]):
        result[:, column] = _rounded(rest[:, column, None], scale, top)[:, 0]
        error = (rest[:, column] - result[:, column] * scale) / factor[column, column]
        rest[:, column + 1 :] -= np.outer(error, factor[column, column + 1 :])
    return result


def thresholds(level: RealFunction, grid: Grid, scale: Reals, offset: Reals, low: int, high: int) -> Integers:
    """For each channel c and level k: the least integer x in [low, high] with `level(scale_c x + offset_c) >= k`.

    Found by bisection on the function itself, so it is exact wherever `level` is monotone.

    Args:
        level: From reals of shape `(channels, k)` to levels of the same shape.
        grid: The levels `grid.low + 1 ... grid.high` are looked for.
        scale: Real value of one unit of x, zero or more, shape `(channels,)`.
        offset: Real value of x = 0, shape `(channels,)`.
        low: Least x.
        high: Greatest x.

    Returns:
        Integers of shape `(channels, grid.high - grid.low)`; `high + 1` for a level that is never reached.
    """
    targets = np.arange(grid.low + 1, grid.high + 1, dtype=np.float64)
    left = np.full((len(scale), len(targets)), low, dtype=np.int64)
    right = np.full_like(left, high + 1)
    while (left < right).any():
        middle = (left + right) >> 1
        reached = level(scale[:, None] * middle + offset[:, None]) >= targets
        active = left < right
        right = np.where(active & reached, middle, right)
        left = np.where(active & ~reached, middle + 1, left)
    return left
