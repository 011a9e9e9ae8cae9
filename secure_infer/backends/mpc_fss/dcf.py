"""Distributed comparison functions: two short keys whose evaluations at x add up to `beta` if x < alpha, else to zero.

The construction is that of Boyle, Chandran, Gilboa, Gupta, Ishai, Kumar and Rathee (EUROCRYPT 2021, figure 1), with two
changes. The last levels of the tree are cut off: one block of pseudorandom bits serves several neighboring points
(Boyle, Gilboa and Ishai, CCS 2016, section 3.2.1). And both control bits of a level sit in the two low bits of its
correction of seeds, which seeds keep clear, so that seeds have 126 bits.

The generator is AES-128 in the mode of Matyas, Meyer and Oseas, `AES(K, s ^ j) ^ s ^ j`, for j = 0 ... 4. The key K is
the dealer's own, another one for each model, so that nobody can prepare tables for it beforehand (Guo, Katz, Wang and
Yu, IEEE S&P 2020). Many keys are made and evaluated at once: an array's second axis counts them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

Words = npt.NDArray[np.uint64]
Ring = npt.NDArray[Any]
"""Elements of Z_2^16, Z_2^32 or Z_2^64, as unsigned integers."""

PRG_KEY_BYTES = 16
BLOCK = 16
_ONE = np.uint64(1)
_CLEAR = np.uint64(0xFFFFFFFFFFFFFFFC)
_VALUE, _LEAF = np.uint64(2), np.uint64(4)
_CHUNK = 1 << 13  # functions that are made or evaluated together: their blocks stay in the processor's cache


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

    @property
    def cut(self) -> int:
        """Levels that are cut off: one block holds the values of `2**cut` points."""
        room = BLOCK // (self.payload * self.kind.itemsize)
        return min(self.bits, room.bit_length() - 1)

    @property
    def levels(self) -> int:
        """Levels that remain."""
        return self.bits - self.cut

    @property
    def leaves(self) -> int:
        """Points that share the last block."""
        return 1 << self.cut


@dataclass(frozen=True, eq=False)
class Corrections:
    """What both keys have in common, for n functions.

    Attributes:
        seeds: uint64, shape `(levels, n, 2)`; bits 0 and 1 of the first word correct the control bits.
        values: Shape `(levels, n, payload)`.
        leaves: Shape `(n, leaves, payload)`.
    """

    seeds: Words
    values: Ring
    leaves: Ring


class Generator:
    """The length-multiplying generator under one AES key."""

    def __init__(self, key: bytes) -> None:
        self._encryptor = Cipher(algorithms.AES128(key), modes.ECB()).encryptor()

    def expand(self, blocks: Words) -> Words:
        """A pseudorandom block for every block, shape `(..., 2)`, contiguous."""
        out = np.empty(blocks.size + 2, dtype=np.uint64)  # `update_into` wants room for one block more
        self._encryptor.update_into(memoryview(blocks.reshape(-1).data).cast("B"), memoryview(out.data).cast("B"))
        result: Words = out[:-2].reshape(blocks.shape)
        result ^= blocks
        return result


def clear_roots(words: Words) -> Words:
    """Uniform words, shape `(n, 2)`, as seeds: their two low bits are cleared."""
    roots = words.copy()
    roots[:, 0] &= _CLEAR
    return roots


def generate(form: Form, generator: Generator, alpha: Words, beta: Ring, roots: tuple[Words, Words]) -> Corrections:
    """The common part of the keys of n functions.

    Args:
        form: Their sizes.
        generator: Under the key that evaluation will use.
        alpha: uint64 in `[0, 2**bits)`, shape `(n,)`.
        beta: Values below alpha, shape `(n, payload)`.
        roots: Both parties' uniform seeds, each uint64 `(n, 2)`, from `clear_roots`.
    """
    pieces = [_grow(form, generator, alpha[at], beta[at], (roots[0][at], roots[1][at])) for at in _chunks(len(alpha))]
    if len(pieces) == 1:
        return pieces[0]
    return Corrections(
        np.concatenate([piece.seeds for piece in pieces], axis=1),
        np.concatenate([piece.values for piece in pieces], axis=1),
        np.concatenate([piece.leaves for piece in pieces]),
    )


def _chunks(count: int) -> list[slice]:
    """What is made or evaluated together; one empty chunk if there is nothing."""
    return [slice(start, start + _CHUNK) for start in range(0, max(count, 1), _CHUNK)]


def _grow(form: Form, generator: Generator, alpha: Words, beta: Ring, roots: tuple[Words, Words]) -> Corrections:
    count = len(alpha)
    seeds = np.empty((form.levels, count, 2), dtype=np.uint64)
    values = np.empty((form.levels, count, form.payload), dtype=form.kind)
    state = np.stack(roots)  # (party, n, 2)
    control = np.zeros((2, count), dtype=np.uint64)
    control[1] = 1
    gap = np.zeros((count, form.payload), dtype=form.kind)  # difference of the parties' sums on the path to alpha
    for level in range(form.levels):
        bit = (alpha >> np.uint64(form.bits - 1 - level)) & _ONE
        right = bit.astype(bool)
        children = _children(generator, state)  # (kind and side, party, n, 2)
        flags = children[:2, :, :, 0] & _ONE
        nodes = children[:2].copy()
        nodes[..., 0] &= _CLEAR
        sums = _words(children[2:], form)
        kept, lost = np.where(right, 1, 0), np.where(right, 0, 1)
        correction = _side(nodes[:, 0] ^ nodes[:, 1], lost)
        left_flag, right_flag = flags[0, 0] ^ flags[0, 1] ^ bit ^ _ONE, flags[1, 0] ^ flags[1, 1] ^ bit
        sign = _sign(control, form)
        difference = sums[:, 0] - sums[:, 1]
        target = np.where(right[:, None], beta, form.kind.type(0))
        values[level] = sign * (target - gap - _side(difference, lost))
        gap = gap + _side(difference, kept) + sign * values[level]
        seeds[level] = correction
        seeds[level, :, 0] |= left_flag | right_flag << _ONE
        taken = np.where(right, right_flag, left_flag)
        for party in (0, 1):
            state[party] = _side(nodes[:, party], kept) ^ (correction & (np.uint64(0) - control[party])[:, None])
            control[party] = np.where(right, flags[1, party], flags[0, party]) ^ (control[party] & taken)
    return Corrections(seeds, values, _last(form, generator, alpha, beta, state, control, gap))


def evaluate(form: Form, generator: Generator, party: int, roots: Words, corrections: Corrections, x: Words) -> Ring:
    """One party's share of n functions' values, each at its own point.

    Args:
        form: Their sizes.
        generator: Under the key that they were made with.
        party: 0 or 1.
        roots: The party's seeds, shape `(n, 2)`.
        corrections: Of all n functions.
        x: Points, uint64 in `[0, 2**bits)`, shape `(n,)`.

    Returns:
        Shape `(n, payload)`.
    """
    pieces = [_walk(form, generator, party, roots[at], _part(corrections, at), x[at]) for at in _chunks(len(x))]
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def _walk(form: Form, generator: Generator, party: int, roots: Words, common: Corrections, x: Words) -> Ring:
    count = len(x)
    blocks = np.empty((2, count, 2), dtype=np.uint64)
    state, control = roots, np.full(count, party, dtype=np.uint64)
    total = np.zeros((count, form.payload), dtype=form.kind)
    for level in range(form.levels):
        bit = (x >> np.uint64(form.bits - 1 - level)) & _ONE
        blocks[0] = state
        blocks[0, :, 1] ^= bit
        blocks[1] = blocks[0]
        blocks[1, :, 1] ^= _VALUE
        node, value = generator.expand(blocks)
        total += _words(value, form)
        total += common.values[level] * control.astype(form.kind)[:, None]
        correction = common.seeds[level] & (np.uint64(0) - control)[:, None]
        control = (node[:, 0] ^ correction[:, 0] >> bit) & _ONE
        node ^= correction
        node[:, 0] &= _CLEAR
        state = node
    leaf = _leaf(generator, state, form) + common.leaves * control.astype(form.kind)[:, None, None]
    index = (x & np.uint64(form.leaves - 1)).astype(np.intp)
    total += leaf[np.arange(count), index]
    return np.asarray(-total if party else total)


def _part(corrections: Corrections, at: slice) -> Corrections:
    return Corrections(corrections.seeds[:, at], corrections.values[:, at], corrections.leaves[at])


def _children(generator: Generator, state: Words) -> Words:
    """Left and right seed, left and right value, of both parties' nodes `(party, n, 2)`: shape `(4, party, n, 2)`."""
    blocks = np.repeat(state[None], 4, axis=0)
    blocks[..., 1] ^= np.arange(4, dtype=np.uint64)[:, None, None]
    return generator.expand(blocks)


