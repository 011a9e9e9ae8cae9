"""Sizes of comparison functions, and the length-multiplying generator that their keys grow by.

The generator is AES-128 in the mode of Matyas, Meyer and Oseas, `AES(K, s ^ j) ^ s ^ j`, for j = 0 ... 4; what takes
several blocks has j + 8, j + 16 ... as well. The key K is the dealer's own, another one for each model, so that nobody
can prepare tables for it beforehand (Guo, Katz, Wang and Yu, IEEE S&P 2020).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

Words = npt.NDArray[np.uint64]
Ring = npt.NDArray[Any]
"""Elements of Z_2^16, Z_2^32 or Z_2^64, as unsigned integers."""

PRG_KEY_BYTES = 16
BLOCK = 16
ONE = np.uint64(1)
CLEAR = np.uint64(0xFFFFFFFFFFFFFFFC)
"""Of a seed's first word: all but its control bits."""
VALUE, LEAF, NEXT = 2, 4, 8
"""Kinds of blocks: of values and of leaves, each on two sides or many; and the step from one block to the next."""


@dataclass(frozen=True)
class Form:
    """Sizes of a comparison function.

    Attributes:
        bits: Of its points.
        payload: Words of its value.
        kind: Unsigned type of these words.
    """

    bits: int
    payload: int
    kind: np.dtype[Any]

    @cached_property
    def size(self) -> int:
        """Bytes of a value."""
        return self.payload * self.kind.itemsize

    @cached_property
    def cut(self) -> int:
        """Levels that are cut off: one, and more as long as one adds at most twice the bytes that a level takes."""
        cut = 1
        while (1 << cut) * self.size <= 2 * (BLOCK + self.size):
            cut += 1
        return min(self.bits, cut)

    @property
    def levels(self) -> int:
        """Levels that remain."""
        return self.bits - self.cut

    @property
    def leaves(self) -> int:
        """Points that share the last node."""
        return 1 << self.cut

    @property
    def blocks(self) -> int:
        """Pseudorandom blocks that one value takes."""
        return -(-self.size // BLOCK)

    @property
    def neighbors(self) -> int:
        """Points below a last node whose values share a block; no value lies across two, if it fits into one."""
        return min(self.leaves, max(1, BLOCK // self.size))

    @property
    def leaf_blocks(self) -> int:
        """Blocks that the values of all points below a last node take."""
        return self.leaves // self.neighbors * self.blocks

    @property
    def bytes(self) -> int:
        """Size of what both keys have in common."""
        return self.levels * (BLOCK + self.size) + self.leaves * self.size


class Generator:
    """The length-multiplying generator under one AES key."""

    def __init__(self, key: bytes) -> None:
        self._encryptor = Cipher(algorithms.AES128(key), modes.ECB()).encryptor()

    def expand(self, blocks: Words, out: Words | None = None) -> Words:
        """A pseudorandom block for every block, shape `(..., 2)`, contiguous; in `out` if that is given."""
        room = np.empty(blocks.size + 2, dtype=np.uint64)  # `update_into` wants room for one block more
        self._encryptor.update_into(memoryview(blocks.reshape(-1).data).cast("B"), memoryview(room.data).cast("B"))
        made = room[:-2].reshape(blocks.shape)
        return np.bitwise_xor(made, blocks, out=made if out is None else out)

    def children(self, nodes: Words, kinds: Words) -> Words:
        """Blocks of several kinds of every node: `(..., 2)` gives `(kinds, ..., 2)`."""
        blocks = np.repeat(nodes[None], len(kinds), axis=0)
        blocks[..., 1] ^= kinds.reshape(-1, *(1,) * (nodes.ndim - 1))
        return self.expand(blocks)


def kinds_of(first: int, count: int) -> Words:
    """The kinds of the blocks of one value, or of one leaf: what is added to the upper half of a node."""
    return np.arange(first, first + NEXT * count, NEXT, dtype=np.uint64)


def both_sides(form: Form) -> Words:
    """The kinds of both children, and of the values of both: left, right, and again for each block."""
    values = kinds_of(VALUE, form.blocks)
    return np.array([0, ONE, *np.stack([values, values + ONE], axis=1).flat], dtype=np.uint64)


def clear_roots(words: Words) -> Words:
    """Uniform words, shape `(n, 2)`, as seeds: their two low bits are cleared."""
    roots = words.copy()
    roots[:, 0] &= CLEAR
    return roots


def leaf_words(generator: Generator, state: Words, form: Form) -> Ring:
    """The words of all points below the last nodes, `(n, leaves, payload)`."""
    made = generator.children(state, kinds_of(LEAF, form.leaf_blocks))
    return of_neighbors(joined(made.view(form.kind)), form).reshape(len(state), form.leaves, form.payload)


def of_neighbors(words: Ring, form: Form) -> Ring:
    """Words of blocks, `(n, ...)`, as those of points: `(n, groups of neighbors, neighbors, payload)`."""
    grouped = words.reshape(len(words), -1, form.blocks * BLOCK // form.kind.itemsize)
    used = grouped[..., : form.neighbors * form.payload]
    return used.reshape(*used.shape[:2], form.neighbors, form.payload)


def words_of(blocks: Words, form: Form) -> Ring:
    """The words of values, `(..., n, payload)`, from their blocks, `(blocks, ..., n, 2)`."""
    return joined(blocks.view(form.kind))[..., : form.payload]


def joined(words: Ring) -> Ring:
    """Words of blocks, `(blocks, ..., words)`, with the blocks one after another: `(..., blocks * words)`."""
    if len(words) == 1:
        return np.asarray(words[0])
    moved = np.moveaxis(words, 0, -2)
    return np.reshape(moved, (*moved.shape[:-2], -1))
