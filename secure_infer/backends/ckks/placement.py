"""Where the results of a stretch are placed: their order is free, so rows go where they share diagonals.

Channels of an image go into the gaps of a raster (see `grids`), or each row where a greedy search finds the fewest new
diagonals, which also serves rows that are no image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from secure_infer.backends.ckks.grids import grids, interleaved, natural
from secure_infer.backends.ckks.lower import Indices, Matrix
from secure_infer.backends.ckks.normalize import Unit
from secure_infer.backends.ckks.packing import (
    MOST_DIAGONALS,
    Booleans,
    Costs,
    Grid,
    Layout,
    Term,
    is_sparse,
    layout_cost,
    packed,
    positioned,
)

_PROBED = 32
_FAVORED = 32
_SEARCHED = 1 << 19
"""With more entries, the greedy search takes long."""


def choose_layouts(
    unit: Unit,
    matrices: Mapping[str, Matrix],
    layouts: Mapping[str, Layout],
    images: Mapping[str, tuple[int, int]],
    slots: int,
    costs: Costs,
) -> list[tuple[float, Layout]]:
    """Where the rows of a unit can be placed, and the cost of the diagonals that follow: the cheapest first.

    Args:
        unit: Whose rows.
        matrices: What it reads, by source.
        layouts: Where the sources lie.
        images: Height and width of the sources' channels.
        slots: Of a ciphertext.
        costs: Of operations.
    """
    rows = unit.size
    least = packed(rows, slots)
    plain = [least] + [
        Layout(1 << bits, 1, least.positions)
        for bits in range(least.period.bit_length(), slots.bit_length())
        if least.blocks == 1
    ]
    found = list(plain)
    if is_sparse(matrices) and all(len(matrix.values) for matrix in matrices.values()):
        sources = [grid_of(layouts[name], images[name]) for name in matrices]
        for grid in grids(*unit.image, [grid for grid in sources if grid]) if unit.group > 1 else ():
            found += (c for c in interleaved(rows, *unit.image, grid, slots) if c.blocks <= least.blocks)
        if sum(len(matrix.values) for matrix in matrices.values()) <= _SEARCHED:
            greedy = (share_diagonals(matrices, layouts, rows, unit.group, c.period, c.blocks) for c in plain)
            found += (layout for layout in greedy if layout)
    priced = [(layout_cost(matrices, layouts, layout, costs), layout) for layout in found]
    return sorted(priced, key=lambda pair: pair[0])


def grid_of(layout: Layout, image: tuple[int, int]) -> Grid | None:
    """The raster that a source lies in; None if it lies anyhow."""
    if layout.grid is None and np.array_equal(layout.positions, np.arange(len(layout.positions))):
        return natural(*image)
    return layout.grid


def share_diagonals(
    matrices: Mapping[str, Matrix], layouts: Mapping[str, Layout], rows: int, group: int, period: int, blocks: int
) -> Layout | None:
    """Place rows greedily, each where it needs the fewest diagonals that no earlier row has.

    Groups of `group` rows (the pixels of a channel) come one after another; in the first, the fullest rows come first,
    as those at the border fit wherever an inner row does. Later groups are placed as a whole, like the first, if they
    fit.

    Returns:
        None if the matrix has no such structure.
    """
    terms = positioned(matrices, layouts, packed(rows, rows))
    entries, size = _entries_by_row(terms, rows, period)
    used, free = np.zeros((blocks, size), dtype=bool), np.ones(blocks * period, dtype=bool)
    dense = sum(min(period, t.period) * (int(t.cols.max()) // t.period + 1) for t in terms) * blocks
    positions = np.zeros(rows, dtype=np.int64)
    for start in range(0, rows, group):
        chosen = range(start, min(start + group, rows))
        order = sorted(chosen, key=lambda i: -len(entries[i]))
        placed, lead = None, order[0]
        if start and len(entries[lead]):
            placed = _place_group(entries[lead], lead - start, positions[: len(chosen)], used, free, period)
        for row in order:
            position = _place_row(entries[row], used, free, period) if placed is None else int(placed[row - start])
            positions[row], free[position] = position, False
            used.reshape(-1)[_diagonals_of(entries[row], np.array([position]), size, period)] = True
        if np.count_nonzero(used) > max(MOST_DIAGONALS, dense // 2):
            return None
    return Layout(period, blocks, positions)


def _entries_by_row(terms: Sequence[Term], rows: int, period: int) -> tuple[list[Indices], int]:
    """For each row its entries `(start of the table of its term and block, column, modulus)`; and the tables' size."""
    parts, start = [], 0
    for term in terms:
        block, col = np.divmod(term.cols, term.period)
        modulus = np.full_like(col, min(period, term.period))
        parts.append(np.stack([start + block * period, col, modulus], axis=1))
        start += (int(block.max()) + 1) * period
    joined, row = np.concatenate(parts), np.concatenate([term.rows for term in terms])
    order = np.argsort(row, kind="stable")
    return np.split(joined[order], np.searchsorted(row[order], np.arange(1, rows))), start


