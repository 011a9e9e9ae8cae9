"""Where vectors lie in slots; a sparse matrix as diagonals, with a baby-step giant-step split that a cost model picks.

A vector lies in one or more ciphertexts ("blocks") and repeats with a period, a power of two. With rows placed modulo
`r` and columns repeating with `p`, entry (row, column) belongs to diagonal `(column - row) mod min(r, p)`; if `r < p`
(the hybrid method of Gazelle, Juvekar et al. 2018), rotations by `r, 2r ..` fold the partial sums together afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from secure_infer.backends.ckks.lower import Indices, Matrix, Reals

Booleans = npt.NDArray[np.bool_]

_SPARSE = 0.25
_MOST_PER_ROW = 2048
MOST_DIAGONALS = 400
"""A sparse matrix with more is treated like a dense one."""
_WIDEST_SEARCH = 96


@dataclass(frozen=True)
class Grid:
    """A raster for the pixels of some channels.

    Attributes:
        cell: Slots that one raster takes.
        pitch: Slots from one row of it to the next.
        gap: Slots, and rows, from one pixel of a channel to the next; other channels lie between.
    """

    cell: int
    pitch: int
    gap: int


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the elements of a vector lie.

    Attributes:
        period: Slots after which a block repeats; all slots if there are several blocks.
        blocks: Number of ciphertexts.
        positions: For each element `block * period + slot`, shape `(elements,)`.
        extent: Slots that hold copies, counted from the first, the others being of no use; 0 for all.
        turn: Each copy begins so many elements later than the one before.
        grid: The raster that channels of an image lie in; None if elements lie one after another, or anyhow.
    """

    period: int
    blocks: int
    positions: Indices
    extent: int = 0
    turn: int = 0
    grid: Grid | None = None

    @property
    def plain(self) -> bool:
        """Whether copies fill all slots, so that a rotation of the slots is one of the vector."""
        return not self.extent and not self.turn

    @property
    def length(self) -> int:
        """Number of distinct positions."""
        return self.period * self.blocks

    def place(self, values: Reals) -> Reals:
        """Values of shape `(..., elements)` at their positions, zero elsewhere: shape `(..., blocks, period)`."""
        result = np.zeros((*values.shape[:-1], self.length))
        result[..., self.positions] = values
        return result.reshape((*values.shape[:-1], self.blocks, self.period))


def spread(rows: npt.NDArray[Any], slots: int, turn: int) -> npt.NDArray[Any]:
    """One period, shape `(..., period)`, repeated over all slots; each copy begins `turn` elements later."""
    period = rows.shape[-1]
    copy, at = np.divmod(np.arange(slots), period)
    return np.asarray(rows[..., (at + turn * copy) % period])


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
    """Relative costs with so many primes: SEAL's usual ones, or what was measured on this machine.

    On SEAL, a rotation takes about `2.2 k` times a product, k primes, and reading a ciphertext about 5 times.

    Attributes:
        primes: Level of the operation, and one.
        measured: Seconds by `"operation@level"`, of rotations, products and inputs at all levels; or nothing.
    """

    primes: int
    measured: Mapping[str, float] = field(default_factory=dict)

    @property
    def product(self) -> float:
        """Multiply by a plaintext and add."""
        return self._of("plain_multiplications", self.primes, float(self.primes))

    @property
    def rotation(self) -> float:
        """Rotate."""
        return self._of("rotations", self.primes, 2.2 * self.primes * (self.primes + 1))

    @property
    def fold(self) -> float:
        """Rotate after the rescale."""
        primes = max(self.primes - 1, 1)
        return self._of("rotations", primes, 2.2 * primes * (primes + 1))

    @property
    def load(self) -> float:
        """Read one ciphertext of a client."""
        return self._of("inputs", self.primes, 5.0 * self.primes)

    def _of(self, operation: str, primes: int, usual: float) -> float:
        return self.measured[f"{operation}@{primes - 1}"] if self.measured else usual


