"""Exact evaluation in int64: the oracle of every test; and the same graph over the reals, the oracle of CKKS."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from secure_infer.graph.graph import INPUT, Graph
from secure_infer.graph.ops import Add, Conv2d, Linear, Lookup, Max, Op, Polynomial, QuantRelu, Reshape, Sign, Sum
from secure_infer.graph.types import Integers, TensorType, channelwise

Array = npt.NDArray[Any]
_EXACT_FLOAT = 1 << 53


def interpret(graph: Graph, x: Integers) -> Integers:
    """Evaluate the graph exactly.

    Args:
        graph: The network.
        x: Integers, shape `(n, *input shape)`.

    Returns:
        Integers, shape `(n, *output shape)`.
    """
    return trace(graph, x)[graph.output]


def trace(graph: Graph, x: Integers) -> dict[str, Integers]:
    """Every value of the graph for the inputs `x`, by name; shapes `(n, *shape)`."""
    values: dict[str, Integers] = {INPUT: np.asarray(x, dtype=np.int64)}
    for node in graph.nodes:
        inputs = (values[name] for name in node.inputs)
        values[node.name] = apply(node.op, *inputs, use_float=_fits_float(node.op, graph.types[node.name]))
    return values


def _fits_float(op: Op, kind: TensorType) -> bool:
    """Whether the sums of a matrix product, before its bias, are exact in float64."""
    if not isinstance(op, Linear | Conv2d):
        return False
    return max(abs(kind.low), abs(kind.high)) + int(np.abs(op.bias).max(initial=0)) < _EXACT_FLOAT


def interpret_real(graph: Graph, x: Integers) -> npt.NDArray[np.float64]:
    """Evaluate the graph over the reals, where a `Polynomial` does not round.

    Args:
        graph: The network.
        x: Integers, shape `(n, *input shape)`.

    Returns:
        Float64 in units of the output's scale, shape `(n, *output shape)`.
    """
    values: dict[str, Array] = {INPUT: np.asarray(x, dtype=np.float64)}
    for node in graph.nodes:
        inputs = [values[name] for name in node.inputs]
        if isinstance(node.op, Polynomial):
            values[node.name] = _monomials(node.op, inputs[0]) / float(1 << node.op.shift)
        else:
            values[node.name] = apply(node.op, *inputs, use_float=True, keep_float=True)
    return values[graph.output].astype(np.float64)


def apply(op: Op, *inputs: Array, use_float: bool = False, keep_float: bool = False) -> Array:
    """Apply one operation to batches of shape `(n, *shape)`.

    Args:
        op: The operation.
        inputs: As many batches as the operation reads.
        use_float: Multiply matrices in float64, which is exact while sums stay below 2**53 and far faster.
        keep_float: Leave results in float64, for evaluation over the reals.
    """
    x = inputs[0]
    match op:
        case Linear():
            return np.asarray(_matmul(x, op.weight.T, use_float, keep_float) + op.bias)
        case Conv2d():
            return _convolve(op, x, use_float, keep_float)
        case Add():
            return np.asarray(op.gains[0] * x + op.gains[1] * inputs[1])
        case Sum():
            return np.asarray(windows(x, op.kernel, op.stride, op.padding).sum(axis=(-2, -1)))
        case Max():
            lowest = -np.inf if keep_float else np.iinfo(np.int64).min
            return np.asarray(windows(x, op.kernel, op.stride, op.padding, fill=lowest).max(axis=(-2, -1)))
        case Reshape():
            return x.reshape((x.shape[0], *op.shape))
        case Polynomial():
            half = (1 << op.shift) >> 1
            rounded = (_monomials(op, x) + half) >> op.shift
            return rounded if op.bound is None else np.clip(rounded, *op.bound)
        case Sign():
            threshold = channelwise(op.threshold[:, None], x.shape[1:])[0]
            return np.where(x >= threshold, 1, -1).astype(np.int64)
        case QuantRelu():
            return _count_thresholds(op, x)
        case Lookup():
            return _look_up(op, x)


def windows(
    x: Array,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
    fill: float = 0,
) -> Array:
    """Sliding windows of images `(n, c, h, w)`, as a view of shape `(n, c, out_h, out_w, kernel_h, kernel_w)`."""
    pads = ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2)
    padded = np.pad(x, pads, constant_values=fill) if any(padding) else x
    extent = tuple(d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True))
    view = np.lib.stride_tricks.sliding_window_view(padded, extent, axis=(2, 3))  # type: ignore[call-overload]
    return np.asarray(view[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]])


def _matmul(a: Array, b: Array, use_float: bool, keep_float: bool) -> Array:
    if not use_float:
        return np.asarray(a @ b)
    product = a.astype(np.float64) @ b.astype(np.float64)
    return product if keep_float else product.astype(np.int64)


def _convolve(op: Conv2d, x: Array, use_float: bool, keep_float: bool) -> Array:
    outputs, inputs, height, width = op.weight.shape
    view = windows(x, (height, width), op.stride, op.padding, op.dilation)
    n, _, out_h, out_w = view.shape[:4]
    view = view.reshape(n, op.groups, inputs, out_h, out_w, height, width)
    columns = view.transpose(1, 0, 3, 4, 2, 5, 6).reshape(op.groups, n * out_h * out_w, inputs * height * width)
    weight = op.weight.reshape(op.groups, outputs // op.groups, -1).transpose(0, 2, 1)
    product = _matmul(columns, weight, use_float, keep_float).reshape(op.groups, n, out_h, out_w, -1)
    images = product.transpose(1, 0, 4, 2, 3).reshape(n, outputs, out_h, out_w)
    return np.asarray(images + op.bias[:, None, None])


def _monomials(op: Polynomial, x: Array) -> Array:
    """`sum_d coefficients[d] * x**d` by Horner's rule."""
    coefficients = channelwise(op.coefficients, x.shape[1:])
    result = np.broadcast_to(coefficients[-1], x.shape).astype(x.dtype)
    for coefficient in coefficients[-2::-1]:
        result = result * x + coefficient
    return result


def _count_thresholds(op: QuantRelu, x: Array) -> Array:
    result = np.full(x.shape, op.low, dtype=np.int64)
    rows = np.atleast_2d(op.thresholds)
    if len(rows) == 1:
        return result + np.searchsorted(rows[0], x, side="right")
    for channel, row in enumerate(rows):
        result[:, channel] += np.searchsorted(row, x[:, channel], side="right")
    return result


def _look_up(op: Lookup, x: Array) -> Array:
    rows = np.atleast_2d(op.table)
    index = x.astype(np.int64) - op.start
    if len(rows) == 1:
        return np.asarray(rows[0][index])
    channel = np.arange(len(rows)).reshape((1, -1) + (1,) * (x.ndim - 2))
    return np.asarray(rows[channel, index])
