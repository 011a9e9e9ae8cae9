"""Handlers of what moves or gathers elements: poolings, reshapes, and layers that do nothing at inference."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from torch import fx, nn

from secure_infer.frontends.builder import Value
from secure_infer.frontends.context import Context, handles
from secure_infer.graph import Max, Reshape, Sum
from secure_infer.graph.types import Pair, Shape, TypeProblem

_LOG = logging.getLogger(__name__)
_IDLE = ("Identity", "Dropout", "Dropout1d", "Dropout2d", "AlphaDropout", "FeatureAlphaDropout", "QuantDropout")
_RESHAPING = ("Flatten", "Unflatten", "Reshaping")
MOVERS = (*_IDLE, *_RESHAPING)
"""Layers that change no value."""


@handles(*_IDLE)
def _identity(ctx: Context, node: fx.Node, layer: Any) -> Value:
    return ctx.value(node)


class Reshaping(nn.Module):
    """Any change of shape that keeps the order of elements: flatten, view, reshape, squeeze, unsqueeze."""


@handles(*_RESHAPING)
def _reshape(ctx: Context, node: fx.Node, layer: Any) -> Value:
    shape = ctx.real(node).shape
    if shape[0] != ctx.batch or len(shape) < 2:
        raise TypeProblem(
            f"It mixes samples: the result has shape {shape} for {ctx.batch} samples.",
            "keep the batch axis, e.g. torch.flatten(x, 1) or x.view(x.size(0), -1).",
        )
    return reshape(ctx, node.name, ctx.value(node), tuple(shape[1:]))


def reshape(ctx: Context, label: str, x: Value, shape: Shape) -> Value:
    """The value under another shape; scales and offsets follow their elements."""
    old = ctx.shape(x)
    if shape == old:
        return x
    if shape[0] != old[0]:
        ctx.builder.uniform(x, label)
    name = ctx.builder.add(label, Reshape(shape), x.name)
    return Value(name, _follow(x.scale, old, shape), _follow(x.offset, old, shape))


def _follow(per_channel: np.ndarray[Any, np.dtype[np.float64]], old: Shape, new: Shape) -> Any:
    if per_channel.size == 1 or old[0] == new[0]:
        return per_channel
    elements = np.broadcast_to(per_channel.reshape((-1,) + (1,) * (len(old) - 1)), old).reshape(new)
    rows = elements.reshape(new[0], -1)
    if not (rows == rows[:, :1]).all():
        raise TypeProblem("It mixes channels of different scales.", "put an activation before it.")
    return rows[:, 0].copy()


@handles("AvgPool2d")
def _average(ctx: Context, node: fx.Node, layer: Any) -> Value:
    kernel, padding = pair(layer.kernel_size), pair(layer.padding)
    if any(padding) and not layer.count_include_pad:
        raise TypeProblem("It does not count its padding.", "use count_include_pad=True or padding=0.")
    divisor = layer.divisor_override or kernel[0] * kernel[1]
    return _sum(ctx, node, kernel, pair(layer.stride or kernel), padding, int(divisor))


def _sum(ctx: Context, node: fx.Node, kernel: Pair, stride: Pair, padding: Pair, divisor: int) -> Value:
    x = ctx.value(node)
    window = kernel[0] * kernel[1]
    if any(padding) and x.offset.any():
        x = ctx.builder.without_dead(x, node.name)
        amount = np.rint(x.offset / x.scale).astype(np.int64)
        x = ctx.builder.add_integers(x, amount, node.name)
    name = ctx.builder.add(node.name, Sum(kernel, stride, padding, divisor), x.name)
    return Value(name, x.scale / divisor, x.offset * (window / divisor))


@handles("AdaptiveAvgPool2d")
def _adaptive(ctx: Context, node: fx.Node, layer: Any) -> Value:
    old, new = ctx.shape(ctx.value(node))[-2:], ctx.real(node).shape[-2:]
    if any(o % n for o, n in zip(old, new, strict=True)):
        raise TypeProblem(f"{old} does not divide into {new}.", "use an output size that divides the image.")
    kernel = (old[0] // new[0], old[1] // new[1])
    return _sum(ctx, node, kernel, kernel, (0, 0), kernel[0] * kernel[1])


class SpatialMean(nn.Module):
    """The mean over height and width."""

    def __init__(self, axes: tuple[int, ...]) -> None:
        super().__init__()
        self.axes = axes


@handles("SpatialMean")
def _mean(ctx: Context, node: fx.Node, layer: Any) -> Value:
    _, *image = ctx.shape(ctx.value(node))
    if len(image) != 2 or {axis % 4 for axis in layer.axes} != {2, 3}:
        raise TypeProblem(f"It takes the mean over the axes {layer.axes}.", "take it over height and width: (2, 3).")
    kernel = (image[0], image[1])
    pooled = _sum(ctx, node, kernel, kernel, (0, 0), image[0] * image[1])
    return reshape(ctx, node.name, pooled, tuple(ctx.real(node).shape[1:]))


@handles("MaxPool2d", "QuantMaxPool2d")
def _maximum(ctx: Context, node: fx.Node, layer: Any) -> Value:
    if pair(layer.dilation) != (1, 1) or layer.return_indices:
        raise TypeProblem("It is dilated or returns indices.", "use dilation=1 and return_indices=False.")
    x = ctx.builder.positive(ctx.value(node), node.name)
    kernel = pair(layer.kernel_size)
    op = Max(kernel, pair(layer.stride or kernel), pair(layer.padding))
    return Value(ctx.builder.add(node.name, op, x.name), x.scale, x.offset)


@handles("Softmax", "LogSoftmax")
def _softmax(ctx: Context, node: fx.Node, layer: Any) -> Value:
    if [user.op for user in node.users] != ["output"] or layer.dim not in (1, -1, None):
        raise TypeProblem(
            "A softmax is possible at the very end only, over the classes.",
            "remove it, or apply it to the decrypted result.",
        )
    _LOG.warning("%s is left off: the results are what it reads, so apply it after decryption.", node.name)
    return ctx.value(node)


def pair(value: Any) -> Pair:
    """A size given as one number or as two."""
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[-1]))