@dataclass(frozen=True)
class Sums:
    """Every slot becomes the sum of `count` slots, `stride` apart from each other."""

    stride: int
    count: int

    def chain(self) -> list[tuple[int, bool]]:
        """Rotations one after another: of the sum so far if true, of what came in otherwise."""
        steps, held = [], 1
        for bit in bin(self.count)[3:]:
            steps.append((self.stride * held, True))
            held *= 2
            if bit == "1":
                steps.append((self.stride * held, False))
                held += 1
        return steps


@dataclass(frozen=True, eq=False)
class Diagonals:
    """The diagonals of a stretch: which exist, and what is in them.

    Attributes:
        period: Slots after which diagonals repeat.
        sums: What is summed once everything is rescaled.
        split: Baby and giant steps.
        keys: For each diagonal `(term, source block, result block, diagonal)`, shape `(diagonals, 4)`, sorted.
    """

    period: int
    sums: Sums
    split: Split
    keys: Indices
    _entries: tuple[Indices, Indices, Reals]

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


def diagonalize(
    terms: Sequence[Term], rows_period: int, blocks: int, split: Split | Costs, sums: Sums | None = None
) -> Diagonals:
    """The diagonals of a stretch, split as cheaply as can be if only costs are given; sums follow from periods."""
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
    split = best_split(unpacked, modulus, split)[1] if isinstance(split, Costs) else split
    # A split may take d - r for d. That reads the same columns r slots later, if they do not repeat sooner.
    moved = unpacked[:, 3] - sum(split.babies(unpacked[:, 3], modulus[unpacked[:, 0]]))
    periods = np.array([term.period for term in terms])[unpacked[:, 0]]
    folded = periods[which] > rows_period
    slot = np.where(folded, (slot + moved[which]) % periods[which], slot)
    sums = sums or Sums(rows_period, period // rows_period)
    return Diagonals(period, sums, split, unpacked, (start, slot[order], value[order]))


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


def _term_keys(number: int, term: Term, rows_period: int) -> Indices:
    """The diagonals of a term as `Diagonals.keys` has them, marked in a table, which is faster than to sort entries."""
    modulus = min(rows_period, term.period)
    blocks = int(term.cols.max(initial=0)) // term.period + 1, int(term.rows.max(initial=0)) // rows_period + 1
    table = np.zeros((*blocks, modulus), dtype=bool)
    (source, col), (result, row) = np.divmod(term.cols, term.period), np.divmod(term.rows, rows_period)
    table[source, result, (col - row) % modulus] = True
    found = np.argwhere(table)
    return np.column_stack([np.full(len(found), number), found])


def best_split(keys: Indices, modulus: Indices, costs: Costs) -> tuple[float, Split]:
    """The cheapest split of these diagonals, and the cost of its rotations and products."""
    most = int(modulus.max(initial=1))
    widest = _WIDEST_SEARCH * MOST_DIAGONALS // max(len(keys), MOST_DIAGONALS)
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


def positioned(matrices: Mapping[str, Matrix], layouts: Mapping[str, Layout], rows: Layout) -> list[Term]:
    """The matrices between positions instead of elements."""
    return [
        Term(name, layouts[name].period, rows.positions[m.rows], layouts[name].positions[m.cols], m.values)
        for name, m in matrices.items()
    ]


def is_sparse(matrices: Mapping[str, Matrix]) -> bool:
    """Whether rows have so few entries that it matters where they lie."""
    per_row = sum(len(m.values) / m.shape[0] for m in matrices.values())
    columns = sum(m.shape[1] for m in matrices.values())
    return per_row <= min(_MOST_PER_ROW, max(_SPARSE * columns, 2))


def layout_cost(matrices: Mapping[str, Matrix], layouts: Mapping[str, Layout], rows: Layout, costs: Costs) -> float:
    """Of rotations and products, if rows lie there."""
    terms = positioned(matrices, layouts, rows)
    modulus = moduli(terms, rows.period)
    keys = np.concatenate([_term_keys(number, term, rows.period) for number, term in enumerate(terms)])
    folds = max(0, max(int(term.period // rows.period) for term in terms).bit_length() - 1)
    return best_split(keys, modulus, costs)[0] + folds * rows.blocks * costs.fold