def _diagonals_of(entries: Indices, positions: Indices, size: int, period: int) -> Indices:
    """Index of the diagonal of every entry if its row were at each position, shape `(entries, positions)`."""
    start, col, modulus = entries[:, :, None].transpose(1, 0, 2)
    return np.asarray(positions // period * size + start + (col - positions % period) % modulus)


def _place_group(
    fullest: Indices, lead: int, like: Indices, used: Booleans, free: Booleans, period: int
) -> Indices | None:
    """Positions for a group of rows that lie to each other as the first group's do, or None if it fits nowhere so.

    Args:
        fullest: Entries of the group's fullest row, which stands for all.
        lead: Which one of the group that is.
        like: Positions of the first group's rows.
        used: Diagonals that exist, for each block.
        free: Positions that are free.
        period: Of a block.
    """
    block, slot = np.divmod(like, period)
    if np.any(block != block[0]):
        return None
    shifts, candidates = np.arange(period), []
    for start in range(0, len(free), period):
        here = free[start : start + period]
        fits = shifts.copy()
        for place in slot:
            fits = fits[here[(place + fits) % period]]
        candidates.append(start + (slot[lead] + fits) % period)
    found = np.concatenate(candidates)
    if not len(found):
        return None
    best = _favorite(fullest, found, used, period)[0]
    return np.asarray(best // period * period + (slot + best % period - slot[lead]) % period)


def _favorite(entries: Indices, candidates: Indices, used: Booleans, period: int) -> tuple[int, int]:
    """The candidate at which a row needs fewest new diagonals, and how many; first judged by some of its entries."""
    probe, flat = entries[:: -(-len(entries) // _PROBED)], used.reshape(-1)
    new = np.count_nonzero(~flat[_diagonals_of(probe, candidates, used.shape[1], period)], axis=0)
    favored = candidates[np.argsort(new, kind="stable")[:_FAVORED]]
    new = np.count_nonzero(~flat[_diagonals_of(entries, favored, used.shape[1], period)], axis=0)
    at = int(np.argmin(new))
    return int(favored[at]), int(new[at])


def _place_row(entries: Indices, used: Booleans, free: Booleans, period: int) -> int:
    """The free position at which a row needs the fewest new diagonals, of those that a few of its entries favor."""
    if not len(entries):
        return int(np.flatnonzero(free)[-1])
    start, col, modulus = (int(n) for n in entries[0])
    known = np.flatnonzero(used[:, start : start + modulus].any(axis=0))
    likely = (col - known[:, None] + modulus * np.arange(len(free) // modulus)).reshape(-1) % len(free)
    best, fewest = -1, len(entries) + 1
    for candidates in (likely[free[likely]], np.flatnonzero(free)):
        if fewest and len(candidates):
            position, new = _favorite(entries, candidates, used, period)
            if new < fewest:
                best, fewest = position, new
    return best
