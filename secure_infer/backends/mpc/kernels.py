"""The bilinear maps of a network over Z_2^64, which the parties and the dealer must compute alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from secure_infer.graph.interpret import windows
from secure_infer.graph.types import Integers

LINEAR, CONV, WEIGHTED = "linear", "conv", "weighted"
_LIMB_BITS = 22
_LIMBS = 3
_DEPTH = 1 << (53 - 2 * _LIMB_BITS)  # products of two limbs that float64 adds up exactly
_FEW_ROWS = 8  # below this, splitting into limbs costs more than it saves


def bilinear(spec: Mapping[str, Any], x: Integers, w: Integers) -> Integers:
    """Apply a bilinear map modulo 2^64.

    Args:
        spec: `{"map": "linear" | "weighted"}`, or `{"map": "conv", "stride", "padding", "dilation", "groups"}`.
        x: int64, shape `(n, in)`, `(n, channels, height, width)` or, for a weighted sum, `(n, terms, *shape)`.
        w: int64, shape `(out, in)`, `(out, channels / groups, height, width)` or `(terms, channels | 1, 1, ...)`.

    Returns:
        int64, shape `(n, out)`, `(n, out, height, width)` or `(n, *shape)`.
    """
    if spec["map"] == LINEAR:
        return matmul(x, w.T)
    if spec["map"] == CONV:
        return _convolve(spec, x, w)
    return np.asarray((x * w).sum(axis=1))


def matmul(a: Integers, b: Integers) -> Integers:
    """`a @ b` modulo 2^64, for int64 of shapes `(m, k)` and `(k, n)`.

    Integer products of matrices are slow, so large ones are split into 22-bit limbs and multiplied in float64, where
    sums of up to 512 products of limbs are exact; the limbs' products that are multiples of 2^64 are left out.
    """
    if min(len(a), b.shape[1]) < _FEW_ROWS:
        return np.asarray(a @ b)
    result = np.zeros((len(a), b.shape[1]), dtype=np.int64)
    for start in range(0, a.shape[1], _DEPTH):
        left, right = _limbs(a[:, start : start + _DEPTH]), _limbs(b[start : start + _DEPTH])
        for i, x in enumerate(left):
            for j, y in enumerate(right[: _LIMBS - i]):
                result += (x @ y).astype(np.int64) << (_LIMB_BITS * (i + j))
    return result


def _limbs(values: Integers) -> list[npt.NDArray[np.float64]]:
    """Float64 limbs whose sum, weighted by powers of 2^22, is `values` modulo 2^64; one if the values are small."""
    bound = 1 << (_LIMB_BITS - 1)
    if values.size and -bound < values.min() and values.max() < bound:
        return [values.astype(np.float64)]
    unsigned, mask = values.view(np.uint64), np.uint64((1 << _LIMB_BITS) - 1)
    return [(unsigned >> np.uint64(_LIMB_BITS * limb) & mask).astype(np.float64) for limb in range(_LIMBS)]


def _convolve(spec: Mapping[str, Any], x: Integers, w: Integers) -> Integers:
    outputs, inputs, height, width = w.shape
    groups = spec["groups"]
    view = windows(x, (height, width), tuple(spec["stride"]), tuple(spec["padding"]), tuple(spec["dilation"]))
    n, _, out_height, out_width = view.shape[:4]
    view = view.reshape(n, groups, inputs, out_height, out_width, height, width).transpose(1, 0, 3, 4, 2, 5, 6)
    columns = view.reshape(groups, n * out_height * out_width, inputs * height * width)
    rows = w.reshape(groups, outputs // groups, -1)
    products = np.stack([matmul(column, row.T) for column, row in zip(columns, rows, strict=True)])
    images = products.reshape(groups, n, out_height, out_width, -1).transpose(1, 0, 4, 2, 3)
    return np.ascontiguousarray(images.reshape(n, outputs, out_height, out_width))
