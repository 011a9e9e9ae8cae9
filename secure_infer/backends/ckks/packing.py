"""Where vectors lie in slots; a sparse matrix as diagonals, with a baby-step giant-step split that a cost model picks.

A vector lies in one or more ciphertexts ("blocks") and repeats with a period, a power of two. With rows placed modulo
`r` and columns repeating with `p`, entry (row, column) belongs to diagonal `(column - row) mod min(r, p)`; if `r < p`
(the hybrid method of Gazelle, Juvekar et al. 2018), rotations by `r, 2r ..` fold the partial sums together afterwards.
The order of a stretch's results is free, so rows are placed where they share diagonals: the outputs of a strided
convolution go into the gaps between each other, those of other channels into further periods.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from secure_infer.backends.ckks.lower import Indices, Matrix, Reals

Booleans = npt.NDArray[np.bool_]

_SPARSE = 0.25
_MOST_PER_ROW = 2048
_PROBED = 32
_FAVORED = 32
_MOST_DIAGONALS = 400
_WIDEST_SEARCH = 256


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the elements of a vector lie.

    Attributes:
        period: Slots after which a block repeats: a power of two, equal to all slots if there are several blocks.
        blocks: Number of ciphertexts.
        positions: For each element `block * period + slot`, shape `(elements,)`.
    """

    period: int
    blocks: int
    positions: Indices

    @property
    def length(self) -> int:
        """Number of distinct positions."""
        return self.period * self.blocks

    def place(self, values: Reals) -> Reals:
        """Values of shape `(..., elements)` at their positions, zero elsewhere: shape `(..., blocks, period)`."""
        result = np.zeros((*values.shape[:-1], self.length))
        result[..., self.positions] = values
        return result.reshape((*values.shape[:-1], self.blocks, self.period))


