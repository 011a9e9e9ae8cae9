"""One approximate look-up for a whole step function: it rounds within itself, and uses the torus to the full.

A value t becomes a = factor * t - shift, and the entry floor(a / 2**removed) of a table of 2**keep entries is its
result. Thresholds therefore move to the nearest multiple of 2**removed. The shift of each element is the one that moves
them least; thresholds a power of two apart do not move at all.

A message of b bits has a padding bit above, beyond which a look-up gives the negated table (f(a + 2**b) = -f(a)). A
step function held as -levels ... levels saturates at either side, and the negation of one side is the other. So a value
may reach into the padding, and the sums of a layer fill twice the message: half the noise at the same price.
"""

from __future__ import annotations

import math

import numpy as np

from secure_infer.backends.tfhe.lookup import LookUp, distinct
from secure_infer.backends.tfhe.ranges import Range
from secure_infer.graph.types import Integers

EXTRA_BITS = 3
"""Bits by which a value is scaled up, so that each channel can fill the message whatever its range."""
MAX_BITS = 16
_CANDIDATES = 64


def rounded(thresholds: Integers, reach: Range, keep: int, wraps: bool, scale: int = 1) -> LookUp | None:
    """The look-up of `#{j : t >= thresholds[j]}`, thresholds moved where rounding asks for it.

    Args:
        thresholds: Shape `(levels, *shape)`, ascending.
        reach: Range of t.
        keep: Bits of the table.
        scale: What t is multiplied by already.
        wraps: Whether values may reach into the padding bit; the result is then `2 * # - levels`.

    Returns:
        The plan, or None if the values are too wide, or the table too small.
    """
    levels, shape = len(thresholds), reach.low.shape
    limits = np.clip(np.broadcast_to(thresholds, (levels, *shape)), reach.low, reach.high + 1)
    either = np.maximum(reach.high + 1 - limits[0], limits[-1] - reach.low)
    need = _by_channel(either if wraps else reach.high + 1 - reach.low)
    bits = max(keep, int(need.max() - 1).bit_length() + EXTRA_BITS)
    step = 1 << (bits - keep)
    # Room for noise and for thresholds that move outwards; without wrapping, for the half step that rounding subtracts.
    guard = step // 4 + (step // 2 if levels > 1 else 0) if wraps else 2 * step
    factor = _aligned(((1 << bits) - guard) // (need * scale), scale, step, thresholds)
    if bits > MAX_BITS or factor.min() < 1:
        return None
    unit = factor * scale
    targets = unit * limits - unit // 2  # in the middle between the last t below and the first t above
    phase = _phase(targets, step)
    edges = targets - _distance(targets - phase, step)
    middle = edges[0] + edges[-1] if wraps else unit * (reach.low + reach.high)
    shift = phase + (middle // 2 - phase + step // 2) // step * step
    table = _count(edges - shift, keep, step)
    return LookUp(bits, bits - keep, True, shift, *distinct(2 * table - levels if wraps else table), factor)


def _count(edges: Integers, keep: int, step: int) -> Integers:
    """For each block of `step` values the number of edges at or below its start, shape `(2**keep, *shape)`."""
    half = 1 << (keep - 1)
    start = (np.arange(-half, half) * step).reshape((-1,) + (1,) * (edges.ndim - 1))
    found: Integers = np.zeros((2 * half, *edges.shape[1:]), dtype=np.int64)
    for edge in edges:
        found += start >= edge
    return found


def _aligned(factor: Integers, scale: int, step: int, thresholds: Integers) -> Integers:
    """Factors that bring thresholds a power of two apart to whole steps, where there is room for that."""
    apart = int(np.gcd.reduce(thresholds - thresholds[:1], axis=None)) * scale
    multiple = step // math.gcd(apart, step)
    return np.asarray(factor // multiple * multiple if factor.min() >= multiple else factor)


def _by_channel(need: Integers) -> Integers:
    axes = tuple(range(1, need.ndim))
    return np.asarray(np.maximum(1, need.max(axis=axes, keepdims=True)))


def _distance(value: Integers, step: int) -> Integers:
    """Signed distance from the nearest multiple of `step`."""
    half = step // 2
    return (value + half) % step - half


def _phase(targets: Integers, step: int) -> Integers:
    """For each element the residue modulo `step` whose multiples lie nearest to all targets."""
    columns, index = np.unique(targets.reshape(len(targets), -1), axis=1, return_inverse=True)
    candidates = np.arange(0, step, max(1, step // _CANDIDATES))[:, None, None]
    candidates = (candidates + columns[:1]) % step  # one threshold alone, or aligned ones, need not move
    lost = np.square(_distance(columns - candidates, step)).sum(axis=1)
    best = candidates[:, 0][np.argmin(lost, axis=0), np.arange(columns.shape[1])]
    return np.asarray(best[index].reshape(targets.shape[1:]))
