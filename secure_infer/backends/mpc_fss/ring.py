"""Arithmetic modulo 2^16, 2^32 or 2^64 on unsigned arrays; matrix products exactly, through float64."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from secure_infer.graph.interpret import windows
from secure_infer.graph.types import Integers, Pair, Shape

Ring = npt.NDArray[Any]
"""Elements of a ring, as unsigned integers."""

KINDS: Mapping[int, np.dtype[Any]] = {bits: np.dtype(f"u{bits // 8}") for bits in (16, 32, 64)}
"""Types of the rings' elements, by bits."""
_LIMB_BITS = 16
GREATEST_DEPTH = 1 << 18
"""Terms of one sum for which products of 16-bit limbs, up to four at a time, add up exactly in float64."""


def kind_of(bits: int) -> np.dtype[Any]:
    """The type of a ring's elements."""
    return KINDS[bits]


def wire_kind(bits: int) -> np.dtype[Any]:
    """The narrowest unsigned type that holds so many bits."""
    return next(np.dtype(f"u{size}") for size in (1, 2, 4, 8) if 8 * size >= bits)


def embed(values: Integers, kind: np.dtype[Any]) -> Ring:
    """Signed integers as elements of a ring."""
    return values.astype(kind)


def low_bits(values: Ring, bits: int) -> Ring:
    """Values modulo `2**bits`, in their own type."""
    return values if bits >= 8 * values.dtype.itemsize else values & values.dtype.type((1 << bits) - 1)


class Factor:
    """A matrix `(depth, columns)` that many others are multiplied by, split into float64 limbs once.

    With limbs of 16 bits, `X W = sum_d 2^(16 d) sum_{i + j = d} X_i W_j`; the inner sums are single products of
    stacked limbs, and those with d beyond the ring vanish.

    Args:
        matrix: Elements of a ring.
    """

    def __init__(self, matrix: Ring) -> None:
        self.kind = matrix.dtype
        limbs = self.kind.itemsize * 8 // _LIMB_BITS
        signed = matrix.view(f"i{self.kind.itemsize}")
        bound = 1 << (_LIMB_BITS - 1)
        self._single = bool(limbs > 1 and matrix.size and -bound <= signed.min() and signed.max() < bound)
        parts = [signed.astype(np.float64)] if self._single else _limbs(matrix)[::-1]
        self._stacked = np.ascontiguousarray(np.concatenate(parts, axis=0))
        self._depth = matrix.shape[0]

    def left(self, x: Ring) -> Ring:
        """`x @ matrix` in the ring, for x of shape `(rows, depth)`."""
        limbs = _limbs(x)
        if self._single:
            pieces = [limb @ self._stacked for limb in limbs]
        else:
            row = np.concatenate(limbs, axis=1) if len(limbs) > 1 else limbs[0]
            total = len(limbs) * self._depth
            pieces = [
                row[:, : (d + 1) * self._depth] @ self._stacked[total - (d + 1) * self._depth :]
                for d in range(len(limbs))
            ]
        result = pieces[0].astype(np.int64).astype(self.kind)
        for d, piece in enumerate(pieces[1:], 1):
            result += piece.astype(np.int64).astype(self.kind) << self.kind.type(_LIMB_BITS * d)
        return result


def _limbs(values: Ring) -> list[npt.NDArray[np.float64]]:
    """16-bit limbs, least first."""
    size = values.dtype.itemsize // 2
    if size == 1:
        return [values.astype(np.float64)]
    split = np.ascontiguousarray(values).view("<u2").reshape(*values.shape, size)
    return [split[..., limb].astype(np.float64) for limb in range(size)]


class Affine:
    """A linear layer's map `x -> W x`, for one W, in the shapes that the layer has.

    Args:
        parameters: `{"weight"}` of a Linear, or also `stride padding dilation groups` of a Conv2d.
        weight: Elements of a ring, shape `(out, in)` or `(out, in / groups, height, width)`.
    """

    def __init__(self, parameters: Mapping[str, Any], weight: Ring) -> None:
        self._parameters, self._shape = parameters, weight.shape
        groups = parameters.get("groups", 1)
        rows = weight.reshape(groups, weight.shape[0] // groups, -1)
        self._factors = [Factor(np.ascontiguousarray(group.T)) for group in rows]

    def __call__(self, x: Ring) -> Ring:
        """`W x` for a batch `(n, *input shape)`."""
        if len(self._shape) == 2:
            return self._factors[0].left(x)
        return self._convolve(x)

    def _convolve(self, x: Ring) -> Ring:
        outputs, inputs, height, width = self._shape
        p = self._parameters
        view = windows(x, (height, width), pair(p["stride"]), pair(p["padding"]), pair(p["dilation"]))
        n, _, out_height, out_width = view.shape[:4]
        groups = len(self._factors)
        view = view.reshape(n, groups, inputs, out_height, out_width, height, width).transpose(1, 0, 3, 4, 2, 5, 6)
        columns = view.reshape(groups, n * out_height * out_width, inputs * height * width)
        products = np.stack([factor.left(column) for factor, column in zip(self._factors, columns, strict=True)])
        images = products.reshape(groups, n, out_height, out_width, -1).transpose(1, 0, 4, 2, 3)
        return images.reshape(n, outputs, out_height, out_width)


def depth_of(weight: Shape) -> int:
    """Terms of one output's sum."""
    return math.prod(weight[1:])


def pair(value: Any) -> Pair:
    """A list of two integers as a pair."""
    return int(value[0]), int(value[1])
