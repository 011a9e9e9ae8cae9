"""Stretches that use the copies of what they read: dense matrices in few products, and inputs that the client arranged.

Let slot s hold element s mod M. Choose n and f with M = n B, f = a B and gcd(a, n) = 1. Then n slots f apart hold
elements B apart, so products with B neighboring diagonals fill every slot with a part of a row, and the sum of n slots,
f apart, is the row: row i in slots i, i + f, .. again, the next stretch's M. The hybrid method (see `packing`) does the
same work in every copy; here each copy does a part, so a matrix of R rows takes about R M / slots products.

If copies are turned, each beginning J elements later than the one before, J diagonals do for J slots / M rows, and the
sums repeat in all slots. Turned copies only come from a client, or from a stretch that reads what a client arranged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import gcd

import numpy as np

from secure_infer.backends.ckks.lower import Indices, Matrix, Reals
from secure_infer.backends.ckks.packing import Costs, Layout, Sums, Term, packed, power_of_two
from secure_infer.graph import INPUT

_MOST_COUNT = 64
_STRIDES = 4
_LOOSE = 4


@dataclass(frozen=True)
class Sharing:
    """How copies share the work of a dense matrix.

    Attributes:
        diagonals: Neighboring diagonals that are multiplied.
        sums: What is summed afterwards.
        limit: Slots before this hold parts of rows.
        result: Where the rows lie then.
    """

    diagonals: int
    sums: Sums
    limit: int
    result: Layout

    def cost(self, costs: Costs, sent: int = 1) -> float:
        """Of products, rotations and sums, if the client sent so many neighboring rotations of the source."""
        steps = range(1, self.diagonals + 1) if sent == 1 else [sent]
        rotations = min((step if sent == 1 else 1) + -(-self.diagonals // step) - 2 for step in steps)
        return rotations * costs.rotation + self.diagonals * costs.product + len(self.sums.chain()) * costs.fold


def sharings(rows: int, source: Layout, slots: int) -> Iterator[Sharing]:
    """The ways in which copies of a vector, one element after another, can share a matrix of so many rows."""
    period, whole, elements = source.period, source.plain, np.arange(rows)
    if source.turn:
        wide = source.turn * slots // period
        if rows <= wide:
            yield Sharing(source.turn, Sums(wide, slots // wide), slots, Layout(wide, 1, elements))
        return
    for count in range(2, _MOST_COUNT + 1):
        if period % count:
            continue
        width = period // count
        limit = slots if whole else source.extent - width + 1
        for multiple in range(-(-rows // width), -(-rows // width) + _STRIDES):
            stride = multiple * width
            extent = limit - stride * (count - 1)
            if extent < rows:
                break
            if gcd(multiple, count) == 1:
                filled = whole and stride * count == slots
                yield Sharing(
                    width, Sums(stride, count), limit, Layout(stride, 1, elements, 0 if filled else min(extent, limit))
                )


def shared(matrix: Matrix, source: Layout, sharing: Sharing, slots: int, sent: int = 1) -> Term:
    """The matrix between slots, for a source whose neighboring rotations were sent too if `sent` exceeds one."""
    if source.turn:
        diagonal, slot, value = _turned(matrix, source, sharing, slots)
    else:
        diagonal, slot, value = _cyclic(matrix, source, sharing)
    block = diagonal % sent
    return Term(INPUT, slots, slot, block * slots + (slot + diagonal - block) % slots, value)


def _turned(matrix: Matrix, source: Layout, sharing: Sharing, slots: int) -> tuple[Indices, Indices, Reals]:
    copy, diagonal = np.divmod((matrix.cols - matrix.rows) % sharing.sums.stride, source.turn)
    read = copy * source.period + (matrix.cols - source.turn * copy) % source.period
    return diagonal, (read - diagonal) % slots, matrix.values


def _cyclic(matrix: Matrix, source: Layout, sharing: Sharing) -> tuple[Indices, Indices, Reals]:
    stride, count = sharing.sums.stride, sharing.sums.count
    part, diagonal = np.divmod((matrix.cols - matrix.rows) % source.period, sharing.diagonals)
    inverse = pow(stride // sharing.diagonals, -1, count)
    slot = matrix.rows + stride * (part * inverse % count)
    every = slot[:, None] + stride * count * np.arange(-(-sharing.limit // (stride * count)))
    entry, copy = np.nonzero(every < sharing.limit)
    return diagonal[entry], every[entry, copy], matrix.values[entry]


def contents(size: int, slots: int) -> list[Layout]:
    """Ways to repeat a vector that nothing else fixes: cyclically with many periods, or with turned copies."""
    elements = np.arange(size)
    found = {count * (-(-size // count) + more) for count in range(2, _MOST_COUNT + 1) for more in range(_LOOSE)} | {
        power_of_two(size)
    }
    cyclic = [
        Layout(period, 1, elements, 0 if slots % period == 0 else slots) for period in sorted(found) if period <= slots
    ]
    period = power_of_two(size)
    turned = [
        Layout(period, 1, elements, turn=wide * period // slots)
        for wide in (1 << bits for bits in range(4, period.bit_length()))
        if period < slots and wide * period >= slots
    ]
    return cyclic + turned


def sent_copies(source: Layout, size: int, sent: int, slots: int) -> Indices:
    """Which input each slot holds of a vector and its rotations by `1 .. sent - 1`, shape `(period, sent)`."""
    repeats = source.plain and sent == 1
    slot = np.arange(source.period if repeats else slots)[:, None] + np.arange(sent)
    if source.turn:
        slot %= slots
    copy, at = np.divmod(slot, source.period)
    element = (at + source.turn * copy) % source.period
    return np.where(element < size, element, -1)


@dataclass(frozen=True, eq=False)
class Windows:
    """The inputs that rows of a sparse matrix read, alike for the same place in each group of rows.

    Attributes:
        matrix: The matrix.
        group: Rows of a group: the pixels of a channel.
        inputs: For each place in a group the inputs, -1 beyond the last, shape `(group, most)`.
    """

    matrix: Matrix
    group: int
    inputs: Indices
    _rank: Indices

    @classmethod
    def of(cls, matrix: Matrix, group: int) -> Windows:
        """The windows of a matrix."""
        code = matrix.rows % group * matrix.shape[1] + matrix.cols
        unique, which = np.unique(code, return_inverse=True)
        place = unique // matrix.shape[1]
        rank = np.arange(len(unique)) - np.searchsorted(place, place)
        inputs = np.full((group, int(rank.max(initial=0)) + 1), -1)
        inputs[place, rank] = unique % matrix.shape[1]
        return cls(matrix, group, inputs, rank[which])

    @property
    def most(self) -> int:
        """Inputs that one row reads."""
        return self.inputs.shape[1]

    def layouts(self, parts: int, slots: int) -> list[Layout]:
        """Where the rows can lie if each is summed of so many parts."""
        rows = self.matrix.shape[0]
        if rows > slots:
            return [packed(rows, slots)] if parts == 1 and slots % self.group == 0 else []
        if parts == 1:
            return contents(rows, slots)
        return [
            replace(layout, extent=0 if layout.period * parts == slots else slots - layout.period * (parts - 1))
            for layout in contents(rows, slots)
            if layout.period * parts <= slots and not layout.turn
        ]

    def gathered(self, result: Layout, parts: int, slots: int) -> tuple[Term, Indices]:
        """The matrix between slots, and which input each slot of the ciphertexts holds, shape `(period, sent)`."""
        sent = -(-self.most // parts)
        copy, at = np.divmod(np.arange(slots if result.turn else result.period * parts), result.period)
        part = copy * (parts > 1)
        row = (at + result.turn * copy) % result.period
        wide = np.pad(self.inputs, ((0, 0), (0, parts * sent - self.most)), constant_values=-1)
        chosen = part[:, None] * sent + np.arange(sent)
        columns = np.where((row < self.matrix.shape[0])[:, None], wide[row[:, None] % self.group, chosen], -1)
        return self._term(result, parts, sent, slots), columns

    def _term(self, result: Layout, parts: int, sent: int, slots: int) -> Term:
        block, row = np.divmod(result.positions[self.matrix.rows], result.period)
        part, column = np.divmod(self._rank, sent)
        copies = np.arange(-(-slots // (result.period * parts)))
        if result.turn:
            every = copies * result.period + (row[:, None] - result.turn * copies) % result.period
        else:
            every = row[:, None] + result.period * (part[:, None] + parts * copies)
        entry, copy = np.nonzero(every < slots)
        slot = every[entry, copy]
        rows, cols = block[entry] * slots + slot, column[entry] * slots + slot
        return Term(INPUT, slots, rows, cols, self.matrix.values[entry])

    def cost(self, parts: int, costs: Costs, blocks: int) -> float:
        """Of reading and multiplying what is sent, and of the sums, for a result of so many ciphertexts."""
        sent = -(-self.most // parts)
        return sent * (costs.load + blocks * costs.product) + len(Sums(1, parts).chain()) * costs.fold
