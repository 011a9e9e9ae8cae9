"""Sums of many ciphertexts times whole numbers, as exact products of matrices: batches have a number for each weight.

Residues are cut into digits short enough that a sum of products stays below 2**53, up to which floating point is exact;
so the linear algebra library does what would else take one call of SEAL for each weight. The sums are then put together
modulo each prime. Results equal SEAL's to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from secure_infer.backends.ckks.residues import Residues
from secure_infer.backends.ckks.sparse import Indices, Reals

_EXACT_BITS = 53
_WEIGHT_BITS = 26
_AT_ONCE = 1024
"""Coefficients of all sources that are looked at together: they should fit the cache."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a matrix that read the same sources.

    Attributes:
        numbers: Which rows, shape `(rows,)`.
        sources: Which sources, shape `(sources,)`.
        weights: Whole numbers, shape `(rows, sources)`.
    """

    numbers: Indices
    sources: Indices
    weights: Indices


def grouped(rows: Sequence[tuple[Indices, Indices]]) -> list[Rows]:
    """Rows, each given by its sources and weights, by what they read."""
    found: dict[bytes, list[int]] = {}
    for number, (sources, _) in enumerate(rows):
        found.setdefault(sources.tobytes(), []).append(number)
    return [Rows(np.array(some), rows[some[0]][0], np.stack([rows[i][1] for i in some])) for some in found.values()]


def weighted_sums(sources: Sequence[Residues], groups: Sequence[Rows], primes: Sequence[int]) -> Residues:
    """The sums of all rows, shape `(rows, polynomials, primes, N)`."""
    polynomials, _, degree = sources[0].shape
    result = np.empty((sum(len(g.numbers) for g in groups), polynomials, len(primes), degree), np.uint64)
    digits = _digits(groups)
    for polynomial in range(polynomials):
        for number, prime in enumerate(primes):
            for start in range(0, degree, _AT_ONCE):
                part = slice(start, start + _AT_ONCE)
                block = np.stack([source[polynomial, number, part] for source in sources])
                result[:, polynomial, number, part] = _sums(block, groups, digits, len(result), prime)
    return result


def _digits(groups: Sequence[Rows]) -> list[list[Reals]]:
    """The weights of each group in digits of `_WEIGHT_BITS`, the highest first; only those have signs."""
    greatest = max(int(np.abs(g.weights).max(initial=0)) for g in groups)
    count = max(1, -(-greatest.bit_length() // _WEIGHT_BITS))
    masks = [-1] + [(1 << _WEIGHT_BITS) - 1] * (count - 1)
    shifts = [_WEIGHT_BITS * place for place in range(count)][::-1]
    return [[(g.weights >> s & m).astype(np.float64) for g in groups] for s, m in zip(shifts, masks, strict=True)]


def _sums(
    block: Residues, groups: Sequence[Rows], digits: Sequence[Sequence[Reals]], rows: int, prime: int
) -> Residues:
    """The sums modulo one prime; `block` has shape `(sources, coefficients)`."""
    terms = max(len(g.sources) for g in groups)
    width = _EXACT_BITS - _WEIGHT_BITS - terms.bit_length()
    shifts = range(0, prime.bit_length(), width)
    mask = np.uint64((1 << width) - 1)
    pieces = [(block >> np.uint64(shift) & mask).astype(np.float64) for shift in shifts]
    carried: npt.NDArray[np.int64] | None = None
    for weights in digits:
        parts = [] if carried is None else [(carried, _WEIGHT_BITS)]
        parts += [(_product(piece, groups, weights, rows), shift) for piece, shift in zip(pieces, shifts, strict=True)]
        carried = _reduced(parts, prime)
    assert carried is not None
    return carried.astype(np.uint64)


def _product(piece: Reals, groups: Sequence[Rows], weights: Sequence[Reals], rows: int) -> npt.NDArray[np.int64]:
    result = np.empty((rows, piece.shape[1]))
    for group, matrix in zip(groups, weights, strict=True):
        read = piece if len(group.sources) == len(piece) else piece[group.sources]
        result[group.numbers] = matrix @ read
    return result.astype(np.int64)


def _reduced(parts: Sequence[tuple[npt.NDArray[np.int64], int]], prime: int) -> npt.NDArray[np.int64]:
    """The sum of `part << shift` modulo a prime, if it is below `2**50 * prime`.

    Floating point tells the quotient to within one; integers, which wrap around, then tell the remainder.
    """
    near = sum(part.astype(np.float64) * 2.0**shift for part, shift in parts)
    total = sum(part << shift for part, shift in parts)
    rest = np.asarray(total - np.floor(near / prime).astype(np.int64) * prime)
    rest += prime * (rest < 0)
    rest -= prime * (rest >= prime)
    return rest
