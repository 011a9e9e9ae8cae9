"""Look-ups planned: which integers enter a programmable bootstrap, how many of their bits, and which tables it applies.

A value t is shifted to a = t - shift, which fits in `bits` signed bits. If all thresholds are congruent modulo
2**removed, the low `removed` bits of a do not matter: they are cleared first, by one bootstrap of one bit each (exact),
or by rounding within the look-up itself (approximate). A look-up of b bits costs about twice one of b - 1 bits, so
clearing bits pays from five bits on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from secure_infer.backends.tfhe.ranges import Range
from secure_infer.graph.types import Integers

MAX_BITS = 16
"""Widest message of concrete-python."""
MAX_TABLE_BITS = 9
"""Widest table worth compiling: one more bit doubles time and keys, and at nine bits a look-up takes seconds."""
EXACT_KEEP = 4
"""Bits of a look-up after exact clearing: measured to be the cheapest."""
_FAR = 1 << 61
_WIDEST_HIGH = 7
_COST = (0, 29, 41, 69, 98, 227, 526, 1_201, 3_938, 8_867, 19_749)
"""Cost of one look-up by bits: millions of operations of concrete's cost model, at a failure probability of 2**-40."""


@dataclass(frozen=True, eq=False)
class LookUp:
    """One univariate function of every element of a tensor.

    Attributes:
        bits: Signed bits of `t - shift`.
        removed: Low bits that are cleared first.
        approximate: Whether they are rounded away (values near a threshold may flip) or cleared exactly.
        shift: Integer subtracted from each element; shape of the tensor.
        tables: Distinct tables, shape `(tables, 2**(bits - removed))`; entry h belongs to the values a with
            `(a >> removed) + 2**(bits - removed - 1) == h`.
        index: Table of each element; shape of the tensor.
        factor: What t is multiplied by before the shift, by channel; None for one. With a factor, the table holds
            `2 * count - levels` and values may reach into the padding bit; see `rounded`.
    """

    bits: int
    removed: int
    approximate: bool
    shift: Integers
    tables: Integers
    index: Integers
    factor: Integers | None = None

    @property
    def cost(self) -> int:
        """Rough cost of one element: millions of operations of concrete's cost model."""
        return _cost(self.bits - self.removed) + (0 if self.approximate else self.removed * _cost(1))

    @property
    def top(self) -> int:
        """Greatest output."""
        return int(self.tables.max())

    @property
    def low(self) -> int:
        """Least output."""
        return int(self.tables.min())


@dataclass(frozen=True, eq=False)
class Split:
    """A step function of a wide value, from its high and its low bits: `base(high) + (low >= threshold(high))`.

    Exact if no block of 2**removed values holds two thresholds. All look-ups are narrow.

    Attributes:
        base: Look-up of the number of thresholds below the block of values, on the high bits.
        within: Look-up of the one threshold within the block, minus the block's start; 2**removed if there is none.
    """

    base: LookUp
    within: LookUp

    @property
    def bits(self) -> int:
        """Signed bits of the shifted value."""
        return self.base.bits

    @property
    def cost(self) -> int:
        """As in `LookUp`."""
        return self.base.cost + _cost(self.base.bits - self.base.removed) + _cost(self.base.removed + 1)

    @property
    def top(self) -> int:
        """Greatest output."""
        return self.base.top + 1

    @property
    def low(self) -> int:
        """Least output."""
        return self.base.low


@dataclass(frozen=True, eq=False)
class Ladder:
    """A step function of a wide value as the sum of one look-up for each threshold; each clears all low bits."""

    rungs: tuple[LookUp, ...]

    @property
    def bits(self) -> int:
        """Signed bits of the widest shifted value."""
        return max(rung.bits for rung in self.rungs)

    @property
    def cost(self) -> int:
        """As in `LookUp`."""
        return sum(rung.cost for rung in self.rungs)

    @property
    def top(self) -> int:
        """Greatest output."""
        return len(self.rungs)

    @property
    def low(self) -> int:
        """Least output."""
        return 0


Bootstraps = LookUp | Split | Ladder
"""The ways to plan a function."""


def steps(thresholds: Integers, reach: Range, kept: int | None) -> Bootstraps | None:
    """The cheapest plan for `#{j : t >= thresholds[j]}`.

    Args:
        thresholds: Shape `(levels, *shape)`.
        reach: Range of t.
        kept: Bits that rounding keeps; None for exact look-ups.

    Returns:
        The plan, or None if the values are too wide.
    """
    inside = (thresholds > reach.low) & (thresholds <= reach.high)
    first = np.argmax(inside, axis=0)[None]
    anchor = np.take_along_axis(np.clip(thresholds, reach.low, reach.high + 1), first, axis=0)[0]
    spread = np.where(inside, thresholds - anchor, 0)
    keep = EXACT_KEEP if kept is None else kept
    placed = _placed(reach, anchor, keep, _trailing_zeros(spread), kept is not None)
    rungs = [steps(row[None], reach, kept) for row in thresholds] if len(thresholds) > 1 else []
    if placed is None:
        return None
    # A threshold outside the range is always or never reached, whatever the block of values that holds it.
    thresholds = np.where(inside, thresholds, np.where(thresholds <= reach.low, -_FAR, _FAR))
    plans: list[Bootstraps] = []
    if placed[0] - placed[1] <= MAX_TABLE_BITS:
        plans.append(_counting(thresholds, *placed))
    if placed[0] - placed[1] > EXACT_KEEP and not placed[3]:
        plans.extend(_splits(thresholds, placed[0], placed[2]))
    narrow = tuple(rung for rung in rungs if isinstance(rung, LookUp))
    if narrow and len(narrow) == len(rungs):
        plans.append(Ladder(narrow))
    return min(plans, key=lambda plan: plan.cost, default=None)


