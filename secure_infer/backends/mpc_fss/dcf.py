"""Distributed comparison functions: two short keys whose evaluations at x add up to `beta` if x < alpha, else to zero.

The construction is that of Boyle, Chandran, Gilboa, Gupta, Ishai, Kumar and Rathee (EUROCRYPT 2021, figure 1), with two
changes. The last levels of the tree are cut off: one node serves several neighboring points
(Boyle, Gilboa and Ishai, CCS 2016, section 3.2.1), also more than share a block. And both control bits of a level sit
in the two low bits of its correction of seeds, which seeds keep clear, so that seeds have 126 bits.

Many keys are made and evaluated at once: an array's second axis counts them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from secure_infer.backends.mpc_fss.generator import (
    CLEAR,
    LEAF,
    NEXT,
    ONE,
    VALUE,
    Form,
    Generator,
    Ring,
    Words,
    both_sides,
    joined,
    kinds_of,
    leaf_words,
    of_neighbors,
    words_of,
)

_WORD = np.dtype(np.uint64)
_WORDS = 1 << 13  # blocks of values that are made together: they stay in the processor's cache
_WALKED = 1 << 16  # and that are evaluated together
_FORESEEN = 1 << 17  # blocks that are made for what is foreseen


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


def generate(form: Form, generator: Generator, alpha: Words, beta: Ring, roots: tuple[Words, Words]) -> Corrections:
    """The common part of the keys of n functions.

    Args:
        form: Their sizes.
        generator: Under the key that evaluation will use.
        alpha: uint64 in `[0, 2**bits)`, shape `(n,)`.
        beta: Values below alpha, shape `(n, payload)`.
        roots: Both parties' uniform seeds, each uint64 `(n, 2)`, from `clear_roots`.
    """
    pieces = [
        _grow(form, generator, alpha[at], beta[at], (roots[0][at], roots[1][at])) for at in _chunks(form, len(alpha))
    ]
    if len(pieces) == 1:
        return pieces[0]
    return Corrections(
        np.concatenate([piece.seeds for piece in pieces], axis=1),
        np.concatenate([piece.values for piece in pieces], axis=1),
        np.concatenate([piece.leaves for piece in pieces]),
    )


def _chunks(form: Form, count: int) -> list[slice]:
    """What is made together; one empty chunk if there is nothing."""
    size = max(1, _WORDS // max(form.blocks, form.leaf_blocks))
    return [slice(start, start + size) for start in range(0, max(count, 1), size)]


def _grow(form: Form, generator: Generator, alpha: Words, beta: Ring, roots: tuple[Words, Words]) -> Corrections:
    count = len(alpha)
    seeds = np.empty((form.levels, count, 2), dtype=np.uint64)
    values = np.empty((form.levels, count, form.payload), dtype=form.kind)
    state = np.stack(roots)  # (party, n, 2)
    control = np.zeros((2, count), dtype=np.uint64)
    control[1] = 1
    kinds = both_sides(form)
    gap = np.zeros((count, form.payload), dtype=form.kind)  # difference of the parties' sums on the path to alpha
    for level in range(form.levels):
        bit = (alpha >> np.uint64(form.bits - 1 - level)) & ONE
        right = bit.astype(bool)
        children = generator.children(state, kinds)  # (kind and side, party, n, 2)
        flags = children[:2, :, :, 0] & ONE
        nodes = children[:2].copy()
        nodes[..., 0] &= CLEAR
        sums = words_of(children[2:].reshape(form.blocks, 2, 2, count, 2), form)  # (side, party, n, payload)
        kept, lost = np.where(right, 1, 0), np.where(right, 0, 1)
        correction = _side(nodes[:, 0] ^ nodes[:, 1], lost)
        left_flag, right_flag = flags[0, 0] ^ flags[0, 1] ^ bit ^ ONE, flags[1, 0] ^ flags[1, 1] ^ bit
        sign = _sign(control, form)
        difference = sums[:, 0] - sums[:, 1]
        target = np.where(right[:, None], beta, form.kind.type(0))
        values[level] = sign * (target - gap - _side(difference, lost))
        gap = gap + _side(difference, kept) + sign * values[level]
        seeds[level] = correction
        seeds[level, :, 0] |= left_flag | right_flag << ONE
        taken = np.where(right, right_flag, left_flag)
        for party in (0, 1):
            state[party] = _side(nodes[:, party], kept) ^ (correction & (np.uint64(0) - control[party])[:, None])
            control[party] = np.where(right, flags[1, party], flags[0, party]) ^ (control[party] & taken)
    return Corrections(seeds, values, _last(form, generator, alpha, beta, state, control, gap))


@dataclass(frozen=True, eq=False)
class Foresight:
    """All nodes of one level of a party's n trees: what can be evaluated before the points are known.

    Attributes:
        nodes: uint64, shape `(n, 2**level, 2)`; bit 0 of the first word is the control bit.
        totals: Sums of values on the way to each node, shape `(n, 2**level, payload)`.
    """

    nodes: Words
    totals: Ring

    @property
    def level(self) -> int:
        """Levels above these nodes."""
        return self.nodes.shape[1].bit_length() - 1


def foreseeable(form: Form, count: int) -> int:
    """The level that is worth being foreseen for so many functions: one that takes a few milliseconds."""
    blocks = max(1, count) * (1 + form.blocks)
    return max(0, min(form.levels, (_FORESEEN // blocks).bit_length() - 2))


def foresee(form: Form, generator: Generator, party: int, roots: Words, corrections: Corrections) -> Foresight:
    """Evaluate the upper levels of one party's trees at all nodes; `evaluate` goes on from there."""
    level, count = foreseeable(form, len(roots)), len(roots)
    nodes, control = roots[:, None], np.full((count, 1), party, dtype=np.uint64)
    totals = np.zeros((count, 1, form.payload), dtype=form.kind)
    kinds = both_sides(form)
    for seeds, values in zip(corrections.seeds[:level], corrections.values[:level], strict=True):
        made = generator.children(nodes, kinds)  # (kind and side, n, nodes, 2)
        sums = words_of(made[2:].reshape(form.blocks, -1, 2), form).reshape(2, *nodes.shape[:2], form.payload)
        corrected = totals + values[:, None] * control.astype(form.kind)[..., None]
        totals = _siblings(sums[0] + corrected, sums[1] + corrected)
        below = made[:2] ^ seeds[:, None] * control[..., None]
        flags = seeds[:, :1] * control
        control = _siblings(made[0, ..., 0] ^ flags, made[1, ..., 0] ^ flags >> ONE) & ONE
        below[..., 0] &= CLEAR
        nodes = _siblings(below[0], below[1])
    nodes = nodes.copy()
    nodes[..., 0] |= control
    return Foresight(nodes, totals)


