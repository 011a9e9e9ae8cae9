"""The closed set of operations.

Every value is an integer tensor with `real = scale * integer`. The batch axis is never part of a shape. Weights,
biases and thresholds are int64 arrays, biases and thresholds in units of the accumulator they meet.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TypeAlias, Union

import numpy as np

from secure_infer.graph.types import (
    ACCUMULATOR_BITS,
    MOST_ELEMENTS,
    Integers,
    Pair,
    Scale,
    Shape,
    TensorType,
    TypeProblem,
)


def _require(condition: bool, what: str, fix: str) -> None:
    if not condition:
        raise TypeProblem(what, fix)


def _require_rows(values: Integers, shape: Shape, label: str) -> None:
    rows = np.atleast_2d(values).shape[0]
    _require(
        rows in (1, shape[0]),
        f"Expected {label} with 1 or {shape[0]} rows, got {rows}.",
        "give one row for the tensor or one for each channel.",
    )


def _pooled(size: int, kernel: int, stride: int, padding: int) -> int:
    return (size + 2 * padding - kernel) // stride + 1


def _window_shape(shape: Shape, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair = (1, 1)) -> Pair:
    _require(len(shape) == 3, f"Expected an image (channels, height, width), got shape {shape}.", "reshape first.")
    _require(
        min(*kernel, *stride, *dilation) >= 1 and min(padding) >= 0,
        f"kernel {kernel}, stride {stride}, dilation {dilation} or padding {padding} is out of range.",
        "use positive sizes and a padding of zero or more.",
    )
    padded = shape[0] * (shape[1] + 2 * padding[0]) * (shape[2] + 2 * padding[1])
    _require(padded <= MOST_ELEMENTS, f"Padded by {padding}, the image has {padded} elements.", "pad less.")
    extent = [dilation[i] * (kernel[i] - 1) + 1 for i in (0, 1)]
    height, width = (_pooled(shape[i + 1], extent[i], stride[i], padding[i]) for i in (0, 1))
    _require(
        height > 0 and width > 0,
        f"A {kernel} window does not fit the {shape[1:]} image.",
        "use a smaller kernel or more padding.",
    )
    return height, width


def _combine(scale: Scale, factor: Scale) -> Scale:
    if len(factor) == 1:
        return tuple(s * factor[0] for s in scale)
    return tuple(scale[0] * f for f in factor)


def _affine_range(rows: Integers, bias: Integers, low: int, high: int) -> Pair:
    """Exact range of `rows @ x + bias` for x in [low, high]; plain integers, so nothing can overflow."""
    positive = [int(v) for v in np.where(rows > 0, rows, 0).sum(axis=1)]
    negative = [int(v) for v in np.where(rows < 0, rows, 0).sum(axis=1)]
    offset = [int(v) for v in bias]
    least = min(p * low + n * high + b for p, n, b in zip(positive, negative, offset, strict=True))
    most = max(p * high + n * low + b for p, n, b in zip(positive, negative, offset, strict=True))
    return least, most


@dataclass(frozen=True, eq=False)
class Linear:
    """`y = weight @ x + bias`.

    Attributes:
        weight: Shape `(out, in)`.
        bias: Shape `(out,)`, in accumulator units.
        weight_scale: Real value of one weight unit: one, or one for each output.
    """

    weight: Integers
    bias: Integers
    weight_scale: Scale = (1.0,)
    arity = 1

    def infer(self, x: TensorType) -> TensorType:
        """Type of the output for an input of type `x`."""
        outputs, inputs = self.weight.shape
        _require(
            x.shape == (inputs,),
            f"Expected input shape ({inputs},), got {x.shape}.",
            "flatten the input or give the layer its true number of features.",
        )
        _require(len(x.scale) == 1, "The input has one scale a channel.", "requantize it before this layer.")
        _require(
            self.bias.shape == (outputs,),
            f"Expected {outputs} biases, got {self.bias.shape}.",
            "give one bias for each output.",
        )
        _require(len(self.weight_scale) in (1, outputs), "weight_scale has a wrong length.", "give 1 or `out` values.")
        low, high = _affine_range(self.weight, self.bias, x.low, x.high)
        return TensorType((outputs,), low, high, _combine(x.scale, self.weight_scale))


@dataclass(frozen=True, eq=False)
class Conv2d:
    """Two-dimensional cross-correlation with zero padding, as in torch.

    Attributes:
        weight: Shape `(out, in / groups, height, width)`.
        bias: Shape `(out,)`, in accumulator units.
        weight_scale: Real value of one weight unit: one, or one for each output channel.
    """

    weight: Integers
    bias: Integers
    weight_scale: Scale = (1.0,)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    arity = 1

    def infer(self, x: TensorType) -> TensorType:
        """Type of the output for an input of type `x`."""
        outputs, inputs, kernel_height, kernel_width = self.weight.shape
        kernel = (kernel_height, kernel_width)
        height, width = _window_shape(x.shape, kernel, self.stride, self.padding, self.dilation)
        _require(
            x.shape[0] == inputs * self.groups,
            f"Expected {inputs * self.groups} input channels, got {x.shape[0]}.",
            "give the layer its true number of channels and groups.",
        )
        _require(
            outputs % self.groups == 0,
            f"{outputs} outputs do not divide into {self.groups} groups.",
            "use a number of groups that divides the outputs.",
        )
        _require(len(x.scale) == 1, "The input has one scale a channel.", "requantize it before this layer.")
        _require(
            self.bias.shape == (outputs,),
            f"Expected {outputs} biases, got {self.bias.shape}.",
            "give one bias for each output channel.",
        )
        _require(len(self.weight_scale) in (1, outputs), "weight_scale has a wrong length.", "give 1 or `out` values.")
        # Padding puts zeros beside the inputs, so the range of an input is widened to hold zero.
        low, high = (min(x.low, 0), max(x.high, 0)) if any(self.padding) else (x.low, x.high)
        low, high = _affine_range(self.weight.reshape(outputs, -1), self.bias, low, high)
        return TensorType((outputs, height, width), low, high, _combine(x.scale, self.weight_scale))


@dataclass(frozen=True, eq=False)
class Add:
    """`y = gains[0] * a + gains[1] * b`, where the integer gains bring both to one scale."""

    gains: Pair = (1, 1)
    arity = 2

    def infer(self, a: TensorType, b: TensorType) -> TensorType:
        """Type of the output for inputs of types `a` and `b`."""
        _require(a.shape == b.shape, f"Shapes {a.shape} and {b.shape} differ.", "add tensors of one shape.")
        _require(min(self.gains) > 0, f"Expected positive gains, got {self.gains}.", "negate the layer before.")
        left, right = (np.asarray(t.scale) / g for t, g in zip((a, b), self.gains, strict=True))
        _require(
            bool(np.allclose(left, right, rtol=1e-2)),
            f"Scales {a.scale} and {b.scale} do not meet.",
            "requantize both branches to one scale.",
        )
        low = self.gains[0] * a.low + self.gains[1] * b.low
        high = self.gains[0] * a.high + self.gains[1] * b.high
        return TensorType(a.shape, low, high, tuple(float(s) for s in np.atleast_1d(left)))


@dataclass(frozen=True, eq=False)
class Sum:
    """Sum over windows. `divisor` moves only the scale, so an average pool is a sum with `divisor = window size`."""

    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)
    divisor: int = 1
    arity = 1

    def infer(self, x: TensorType) -> TensorType:
        """Type of the output for an input of type `x`."""
        height, width = _window_shape(x.shape, self.kernel, self.stride, self.padding)
        window = self.kernel[0] * self.kernel[1]
        low, high = (min(x.low, 0), max(x.high, 0)) if any(self.padding) else (x.low, x.high)
        return TensorType(
            (x.shape[0], height, width), window * low, window * high, tuple(s / self.divisor for s in x.scale)
        )


@dataclass(frozen=True, eq=False)
class Max:
    """Maximum over windows; positions outside the image never win."""

    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)
    arity = 1

    def infer(self, x: TensorType) -> TensorType:
        """Type of the output for an input of type `x`."""
        height, width = _window_shape(x.shape, self.kernel, self.stride, self.padding)
        _require(
            all(2 * p <= k for p, k in zip(self.padding, self.kernel, strict=True)),
            f"padding {self.padding} is more than half of the kernel {self.kernel}.",
            "pad less.",
        )
        return replace(x, shape=(x.shape[0], height, width))


@dataclass(frozen=True, eq=False)
class Reshape:
    """The same elements, in the same (row-major) order, under another shape."""

    shape: Shape
    arity = 1

    def infer(self, x: TensorType) -> TensorType:
        """Type of the output for an input of type `x`."""
        size = int(np.prod(self.shape, dtype=np.int64))
        _require(size == x.size, f"Can't reshape {x.size} elements to {self.shape}.", "keep the number of elements.")
        _require(
            len(x.scale) == 1 or self.shape[0] == x.shape[0],
            "The input has one scale a channel.",
            "requantize it before reshaping.",
        )
        return replace(x, shape=self.shape)


@dataclass(frozen=True, eq=False)
class Polynomial:
    """`y = (sum_d coefficients[d] * x**d + 2**(shift - 1)) >> shift`: an integer polynomial, then a rounding shift.

    Over the reals (CKKS) the same node means `y = sum_d coefficients[d] * x**d / 2**shift`, without rounding.

    Attributes:
        coefficients: Shape `(degree + 1,)`, or `(channels, degree + 1)`; lowest degree first.
        shift: Bits dropped with rounding to nearest, half upwards.
        scale: Real value of one output unit.
        bound: Least and greatest output. Exact evaluation clips to them; over the reals nothing does, and calibration
            vouches for them: a worst case would double its bits from each square to the next.
    """

    coefficients: Integers
    shift: int = 0
    scale: Scale = (1.0,)
    bound: Pair | None = None
    arity = 1

    @property
    def degree(self) -> int:
        """Degree of the polynomial."""
        return int(self.coefficients.shape[-1]) - 1

    def infer(self, x: TensorType) -> TensorType:
        """Type of the output for an input of type `x`; the range is that of interval arithmetic on the monomials."""
        _require_rows(self.coefficients, x.shape, "coefficients")
        _require(
            0 <= self.shift < 1024,
            f"Expected a shift of zero or more, below 1024, got {self.shift}.",
            "scale the coefficients.",
        )
        powers = [_power_range(x.low, x.high, degree) for degree in range(self.degree + 1)]
        low, high = 0, 0
        bounds = []
        for row in np.atleast_2d(self.coefficients):
            ends = [sorted((int(c) * lo, int(c) * hi)) for c, (lo, hi) in zip(row, powers, strict=True)]
            bounds.append((sum(e[0] for e in ends), sum(e[1] for e in ends)))
        low, high = min(b[0] for b in bounds), max(b[1] for b in bounds)
        _require(
            max(abs(low), abs(high)) < 1 << ACCUMULATOR_BITS,
            f"The polynomial reaches {max(abs(low), abs(high)).bit_length()} bits before its shift.",
            "quantize its input or its coefficients to fewer bits.",
        )
        half = (1 << self.shift) >> 1
        low, high = (low + half) >> self.shift, (high + half) >> self.shift
        if self.bound is not None:
            least, most = self.bound
            _require(
                low <= most and least <= high, f"It never lies in {least} .. {most}.", "give a bound that it meets."
            )
            low, high = max(low, least), min(high, most)
        return TensorType(x.shape, low, high, self.scale)


def _power_range(low: int, high: int, degree: int) -> Pair:
    ends = (low**degree, high**degree)
    if degree and degree % 2 == 0 and low < 0 < high:
        return 0, max(ends)
    return min(ends), max(ends)


@dataclass(frozen=True, eq=False)
class Sign:
    """`y = +1 if x >= threshold else -1`.

    Attributes:
        threshold: Shape `(1,)` or `(channels,)`, in units of the input.
        scale: Real value of one output unit.
    """

    threshold: Integers = field(default_factory=lambda: np.zeros(1, dtype=np.int64))
    scale: Scale = (1.0,)
    arity = 1

    def infer(self, x: TensorType) -> TensorType:
        """Type of the output for an input of type `x`."""
        _require_rows(self.threshold[:, None], x.shape, "thresholds")
        return TensorType(x.shape, -1, 1, self.scale)


@dataclass(frozen=True, eq=False)
class QuantRelu:
    """`y = low + #{j : x >= thresholds[j]}`: any monotone requantization (ReLU, clip, round, batch-norm) in one step.

    The multi-threshold form of FINN (Umuroglu et al., FPGA 2017). `low = 0` is a quantized ReLU, a negative `low` a
    signed quantizer.

    Attributes:
        thresholds: Shape `(levels,)` or `(channels, levels)`, ascending along the last axis, in units of the input.
        low: The least output.
        scale: Real value of one output unit.
    """

    thresholds: Integers
    low: int = 0
    scale: Scale = (1.0,)
    arity = 1

    @property
    def levels(self) -> int:
        """Number of steps: the output takes `levels + 1` values."""
        return int(self.thresholds.shape[-1])

    def infer(self, x: TensorType) -> TensorType:
        """Type of the output for an input of type `x`."""
        _require_rows(self.thresholds, x.shape, "thresholds")
        _require(bool(np.all(np.diff(self.thresholds, axis=-1) >= 0)), "The thresholds do not ascend.", "sort them.")
        return TensorType(x.shape, self.low, self.low + self.levels, self.scale)


@dataclass(frozen=True, eq=False)
class Lookup:
    """`y = table[x - start]`, for any function of one integer.

    Attributes:
        table: Shape `(entries,)` or `(channels, entries)`.
        start: The input that the first entry belongs to.
        scale: Real value of one output unit.
    """

    table: Integers
    start: int = 0
    scale: Scale = (1.0,)
    arity = 1

    def infer(self, x: TensorType) -> TensorType:
        """Type of the output for an input of type `x`."""
        _require_rows(self.table, x.shape, "table")
        end = self.start + self.table.shape[-1] - 1
        _require(
            self.start <= x.low and x.high <= end,
            f"The table holds [{self.start}, {end}], the input reaches [{x.low}, {x.high}].",
            "give an entry for every value of the input, or quantize it first.",
        )
        return TensorType(x.shape, int(self.table.min()), int(self.table.max()), self.scale)


Op: TypeAlias = Union[Linear, Conv2d, Add, Sum, Max, Reshape, Polynomial, Sign, QuantRelu, Lookup]

OPS: dict[str, type[Op]] = {
    op.__name__: op for op in (Linear, Conv2d, Add, Sum, Max, Reshape, Polynomial, Sign, QuantRelu, Lookup)
}
"""The closed set, by name."""
