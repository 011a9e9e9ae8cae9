"""Sparse matrices by their entries, and the linear part of every affine operation as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from secure_infer.graph.interpret import windows
from secure_infer.graph.ops import Add, Conv2d, Linear, Op, Polynomial, Reshape, Sum
from secure_infer.graph.types import Shape, channelwise

Reals = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

_DENSE = 1 << 24


@dataclass(frozen=True, eq=False)
class Matrix:
    """A sparse matrix by its nonzero entries, each position once.

    Attributes:
        rows: Row of each entry, shape `(entries,)`.
        cols: Column of each entry, shape `(entries,)`.
        values: Value of each entry, shape `(entries,)`.
        shape: Rows and columns.
    """

    rows: Indices
    cols: Indices
    values: Reals
    shape: tuple[int, int]

    def apply(self, x: Reals) -> Reals:
        """The product with a batch: `(n, columns)` to `(n, rows)`."""
        if self.shape[0] * self.shape[1] <= _DENSE:
            dense = np.zeros(self.shape)
            dense[self.rows, self.cols] = self.values
            return np.asarray(x @ dense.T)
        result = np.empty((len(x), self.shape[0]))
        for sample, row in zip(x, result, strict=True):
            row[:] = np.bincount(self.rows, self.values * sample[self.cols], self.shape[0])
        return result

    def after(self, first: Matrix) -> Matrix:
        """The product `self @ first`."""
        order = np.argsort(first.rows, kind="stable")
        start, stop = np.searchsorted(first.rows[order], [self.cols, self.cols + 1])
        count = stop - start
        mine = np.repeat(np.arange(len(count)), count)
        theirs = order[np.repeat(start - np.cumsum(count) + count, count) + np.arange(len(mine))]
        values = self.values[mine] * first.values[theirs]
        product = Matrix(self.rows[mine], first.cols[theirs], values, (self.shape[0], first.shape[1]))
        return product if len(np.unique(first.cols)) == len(first.cols) else total([product])


def identity(size: int) -> Matrix:
    """The identity."""
    return Matrix(np.arange(size), np.arange(size), np.ones(size), (size, size))


def total(matrices: Sequence[Matrix]) -> Matrix:
    """The sum of matrices of one shape."""
    shape = matrices[0].shape
    codes = np.concatenate([m.rows * shape[1] + m.cols for m in matrices])
    unique, which = np.unique(codes, return_inverse=True)
    values = np.bincount(which, np.concatenate([m.values for m in matrices]), len(unique))
    kept = values != 0
    return Matrix(unique[kept] // shape[1], unique[kept] % shape[1], values[kept], shape)


def matrix_of(op: Op, argument: int, source: Shape, result: Shape) -> Matrix:
    """What an affine operation does to one of its arguments, biases aside.

    Args:
        op: A linear layer, sum, addition, reshape, or polynomial of degree one.
        argument: Which one.
        source: Shape of the argument.
        result: Shape of the result.
    """
    size = int(np.prod(source))
    match op:
        case Linear():
            rows, cols = np.indices(op.weight.shape)
            return _entries(rows, cols, op.weight, op.weight.shape)
        case Conv2d():
            return _convolution(op, source, result)
        case Sum():
            seen = windows(_numbered(source), op.kernel, op.stride, op.padding)[0]
            rows = np.arange(int(np.prod(result))).reshape(*result, 1, 1)
            return _entries(rows, seen - 1, seen > 0, (int(np.prod(result)), size))
        case Add():
            gains = np.full(size, op.gains[argument])
        case Polynomial():
            columns = channelwise(op.coefficients[..., :2], source).astype(np.float64) / 2.0**op.shift
            gains = np.broadcast_to(columns[1] if len(columns) > 1 else 0.0, source).reshape(-1)
        case Reshape():
            gains = np.ones(size)
        case _:
            raise TypeError(f"{type(op).__name__} is not affine")
    return _entries(np.arange(size), np.arange(size), gains, (size, size))


def _convolution(op: Conv2d, source: Shape, result: Shape) -> Matrix:
    outputs, inputs, *kernel = op.weight.shape
    seen = windows(_numbered(source), (kernel[0], kernel[1]), op.stride, op.padding, op.dilation)[0]
    seen = seen.reshape(op.groups, 1, inputs, *result[1:], *kernel)
    weight = op.weight.reshape(op.groups, outputs // op.groups, inputs, 1, 1, *kernel)
    rows = np.arange(int(np.prod(result))).reshape(op.groups, outputs // op.groups, 1, *result[1:], 1, 1)
    return _entries(rows, seen - 1, weight * (seen > 0), (int(np.prod(result)), int(np.prod(source))))


def _numbered(shape: Shape) -> Indices:
    """An image whose elements are numbered from one, so that padding is told by its zeros."""
    return np.arange(1, int(np.prod(shape)) + 1).reshape(1, *shape)


def _entries(rows: Indices, cols: Indices, values: npt.NDArray[Any], shape: tuple[int, ...]) -> Matrix:
    """The nonzero ones of entries, of which rows, columns and values broadcast against each other."""
    every = np.broadcast_shapes(rows.shape, cols.shape, values.shape)
    values = np.broadcast_to(values, every)
    kept = np.nonzero(values)
    at = (np.broadcast_to(rows, every)[kept], np.broadcast_to(cols, every)[kept])
    return Matrix(*at, values[kept].astype(np.float64), (shape[0], shape[1]))
