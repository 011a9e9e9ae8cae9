"""Handlers of what is affine: linear layers, convolutions, batch-norm, scalar arithmetic, and residual additions."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from torch import fx, nn

from secure_infer.frontends.activation import quantizer
from secure_infer.frontends.align import aligned_scale
from secure_infer.frontends.builder import Value
from secure_infer.frontends.context import Context, IntegerWeight, data_inputs, handles, normalization, to_numpy
from secure_infer.frontends.quantize import Reals, quantize_weight
from secure_infer.graph import Add, Conv2d, Linear
from secure_infer.graph.interpret import windows
from secure_infer.graph.types import Integers, Pair, TypeProblem

_LOG = logging.getLogger(__name__)
_WIDE = 36
_PATCHES = 20_000
_EXACT = 1e-9


@dataclass(frozen=True, eq=False)
class _Weights:
    """Weights of a layer: reals, and their integer form where the layer brings one."""

    real: Reals
    integers: Integers | None
    scale: Reals


def _weights(layer: Any) -> _Weights:
    with np.errstate(invalid="ignore"):
        weights = _read_weights(layer)
    if not np.isfinite(weights.real).all():
        raise TypeProblem(
            "Some of its weights are NaN or infinite.",
            "train it again; a Brevitas weight quantizer needs 2 bits, for 1 bit use BinaryLinear or BinaryConv2d.",
        )
    return weights


def _read_weights(layer: Any) -> _Weights:
    if isinstance(layer, IntegerWeight):
        integers, scale = (to_numpy(part) for part in layer.integer_weight())
    elif getattr(layer, "is_weight_quant_enabled", False):
        quantized = layer.quant_weight()
        scale = to_numpy(quantized.scale).reshape(-1)
        broadcast = scale.reshape((-1,) + (1,) * (layer.weight.dim() - 1))
        integers = np.rint(to_numpy(quantized.value) / broadcast)
    else:
        return _Weights(to_numpy(layer.weight), None, np.ones(1))
    scale = scale.reshape(-1)
    rows = scale.reshape((-1,) + (1,) * (integers.ndim - 1))
    return _Weights(integers * rows, integers.astype(np.int64), scale)


def _expand(per_channel: Reals, weight: Reals, groups: int) -> Reals:
    """A row for each input channel, shaped to multiply weights of shape `(out, in / groups, ...)`."""
    outputs, inputs = weight.shape[:2]
    grouped = np.broadcast_to(per_channel, inputs * groups).reshape(groups, inputs)
    rows = np.repeat(grouped, outputs // groups, axis=0)
    return rows.reshape((outputs, inputs) + (1,) * (weight.ndim - 2))


@dataclass(frozen=True, eq=False)
class _Product:
    """The operation of a product without its integers."""

    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    def op(self, weight: Integers, scale: Reals) -> Linear | Conv2d:
        bias = np.zeros(len(weight), dtype=np.int64)
        scales = tuple(map(float, scale))
        if weight.ndim == 2:
            return Linear(weight, bias, scales)
        return Conv2d(weight, bias, scales, self.stride, self.padding, self.dilation, self.groups)

    def columns(self, x: Reals, weight: Reals) -> Reals:
        """What the rows of the weights are multiplied with, shape `(groups, samples, in)`."""
        if weight.ndim == 2:
            return x[None]
        kernel = (weight.shape[2], weight.shape[3])
        pixels = x.shape[2] * x.shape[3]
        view = windows(x[: max(1, _PATCHES // pixels)], kernel, self.stride, self.padding, self.dilation)
        n, channels, height, width = view.shape[:4]
        grouped = view.reshape(n, self.groups, channels // self.groups, height, width, *kernel)
        return grouped.transpose(1, 0, 3, 4, 2, 5, 6).reshape(self.groups, n * height * width, -1)


def _multiply(ctx: Context, node: fx.Node, layer: Any, x: Value, form: _Product, weights: _Weights) -> Value:
    """The product of a value with weights; scales of input channels are folded into the weights."""
    builder, label = ctx.builder, node.name
    if any(form.padding) and x.offset.any():
        x = _without_offset(ctx, x, label, exact=weights.integers is not None)
    if ctx.protocol == "ckks":
        x = builder.shifted(x, _WIDE, label)
    unit = builder.uniform(x, label)
    gain = x.scale / unit
    if weights.integers is None:
        unrounded = weights.real * _expand(gain, weights.real, form.groups)
        reals = ctx.real(data_inputs(node, ctx.values)[0])
        columns = form.columns(_in_units(reals, x, gain), unrounded)
        bits, scales = ctx.precision.weights, None
        if ctx.protocol == "tfhe" and bits > 1:
            scales = aligned_scale(ctx, node, unrounded.reshape(len(unrounded), -1) * unit, columns, bits)
        integers, scale = _quantize(unrounded, columns, bits, None if scales is None else scales / unit)
    else:
        if not np.allclose(gain, gain[0], rtol=_EXACT, atol=0):
            raise TypeProblem(
                "Its input has one scale a channel, its weights are integers already.",
                "put a quantizer or a Sign between the batch-norm and this layer.",
            )
        integers, scale = weights.integers, np.broadcast_to(weights.scale * gain[0], len(weights.integers))
    name = builder.add(label, form.op(integers, scale), x.name, unrounded=integers.astype(np.float64))
    offset = (weights.real * _expand(x.offset, weights.real, form.groups)).reshape(len(integers), -1).sum(axis=1)
    offset = offset + _bias(layer, unit * scale, len(integers))
    if weights.integers is None:
        # The mean of what rounding does to the outputs is known, and belongs to the offset.
        rows = scale.reshape((-1,) + (1,) * (integers.ndim - 1))
        lost = (unrounded - integers * rows).reshape(form.groups, len(integers) // form.groups, -1)
        offset = offset + np.einsum("gok,gk->go", lost, columns.mean(axis=1)).reshape(-1)
    return Value(name, unit * scale, offset)


def _in_units(reals: Reals, x: Value, gain: Reals) -> Reals:
    """Calibration values of an input, without offset and gains: its integers times the unit of its type."""
    trailing = (-1,) + (1,) * (reals.ndim - 2)
    safe = np.where(gain == 0, np.inf, gain).reshape(trailing)
    return np.asarray((reals - x.offset.reshape(trailing)) / safe)


def _quantize(weight: Reals, columns: Reals, bits: int, scales: Reals | None) -> tuple[Integers, Reals]:
    """Integers and scales of weights `(out, ...)`, group by group; the best scales, unless some are given."""
    groups = np.split(weight.reshape(len(weight), -1), len(columns))
    given = [None] * len(columns) if scales is None else np.split(scales, len(columns))
    parts = [quantize_weight(*group, bits=bits) for group in zip(groups, columns, given, strict=True)]
    return np.concatenate([q for q, _ in parts]).reshape(weight.shape), np.concatenate([s for _, s in parts])


def _bias(layer: Any, scale: Reals, outputs: int) -> Reals:
    if layer.bias is None:
        return np.zeros(outputs)
    bias = to_numpy(layer.bias)
    if not getattr(layer, "is_bias_quant_enabled", False):
        return bias
    if not layer.bias_quant.requires_input_scale:
        raise TypeProblem("Its bias has a quantizer with a scale of its own.", "use Int32Bias or no bias quantizer.")
    return np.asarray(np.rint(bias / scale) * scale)


def _without_offset(ctx: Context, x: Value, label: str, exact: bool) -> Value:
    """Move the offset into the integers, since zero padding means a real zero; half a unit may remain."""
    x = ctx.builder.without_dead(x, label)
    amount = np.rint(x.offset / x.scale).astype(np.int64)
    rest = x.offset - amount * x.scale
    if exact and not np.allclose(rest, 0, atol=_EXACT * float(np.abs(x.scale).max())):
        raise TypeProblem(
            "Its input has an offset, which zero padding would cut off.",
            "use padding=0, or put a quantizer or a Sign before this layer.",
        )
    return ctx.builder.add_integers(x, amount, label)


def _before(ctx: Context, node: fx.Node, layer: Any) -> Value:
    x = ctx.value(node)
    if getattr(layer, "is_input_quant_enabled", False):
        return quantizer(ctx, node, x, layer.input_quant)
    return x


def _after(ctx: Context, node: fx.Node, layer: Any, y: Value) -> Value:
    if getattr(layer, "is_output_quant_enabled", False):
        return quantizer(ctx, node, y, layer.output_quant)
    return y


@handles("Linear", "LinearCall", "QuantLinear")
def _linear(ctx: Context, node: fx.Node, layer: Any) -> Value:
    x = _before(ctx, node, layer)
    if len(ctx.shape(x)) != 1:
        raise TypeProblem(f"It reads shape {ctx.shape(x)}.", "flatten first (nn.Flatten).")
    return _after(ctx, node, layer, _multiply(ctx, node, layer, x, _Product(), _weights(layer)))


@handles("Conv2d", "ConvCall", "QuantConv2d")
def _conv(ctx: Context, node: fx.Node, layer: Any) -> Value:
    x = _before(ctx, node, layer)
    weights = _weights(layer)
    if getattr(layer, "padding_mode", "zeros") != "zeros":
        raise TypeProblem(f"Its padding_mode is {layer.padding_mode!r}.", "use padding_mode='zeros'.")
    padding = layer.padding
    if padding == "valid":
        padding = (0, 0)
    elif padding == "same":
        padding, weights = _same(weights, layer.dilation)
    form = _Product(_pair(layer.stride), _pair(padding), _pair(layer.dilation), layer.groups)
    return _after(ctx, node, layer, _multiply(ctx, node, layer, x, form, weights))


def _same(weights: _Weights, dilation: Pair) -> tuple[Pair, _Weights]:
    """Symmetric padding for `padding="same"`; an even kernel gets a row or column of zeros in front."""
    padding, extra = [], []
    for size, step in zip(weights.real.shape[2:], dilation, strict=True):
        total = step * (size - 1)
        if total % 2 and step > 1:
            raise TypeProblem(
                "padding='same' with an even, dilated kernel needs uneven padding.",
                "use an odd kernel, or give the padding as numbers.",
            )
        padding.append(total // 2 + total % 2)
        extra.append(total % 2)
    pad = ((0, 0), (0, 0), (extra[0], 0), (extra[1], 0))
    integers = None if weights.integers is None else np.pad(weights.integers, pad)
    return (padding[0], padding[1]), _Weights(np.pad(weights.real, pad), integers, weights.scale)


def _pair(value: Any) -> Pair:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[-1]))


@handles("BatchNorm1d", "BatchNorm2d", "BatchNormCall")
def _batch_norm(ctx: Context, node: fx.Node, layer: Any) -> Value:
    return ctx.value(node).affine(*normalization(layer))


class Affine(nn.Module):
    """`gain * x + shift` with constants of one element, or one for each channel."""

    def __init__(self, gain: Reals, shift: Reals) -> None:
        super().__init__()
        self.gain, self.shift = gain, shift


@handles("Affine")
def _affine(ctx: Context, node: fx.Node, layer: Any) -> Value:
    x = ctx.value(node)
    if any(part.size not in (1, ctx.shape(x)[0]) for part in (layer.gain, layer.shift)):
        raise TypeProblem("Its constant is neither a scalar nor one number a channel.", "use a BatchNorm2d instead.")
    return x.affine(layer.gain, layer.shift)


class Addition(nn.Module):
    """`x + sign * y`."""

    def __init__(self, sign: int = 1) -> None:
        super().__init__()
        self.sign = np.array([float(sign)])


@handles("Addition")
def _addition(ctx: Context, node: fx.Node, layer: Any) -> Value:
    read = [ctx.values[arg] for arg in data_inputs(node, ctx.values)]
    if len(read) == 1:
        return read[0].affine(1 + layer.sign, np.zeros(1))
    a, b = read[0], read[1].affine(layer.sign, np.zeros(1))
    if ctx.shape(a) != ctx.shape(b):
        raise TypeProblem(f"It adds shapes {ctx.shape(a)} and {ctx.shape(b)}.", "add tensors of one shape.")
    a, b = (ctx.builder.positive(branch, node.name) for branch in (a, b))
    a, b, gains = _common_scale(ctx, a, b, node.name)
    name = ctx.builder.add(node.name, Add(gains), a.name, b.name)
    return Value(name, a.scale / gains[0], a.offset + b.offset)


def _common_scale(ctx: Context, a: Value, b: Value, label: str) -> tuple[Value, Value, Pair]:
    """Bring two values to scales whose ratio is one of small integers."""
    builder = ctx.builder
    if _is_uniform(a) and _is_uniform(b):
        ratio = float(a.scale[0] / b.scale[0]) if b.scale[0] else 0.0
        fraction = Fraction(ratio).limit_denominator(64)
        if 0 < fraction.numerator <= 64 and abs(float(fraction) / ratio - 1) < _EXACT:
            return builder.settle(a, label), builder.settle(b, label), (fraction.numerator, fraction.denominator)
    # A value that comes from a product takes any scale: that costs no look-up, only some bits of the accumulator.
    rigid = [v for v in (a, b) if _is_uniform(v) and v.scale[0] and builder.sharpness(v.name) is None]
    kept = max(rigid, key=lambda v: float(v.scale[0]), default=None)
    scale = min(_grain(ctx, v) for v in (a, b) if v is not kept)
    gain = 1 if kept is None else max(1, math.ceil(float(kept.scale[0]) / scale))
    scale = scale if kept is None else float(kept.scale[0]) / gain
    _LOG.debug("%s: both branches get the scale %.4g", label, scale)
    left, right = (builder.settle(v, label) if v is kept else builder.at_scale(v, scale, label) for v in (a, b))
    return left, right, (gain if a is kept else 1, gain if b is kept else 1)


_STEPS = {"tfhe": 16, "mpc": 64, "mpc-fss": 64, "mpc-spu": 64, "clear": 64, "ckks": 1024}


def _grain(ctx: Context, value: Value) -> float:
    """The coarsest scale at which the value's weights still have enough steps."""
    scale = float(np.median(value.scale[value.scale > 0])) if (value.scale > 0).any() else 1.0
    sharpness = ctx.builder.sharpness(value.name) or 1.0
    return scale * min(1.0, sharpness / _STEPS[ctx.protocol])


def _is_uniform(value: Value) -> bool:
    return bool(np.allclose(value.scale, value.scale[0], rtol=_EXACT, atol=0))
