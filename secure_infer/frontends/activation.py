"""Handlers of what is elementwise: steps with exact thresholds, look-ups, signs, and polynomials."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import fx, nn

from secure_infer.frontends.builder import Value
from secure_infer.frontends.context import Context, LevelsLayer, PolynomialLayer, SignLayer, handles, to_numpy
from secure_infer.frontends.polynomial import polynomial
from secure_infer.frontends.quantize import Grid, RealFunction, Reals, activation_grid, thresholds
from secure_infer.graph import Lookup, QuantRelu, Sign
from secure_infer.graph.types import Integers, TypeProblem

_LARGE = 1e30
_TABLE_BITS = 2
CKKS_FIX = "replace it with secure_infer.fix(net, 'ckks'), then train or fine-tune."

MONOTONE = (
    "ReLU",
    "ReLU6",
    "Hardtanh",
    "Sigmoid",
    "Tanh",
    "LeakyReLU",
    "ELU",
    "SELU",
    "CELU",
    "Softplus",
    "Hardsigmoid",
    "Softsign",
    "LogSigmoid",
)
"""Activations that never fall: they become one step function."""

CURVED = ("SiLU", "GELU", "Mish", "Hardswish")
"""Activations that fall somewhere: they become a quantizer and a table."""

QUANTIZED = ("QuantReLU", "QuantIdentity", "QuantHardTanh", "QuantTanh", "QuantSigmoid")
"""Brevitas activations."""


def _function(*layers: Any) -> RealFunction:
    """Layers one after another, as a function of reals of shape `(channels, k)`."""

    def apply(x: Reals) -> Reals:
        with torch.no_grad():
            y: Any = torch.from_numpy(np.ascontiguousarray(x.T))
            for layer in layers:
                y = layer(y)
        return to_numpy(y).T

    return apply


@handles(*MONOTONE)
def _monotone(ctx: Context, node: fx.Node, layer: Any) -> Value:
    x = ctx.value(node)
    if type(layer).__name__ == "LeakyReLU" and layer.negative_slope < 0:
        return _curved(ctx, node, layer)
    if joins_next(node, ctx.layers):
        ctx.pending[node] = layer
        return x
    grid = ctx.grids.get(node) or activation_grid(ctx.real(node), ctx.precision.activations)
    function = _function(layer)
    return step(ctx, node.name, x, lambda r: grid.index(function(r)), grid)


@handles(*CURVED)
def _curved(ctx: Context, node: fx.Node, layer: Any) -> Value:
    return _tabulate(ctx, node, _function(layer))


@handles("PolynomialLayer")
def _polynomial(ctx: Context, node: fx.Node, layer: Any) -> Value:
    x = ctx.value(node)
    assert isinstance(layer, PolynomialLayer)
    exact = None if ctx.protocol == "tfhe" else polynomial(ctx, node, x, to_numpy(layer.polynomial()))
    return exact or _tabulate(ctx, node, _function(layer))


@handles("SignLayer")
def _sign(ctx: Context, node: fx.Node, layer: Any) -> Value:
    assert isinstance(layer, SignLayer)
    scale = float(layer.sign_scale())
    function = _function(*ctx.waiting(node), layer)
    return step(ctx, node.name, ctx.value(node), lambda r: np.sign(function(r)), Grid(scale, -1, 1))


@handles("LevelsLayer")
def _levels(ctx: Context, node: fx.Node, layer: Any) -> Value:
    assert isinstance(layer, LevelsLayer)
    function = _function(*ctx.waiting(node), layer)
    return step(ctx, node.name, ctx.value(node), function, Grid(1.0, 0, int(layer.top_level())))


@handles(*QUANTIZED)
def _quantized(ctx: Context, node: fx.Node, layer: Any) -> Value:
    x = ctx.value(node)
    if layer.is_input_quant_enabled:
        x = quantizer(ctx, node, x, layer.input_quant)
    if not layer.is_act_quant_enabled:
        if type(layer).__name__ == "QuantIdentity":
            return x
        raise TypeProblem("Its quantizer is switched off.", "use the plain layer, such as nn.ReLU.")
    return quantizer(ctx, node, x, layer.act_quant)


def quantizer(ctx: Context, node: fx.Node, x: Value, proxy: Any) -> Value:
    """A Brevitas quantizer, with whatever activation is fused into it, as one exact step."""
    grid, level = proxy_grid(proxy, ctx.waiting(node))
    return step(ctx, node.name, x, level, grid)


def proxy_grid(proxy: Any, before: tuple[Any, ...] = ()) -> tuple[Grid, RealFunction]:
    """The grid of a Brevitas quantizer, and the function from reals to levels."""
    scale = to_numpy(proxy.scale()).reshape(-1)
    if scale.size != 1:
        raise TypeProblem("Its quantizer has a scale for each channel.", "use one scale for the tensor.")
    unit = float(scale[0])
    function = _function(*before, lambda r: proxy(r).value)

    def level(x: Reals) -> Reals:
        return np.asarray(np.rint(function(x) / unit))

    ends = _function(lambda r: proxy(r).value)(np.array([[-_LARGE, _LARGE]]))[0] / unit
    low, high = (int(v) for v in np.rint(ends))
    return Grid(unit, low, high), level


def step(ctx: Context, label: str, x: Value, level: RealFunction, grid: Grid) -> Value:
    """A monotone function from reals to the levels of a grid: a `Sign` if those are -1 and 1, else a `QuantRelu`."""
    builder = ctx.builder
    x = builder.settle(builder.positive(x, label), label, insert=False)
    kind = builder.types[x.name]
    scale, offset = _rows(x, level, kind.shape[0])
    found = thresholds(level, grid, scale, offset, kind.low, kind.high)
    found = found[:1] if (found == found[0]).all() else found
    if (grid.low, grid.high) == (-1, 1) and (found[:, 0] == found[:, 1]).all():
        name = builder.add(label, Sign(found[:, 0], (grid.scale,)), x.name)
    else:
        rows = found[0] if len(found) == 1 else found
        name = builder.add(label, QuantRelu(rows, grid.low, (grid.scale,)), x.name)
    return Value(name, np.array([grid.scale]), np.zeros(1))


def requantize(ctx: Context, label: str, x: Value, reals: Reals, bits: int) -> Value:
    """The value rounded to a grid of so many bits that suits the values seen in calibration, counted from zero up."""
    grid = activation_grid(reals, bits)
    low = grid.low
    value = step(ctx, label, x, lambda r: grid.index(r) - low, Grid(grid.scale, 0, grid.high - low))
    return Value(value.name, value.scale, np.array([low * grid.scale]))


def _tabulate(ctx: Context, node: fx.Node, function: RealFunction) -> Value:
    """Any function as a table, on the value itself if it is narrow enough, else on the value rounded to a grid."""
    builder = ctx.builder
    bits = ctx.precision.activations + _TABLE_BITS
    x = ctx.value(node)
    if builder.types[x.name].bits > bits:
        x = requantize(ctx, f"{node.name}_in", x, ctx.real(node.all_input_nodes[0]), bits)
    kind = builder.types[x.name]
    grid = activation_grid(ctx.real(node), ctx.precision.activations)
    scale, offset = _rows(x, function, kind.shape[0])
    entries = np.arange(kind.low, kind.high + 1)
    table: Integers = grid.index(function(scale[:, None] * entries + offset[:, None])).astype(np.int64)
    table = table[0] if (table == table[0]).all() else table
    name = builder.add(node.name, Lookup(table, kind.low, (grid.scale,)), x.name)
    return Value(name, np.array([grid.scale]), np.zeros(1))


def _rows(x: Value, function: RealFunction, channels: int) -> tuple[Reals, Reals]:
    """Scales and offsets, a row for each channel; one row if all channels and the function agree."""
    try:
        function(np.zeros((1, 1)))
        rows = max(x.scale.size, x.offset.size)
    except (RuntimeError, ValueError, IndexError):
        rows = channels
    return np.broadcast_to(x.scale, rows), np.broadcast_to(x.offset, rows)


def joins_next(node: fx.Node, layers: Any) -> bool:
    """Whether the one reader of a node is a quantizer or a sign, which the function can be joined with."""
    users = list(node.users)
    if len(users) != 1 or users[0] not in layers:
        return False
    layer: nn.Module = layers[users[0]]
    return isinstance(layer, SignLayer | LevelsLayer) or bool(
        getattr(layer, "is_act_quant_enabled", False) and not getattr(layer, "is_input_quant_enabled", False)
    )


def has_zero(proxy: Any) -> bool:
    """Whether a quantizer has a level zero; a 1-bit signed one has none."""
    return bool((_function(lambda r: proxy(r).value)(np.zeros((1, 1))) == 0).all())


def require_possible(layer: nn.Module, protocol: str) -> None:
    """Raise if the protocol can't evaluate an activation.

    Raises:
        TypeProblem: CKKS, and not a polynomial.
    """
    name = type(layer).__name__
    steps = name in (*MONOTONE, *CURVED, *QUANTIZED) or isinstance(layer, SignLayer | LevelsLayer)
    if protocol == "ckks" and steps:
        raise TypeProblem(f"CKKS can't evaluate {name}: it adds and multiplies only.", CKKS_FIX)
    if protocol == "ckks" and name in ("MaxPool2d", "QuantMaxPool2d"):
        raise TypeProblem(
            "CKKS can't compare, so there is no maximum.",
            "replace it by AvgPool2d with secure_infer.fix(net, 'ckks'), then train or fine-tune.",
        )