def _siblings(left: Ring, right: Ring) -> Ring:
    """Left and right children of all nodes, `(n, nodes, ...)` each, side by side."""
    pairs = np.stack([left, right], axis=2)
    return pairs.reshape(len(left), -1, *left.shape[2:])


def evaluate(
    form: Form,
    generator: Generator,
    party: int,
    roots: Words,
    corrections: Corrections,
    x: Words,
    foreseen: Foresight | None = None,
) -> Ring:
    """One party's share of n functions' values, each at its own point.

    Args:
        form: Their sizes.
        generator: Under the key that they were made with.
        party: 0 or 1.
        roots: The party's seeds, shape `(n, 2)`.
        corrections: Of all n functions.
        x: Points, uint64 in `[0, 2**bits)`, shape `(n,)`.
        foreseen: What `foresee` made of the same functions.

    Returns:
        Shape `(n, payload)`.
    """
    size = max(1, _WALKED // (form.blocks * (form.levels + 1)))
    pieces = []
    for start in range(0, max(len(x), 1), size):
        at = slice(start, start + size)
        begun = _entered(form, foreseen, at, x[at]) if foreseen else _at_roots(form, party, roots[at])
        level = foreseen.level if foreseen else 0
        pieces.append(_walk(form, generator, begun, _part(corrections, at, level), x[at]))
    total = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    return np.negative(total, out=total) if party else total


_Begun = tuple[Words, Words, Ring]
"""Nodes `(n, 2)`, their control bits `(n,)`, and sums of values on the way to them `(n, payload)`."""


def _at_roots(form: Form, party: int, roots: Words) -> _Begun:
    return roots, np.full(len(roots), party, dtype=np.uint64), np.zeros((len(roots), form.payload), form.kind)


def _entered(form: Form, foreseen: Foresight, at: slice, x: Words) -> _Begun:
    """The foreseen nodes on the way to points."""
    width = 1 << foreseen.level
    ways = x >> np.uint64(form.bits - foreseen.level) if foreseen.level else np.zeros_like(x)
    places = np.arange(0, width * len(x), width) + ways.astype(np.intp)
    nodes = foreseen.nodes[at].reshape(-1, 2).take(places, axis=0)
    control = nodes[:, 0] & ONE
    nodes[:, 0] ^= control
    return nodes, control, foreseen.totals[at].reshape(-1, form.payload).take(places, axis=0)


def _walk(form: Form, generator: Generator, begun: _Begun, common: Corrections, x: Words) -> Ring:
    """Down all trees at once: first level by level to the last node, then all values on the way together."""
    nodes, control, total = begun
    levels, count = len(common.seeds), len(x)
    bits = (x >> np.arange(form.cut + levels - 1, form.cut - 1, -1, dtype=np.uint64)[:, None]) & ONE
    way, controls = np.empty((levels + 1, count, 2), np.uint64), np.empty((levels + 1, count), np.uint64)
    way[0], controls[0] = nodes, control
    mask = np.empty((count, 2), np.uint64)
    for level, (bit, seeds) in enumerate(zip(bits, common.seeds, strict=True)):
        way[level, :, 1] ^= bit  # the side that is taken; the seed itself is not needed any more
        made = generator.expand(way[level], way[level + 1])
        np.negative(controls[level], out=mask[:, 0])
        mask[:, 1] = mask[:, 0]
        mask &= seeds
        flags = mask[:, 0] >> bit
        flags ^= made[:, 0]
        np.bitwise_and(flags, ONE, out=controls[level + 1])
        made ^= mask
        made[:, 0] &= CLEAR
    if levels:
        total += _values(form, generator, way[:-1], controls[:-1], common.values)
    leaf = x & np.uint64(form.leaves - 1)
    total += _below(form, generator, way[levels], leaf)
    total += _where(controls[levels], common.leaves[np.arange(count), leaf.astype(np.intp)], form)
    return total


def _values(form: Form, generator: Generator, way: Words, controls: Words, corrections: Ring) -> Ring:
    """Sums of the corrected values of all nodes on the way, `(n, payload)`."""
    tweaks = kinds_of(VALUE, form.blocks).reshape(-1, 1, 1)
    blocks = np.empty((form.blocks, *way.shape), np.uint64)
    blocks[:] = way
    blocks[..., 1] ^= tweaks
    words = generator.expand(blocks).view(form.kind).sum(axis=1, dtype=form.kind)  # (blocks, n, words)
    return np.asarray(
        joined(words)[..., : form.payload] + _where(controls, corrections, form).sum(axis=0, dtype=form.kind)
    )


def _where(controls: Words, values: Ring, form: Form) -> Ring:
    """Values `(..., payload)` where the control bits are set, else zero."""
    size = form.size
    if size > _WORD.itemsize or size & (size - 1):
        return np.asarray(values * controls.astype(form.kind)[..., None])
    whole = np.dtype(f"u{size}")  # numpy is slow on short axes
    masked = values.view(whole)[..., 0] & (np.uint64(0) - controls).astype(whole)
    return np.asarray(masked[..., None].view(form.kind))


def _part(corrections: Corrections, at: slice, level: int) -> Corrections:
    """The corrections of some functions, from a level on."""
    return Corrections(corrections.seeds[level:, at], corrections.values[level:, at], corrections.leaves[at])


def _last(form: Form, generator: Generator, alpha: Words, beta: Ring, state: Words, control: Words, gap: Ring) -> Ring:
    """Corrections of the last block: of the points under it, those below alpha have the value beta."""
    inside = np.arange(form.leaves, dtype=np.uint64) < (alpha & np.uint64(form.leaves - 1))[:, None]
    target = np.where(inside[..., None], beta[:, None], form.kind.type(0))
    first, second = (leaf_words(generator, state[party], form) for party in (0, 1))
    return np.asarray(_sign(control, form)[:, None] * (target - gap[:, None] - first + second))


def _below(form: Form, generator: Generator, nodes: Words, leaf: Words) -> Ring:
    """The words of one point below each last node, `(n, payload)`; only its own blocks are made."""
    first = leaf // np.uint64(form.neighbors) * np.uint64(form.blocks)
    made = np.repeat(nodes[None], form.blocks, axis=0)
    made[..., 1] ^= kinds_of(LEAF, form.blocks)[:, None] + np.uint64(NEXT) * first
    words = of_neighbors(joined(generator.expand(made).view(form.kind)), form)[:, 0]
    if form.neighbors == 1:
        return np.asarray(words[:, 0])
    return np.asarray(words[np.arange(len(leaf)), (leaf % np.uint64(form.neighbors)).astype(np.intp)])


def _sign(control: Words, form: Form) -> Ring:
    """1 where party 0 applies a correction, -1 where party 1 does; shape `(n, 1)`."""
    minus = form.kind.type((1 << 8 * form.kind.itemsize) - 1)
    return np.asarray(np.where(control[1] == 1, minus, form.kind.type(1))[:, None])


def _side(values: Ring, side: npt.NDArray[np.intp]) -> Ring:
    """From `(2, n, ...)`, the left or right entry of each of the n."""
    return np.asarray(values[side, np.arange(values.shape[1])])
