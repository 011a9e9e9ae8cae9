"""Scales of weights and of the next activation such that its thresholds lie a power of two apart.

A look-up under TFHE costs twice as much for each bit more that it reads, and clearing a bit beforehand costs a look-up
of one bit. Bits can be cleared only if all thresholds of the activation agree in them, which is the case if one step of
its grid is 2**k units of the sum. Scales that are chosen after training are therefore chosen that way.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import fx

from secure_infer.frontends.activation import MONOTONE, joins_next
from secure_infer.frontends.context import Context, normalization
from secure_infer.frontends.quantize import Reals, activation_grid
from secure_infer.frontends.trace import handler_name
from secure_infer.graph.types import Integers

_PASSED = ("Identity", "Dropout")
_SHIFTS = np.arange(0, 24)
_STRETCHES = 2.0 ** np.linspace(-0.5, 0.5, 9)


def aligned_scale(ctx: Context, node: fx.Node, weight: Reals, columns: Reals, bits: int) -> Reals | None:
    """Scales of a layer's weights that suit the quantized activation which alone reads the layer.

    The grid of the activation may stretch a little, too; the pair is chosen that has the least squared error from
    rounding both, and the grid is kept in the context for the activation's own handler.

    Args:
        ctx: The translation.
        node: The layer.
        weight: Shape `(out, in)`, in real units of the layer's output.
        columns: What the weights are multiplied with, shape `(groups, samples, in)`.
        bits: Bits of a weight, sign included.

    Returns:
        Scales of shape `(out,)`; None if no such activation follows.
    """
    found = _activation(ctx, node)
    if found is None:
        return None
    reader, gain = found
    # A channel of gain zero is constant, whatever its weights.
    gain = np.broadcast_to(np.where(gain == 0, np.abs(gain).max() or 1.0, np.abs(gain)), len(weight))
    values = ctx.real(reader).reshape(-1)
    grid = activation_grid(values, ctx.precision.activations)
    power = np.repeat(np.square(columns).mean(axis=1), len(weight) // len(columns), axis=0)
    best, scale = np.inf, np.ones(len(weight))
    for stretched in (replace(grid, scale=float(grid.scale * f)) for f in _STRETCHES):
        clipped = float(np.square(stretched.index(values) * stretched.scale - values).mean())
        shifts, lost = _shifts(weight * gain[:, None] / stretched.scale, power, bits)
        if stretched.scale**2 * lost + clipped < best:
            best, ctx.grids[reader] = stretched.scale**2 * lost + clipped, stretched
            scale = stretched.scale / gain / 2.0**shifts
    return scale


def _shifts(rows: Reals, power: Reals, bits: int) -> tuple[Integers, float]:
    """For each row of weights, in steps of the grid: the k with the least rounding error; and the mean error of all.

    The least k decides how many bits can be cleared, so it is the one that suits all rows best. A row of smaller
    weights takes a greater one as long as its sums are no wider than the widest.
    """
    top = max(1, (1 << (bits - 1)) - 1)
    lost = (np.clip(np.rint(rows * units), -top, top) / units - rows for units in 2.0**_SHIFTS)
    errors = np.stack([(np.square(part) * power).sum(axis=1) for part in lost])
    least = int(np.argmin(errors.sum(axis=1)))
    width = np.abs(rows).sum(axis=1)
    room = np.log2(np.maximum(width.max(), 1e-30) / np.maximum(width, 1e-30))
    errors[_SHIFTS[:, None] > least + room] = np.inf
    return _SHIFTS[least + np.argmin(errors[least:], axis=0)], float(errors[least:].min(axis=0).mean())


def _activation(ctx: Context, node: fx.Node) -> tuple[fx.Node, Reals] | None:
    """The quantized activation that alone reads a layer, and the gain of each channel on the way to it."""
    gain = np.ones(1)
    while len(node.users) == 1:
        node = next(iter(node.users))
        if node not in ctx.layers:
            return None
        layer, name = ctx.layers[node], handler_name(ctx.layers[node])
        if name in MONOTONE and not joins_next(node, ctx.layers):
            return node, gain
        if str(name).startswith("BatchNorm"):
            gain = gain * normalization(layer)[0]
        elif name not in _PASSED:
            return None
    return None