def function(values: Integers, reach: Range) -> LookUp | None:
    """The plan for any function of t.

    Args:
        values: The function on `[reach.low.min(), reach.high.max()]`, zero or more; shape `(entries, *shape)`, in which
            trailing axes may be 1.
        reach: Range of t.

    Returns:
        The plan, or None if t is wider than a table may be.
    """
    start, shape = int(reach.low.min()), reach.low.shape
    middle = np.full(shape, (start + int(reach.high.max()) + 1) // 2)
    placed = _placed(reach, middle, MAX_BITS, MAX_BITS, False)
    if placed is None or placed[0] > MAX_TABLE_BITS:
        return None
    bits, removed, shift, approximate = placed
    entry = np.arange(-(1 << (bits - 1)), 1 << (bits - 1)).reshape((-1,) + (1,) * len(shape))
    where = np.clip(entry + shift - start, 0, len(values) - 1)
    table = np.take_along_axis(np.broadcast_to(values, (len(values), *shape)), where, axis=0)
    return LookUp(bits, removed, approximate, shift, *distinct(table))


Placement = tuple[int, int, Integers, bool]


def _placed(reach: Range, anchor: Integers, keep: int, aligned: int, approximate: bool) -> Placement | None:
    """Fewest bits, bits to clear, and the shift (congruent to the anchor) for which `t - shift` fits."""
    for bits in range(2, MAX_BITS + 1):
        removed = max(0, min(aligned, bits - keep))
        half, step = 1 << (bits - 1), 1 << removed
        guard = step >> 1 if approximate else 0  # rounding subtracts half a step first, which must not overflow
        least = reach.high - half + 1 - anchor
        most = reach.low + half - guard - anchor
        common = _multiple_near_zero(np.asarray(least.max()), np.asarray(most.min()), step)
        offset = common if common <= most.min() else _multiple_near_zero(least, most, step)
        if np.all(offset <= most):
            return bits, removed, anchor + offset, approximate and removed > 0
    return None


def _multiple_near_zero(least: Integers, most: Integers, step: int) -> Integers:
    """The multiple of `step` in [least, most] that is nearest to zero; greater than `most` if there is none."""
    above = -(-least // step) * step
    return np.where(least > 0, above, np.where(most < 0, np.maximum(most // step * step, above), 0))


def _trailing_zeros(values: Integers) -> int:
    common = int(np.gcd.reduce(values, axis=None))
    return (common & -common).bit_length() - 1 if common else MAX_BITS


def _blocks(bits: int, removed: int, shift: Integers) -> Integers:
    """The least t of each block of values with equal high bits, shape `(2**(bits - removed), *shape)`."""
    half = 1 << (bits - removed - 1)
    return (np.arange(-half, half) << removed).reshape((-1,) + (1,) * shift.ndim) + shift


def _counting(thresholds: Integers, bits: int, removed: int, shift: Integers, approximate: bool) -> LookUp:
    start = _blocks(bits, removed, shift)
    table = sum((start >= row for row in thresholds), np.zeros(start.shape, dtype=np.int64))
    return LookUp(bits, removed, approximate, shift, *distinct(table))


def _splits(thresholds: Integers, bits: int, shift: Integers) -> list[Split]:
    """Every way to split the values into high and low bits for which no block holds two thresholds."""
    plans: list[Split] = []
    for removed in range(max(1, bits - _WIDEST_HIGH), bits - 1):
        start = _blocks(bits, removed, shift)
        below = np.zeros(start.shape, dtype=np.int64)
        inside = np.zeros(start.shape, dtype=np.int64)
        within = np.full(start.shape, 1 << removed)
        for row in thresholds:
            here = (start < row) & (row < start + (1 << removed))
            below, inside = below + (row <= start), inside + here
            within = np.where(here, row - start, within)
        if inside.max() > 1:
            break
        base, limit = (LookUp(bits, removed, False, shift, *distinct(table)) for table in (below, within))
        plans.append(Split(base, limit))
    return plans


def distinct(table: Integers) -> tuple[Integers, Integers]:
    """Distinct columns of `(entries, *shape)` as rows, and for each element the row that is its own."""
    columns = table.reshape(len(table), -1)
    tables, index = np.unique(columns, axis=1, return_inverse=True)
    return tables.T.astype(np.int64), index.reshape(table.shape[1:]).astype(np.int64)


def _cost(bits: int) -> int:
    return _COST[bits] if bits < len(_COST) else _COST[-1] << (bits - len(_COST) + 1)