def packed(size: int, slots: int) -> Layout:
    """Elements one after another."""
    blocks = -(-size // slots)
    return Layout(slots if blocks > 1 else power_of_two(size), blocks, np.arange(size))


def power_of_two(n: int) -> int:
    """The least power of two that is at least n."""
    return 1 << (n - 1).bit_length()


@dataclass(frozen=True, eq=False)
class Term:
    """The part of a stretch that reads one source: a sparse matrix between positions.

    Attributes:
        source: Name of the source.
        period: Period of the source's layout.
        rows: Position of each entry's result.
        cols: Position of each entry's argument.
        values: The entries.
    """

    source: str
    period: int
    rows: Indices
    cols: Indices
    values: Reals


@dataclass(frozen=True)
class Split:
    """How a diagonal d becomes `baby + giant`: the giant is a multiple of `step`; `signed` centers both around zero."""

    step: int
    signed: bool

    def babies(self, diagonals: Indices, modulus: Indices) -> tuple[Indices, Indices]:
        """Baby and giant rotation of each diagonal, the diagonals being known modulo `modulus`."""
        if not self.signed:
            baby = diagonals % self.step
            return baby, diagonals - baby
        centered = (diagonals + modulus // 2) % modulus - modulus // 2
        baby = (centered + self.step // 2) % self.step - self.step // 2
        return baby, centered - baby


@dataclass(frozen=True)
class Costs:
    """Relative costs at one level: measured on SEAL, a rotation takes about `2.2 k` times a product, k primes."""

    primes: int

    @property
    def product(self) -> float:
        """Multiply by a plaintext and add."""
        return float(self.primes)

    @property
    def rotation(self) -> float:
        """Rotate."""
        return 2.2 * self.primes * (self.primes + 1)

    @property
    def fold(self) -> float:
        """Rotate after the rescale."""
        return 2.2 * max(self.primes - 1, 1) * max(self.primes, 2)


@dataclass(frozen=True, eq=False)
class Diagonals:
    """The diagonals of a stretch: which exist, and what is in them.

    Attributes:
        rows_period: Period of the result.
        period: Period of the folded sum; the folds go from `rows_period` up to it.
        split: Baby and giant steps.
        keys: For each diagonal `(term, source block, result block, diagonal)`, shape `(diagonals, 4)`, sorted.
    """

    rows_period: int
    period: int
    split: Split
    keys: Indices
    _entries: tuple[Indices, Indices, Reals]

    @property
    def folds(self) -> list[int]:
        """Rotations that are added one after another once everything is summed."""
        return [self.rows_period << i for i in range((self.period // self.rows_period).bit_length() - 1)]

    def rotations(self, modulus: Indices) -> tuple[Indices, Indices]:
        """Baby and giant rotation of every key; `modulus` of every term."""
        return self.split.babies(self.keys[:, 3], modulus[self.keys[:, 0]])

    def vectors(self) -> Iterator[Reals]:
        """The vector of each diagonal, in the order of `keys`, one period long."""
        start, slot, value = self._entries
        for first, last in pairwise(start):
            vector = np.zeros(self.period)
            vector[slot[first:last]] = value[first:last]
            yield vector


def moduli(terms: Sequence[Term], rows_period: int) -> Indices:
    """For each term, the number modulo which its diagonals are known."""
    return np.array([min(rows_period, term.period) for term in terms], dtype=np.int64)


def diagonalize(terms: Sequence[Term], rows_period: int, blocks: int, split: Split | None, costs: Costs) -> Diagonals:
    """The diagonals of a stretch, and the cheapest split if none is given."""
    period = max([rows_period, *(term.period for term in terms)])
    parts = [_term_entries(number, term, rows_period) for number, term in enumerate(terms)]
    keys, slot, value = (np.concatenate(part) for part in zip(*parts, strict=True))
    # A block without entries still needs one (zero) diagonal, for a sum to exist to which its bias is added.
    missing = np.setdiff1d(np.arange(blocks), _unpack(keys)[:, 2])
    keys = np.concatenate([keys, _pack(0, 0, missing, 0)])
    slot = np.concatenate([slot, np.zeros(len(missing), dtype=np.int64)])
    value = np.concatenate([value, np.zeros(len(missing))])
    unique, which = np.unique(keys, return_inverse=True)
    order = np.argsort(which, kind="stable")
    start = np.concatenate([[0], np.cumsum(np.bincount(which, minlength=len(unique)))])
    unpacked, modulus = _unpack(unique), moduli(terms, rows_period)
    split = split or best_split(unpacked, modulus, costs)[1]
    # A split may take d - r for d. That reads the same columns r slots later, if they do not repeat sooner.
    moved = unpacked[:, 3] - sum(split.babies(unpacked[:, 3], modulus[unpacked[:, 0]]))
    periods = np.array([term.period for term in terms])[unpacked[:, 0]]
    folded = periods[which] > rows_period
    slot = np.where(folded, (slot + moved[which]) % periods[which], slot)
    return Diagonals(rows_period, period, split, unpacked, (start, slot[order], value[order]))


def _pack(term: int, source: Indices | int, result: Indices | int, diagonal: Indices | int) -> Indices:
    """One sortable integer for a diagonal: 15 bits each."""
    return np.asarray((((np.int64(term) << 15) + source << 15) + result << 15) + diagonal, dtype=np.int64)


def _unpack(keys: Indices) -> Indices:
    return np.stack([keys >> 45, keys >> 30 & 0x7FFF, keys >> 15 & 0x7FFF, keys & 0x7FFF], axis=1)


def _term_entries(number: int, term: Term, rows_period: int) -> tuple[Indices, Indices, Reals]:
    """Packed key and slot of each entry of a term."""
    row_block, row = np.divmod(term.rows, rows_period)
    col_block, col = np.divmod(term.cols, term.period)
    diagonal = (col - row) % min(rows_period, term.period)
    slot = (col - diagonal) % term.period if term.period > rows_period else row
    return _pack(number, col_block, row_block, diagonal), slot, term.values


def best_split(keys: Indices, modulus: Indices, costs: Costs) -> tuple[float, Split]:
    """The cheapest split of these diagonals, and the cost of its rotations and products."""
    most = int(modulus.max(initial=1))
    widest = _WIDEST_SEARCH * _MOST_DIAGONALS // max(len(keys), _MOST_DIAGONALS)
    steps = {*range(1, min(most, widest) + 1), *(1 << bits for bits in range(most.bit_length()))}
    best = (np.inf, Split(1, False))
    source = (keys[:, 0] * (keys[:, 1].max(initial=0) + 1) + keys[:, 1]) << 32
    result = keys[:, 2] << 32
    for step in sorted(steps):
        for signed in (False, True):
            split = Split(step, signed)
            baby, giant = split.babies(keys[:, 3], modulus[keys[:, 0]])
            count = len(np.unique((source + (baby + (1 << 30)))[baby != 0]))
            count += len(np.unique((result + (giant + (1 << 30)))[giant != 0]))
            cost = count * costs.rotation + len(keys) * costs.product
            if cost < best[0]:
                best = (cost, split)
    return best


def choose_layout(
    matrices: Mapping[str, Matrix], layouts: Mapping[str, Layout], rows: int, group: int, slots: int, costs: Costs
) -> Layout:
    """Where the rows of a stretch are placed, by the cost of the diagonals that follow."""
    least = packed(rows, slots)
    candidates = [least] + [
        Layout(1 << bits, 1, least.positions)
        for bits in range(least.period.bit_length(), slots.bit_length())
        if least.blocks == 1
    ]
    if _is_sparse(matrices) and all(len(matrix.values) for matrix in matrices.values()):
        found = [share_diagonals(matrices, layouts, rows, group, c.period, c.blocks) for c in candidates]
        candidates = [layout for layout in found if layout] + candidates
    return min(candidates, key=lambda layout: _layout_cost(matrices, layouts, layout, costs))


def positioned(matrices: Mapping[str, Matrix], layouts: Mapping[str, Layout], rows: Layout) -> list[Term]:
    """The matrices between positions instead of elements."""
    return [
        Term(name, layouts[name].period, rows.positions[m.rows], layouts[name].positions[m.cols], m.values)
        for name, m in matrices.items()
    ]


def _is_sparse(matrices: Mapping[str, Matrix]) -> bool:
    per_row = sum(len(m.values) / m.shape[0] for m in matrices.values())
    columns = sum(m.shape[1] for m in matrices.values())
    return per_row <= min(_MOST_PER_ROW, max(_SPARSE * columns, 2))


def _layout_cost(matrices: Mapping[str, Matrix], layouts: Mapping[str, Layout], rows: Layout, costs: Costs) -> float:
    terms = positioned(matrices, layouts, rows)
    modulus = moduli(terms, rows.period)
    keys = _unpack(np.unique(np.concatenate([_term_entries(i, t, rows.period)[0] for i, t in enumerate(terms)])))
    folds = max(0, max(int(term.period // rows.period) for term in terms).bit_length() - 1)
    return best_split(keys, modulus, costs)[0] + folds * rows.blocks * costs.fold


def share_diagonals(
    matrices: Mapping[str, Matrix], layouts: Mapping[str, Layout], rows: int, group: int, period: int, blocks: int
) -> Layout | None:
    """Place rows greedily, each where it needs the fewest diagonals that no earlier row has.

    Groups of `group` rows (the pixels of a channel) come one after another; in each, the fullest rows come first, as
    those at the border fit wherever an inner row does.

    Returns:
        None if the matrix has no such structure.
    """
    terms = positioned(matrices, layouts, packed(rows, rows))
    entries, size = _entries_by_row(terms, rows, period)
    used, free = np.zeros((blocks, size), dtype=bool), np.ones(blocks * period, dtype=bool)
    dense = sum(min(period, t.period) * (int(t.cols.max()) // t.period + 1) for t in terms) * blocks
    positions = np.zeros(rows, dtype=np.int64)
    for row in sorted(range(rows), key=lambda i: (i // group, -len(entries[i]))):
        position = _place_row(entries[row], used, free, period)
        positions[row], free[position] = position, False
        used.reshape(-1)[_diagonals_of(entries[row], np.array([position]), size, period)] = True
        if np.count_nonzero(used) > max(_MOST_DIAGONALS, dense // 2):
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


def _place_row(entries: Indices, used: Booleans, free: Booleans, period: int) -> int:
    """The free position at which a row needs the fewest new diagonals, of those that a few of its entries favor."""
    if not len(entries):
        return int(np.flatnonzero(free)[-1])
    start, col, modulus = (int(n) for n in entries[0])
    known = np.flatnonzero(used[:, start : start + modulus].any(axis=0))
    likely = (col - known[:, None] + modulus * np.arange(len(free) // modulus)).reshape(-1) % len(free)
    probe = entries[:: -(-len(entries) // _PROBED)]
    best, fewest = -1, len(entries) + 1
    for candidates in (likely[free[likely]], np.flatnonzero(free)):
        if fewest and len(candidates):
            new = np.count_nonzero(~used.reshape(-1)[_diagonals_of(probe, candidates, used.shape[1], period)], axis=0)
            favored = candidates[np.argsort(new, kind="stable")[:_FAVORED]]
            new = np.count_nonzero(~used.reshape(-1)[_diagonals_of(entries, favored, used.shape[1], period)], axis=0)
            at = int(np.argmin(new))
            if new[at] < fewest:
                best, fewest = int(favored[at]), int(new[at])
    return best