def _last(form: Form, generator: Generator, alpha: Words, beta: Ring, state: Words, control: Words, gap: Ring) -> Ring:
    """Corrections of the last block: of the points under it, those below alpha have the value beta."""
    inside = np.arange(form.leaves, dtype=np.uint64) < (alpha & np.uint64(form.leaves - 1))[:, None]
    target = np.where(inside[..., None], beta[:, None], form.kind.type(0))
    first, second = (_leaf(generator, state[party], form) for party in (0, 1))
    return np.asarray(_sign(control, form)[:, None] * (target - gap[:, None] - first + second))


def _leaf(generator: Generator, state: Words, form: Form) -> Ring:
    blocks = state.copy()
    blocks[:, 1] ^= _LEAF
    words = generator.expand(blocks).view(form.kind)
    return np.reshape(words[:, : form.leaves * form.payload], (len(state), form.leaves, form.payload))


def _words(blocks: Words, form: Form) -> Ring:
    """The first `payload` words of each block."""
    return np.asarray(blocks.view(form.kind)[..., : form.payload])


def _sign(control: Words, form: Form) -> Ring:
    """1 where party 0 applies a correction, -1 where party 1 does; shape `(n, 1)`."""
    minus = form.kind.type((1 << 8 * form.kind.itemsize) - 1)
    return np.asarray(np.where(control[1] == 1, minus, form.kind.type(1))[:, None])


def _side(values: Ring, side: npt.NDArray[np.intp]) -> Ring:
    """From `(2, n, ...)`, the left or right entry of each of the n."""
    return np.asarray(values[side, np.arange(values.shape[1])])
