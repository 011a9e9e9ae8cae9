"""Real polynomials of scaled integers, as integer polynomials that stay inside 62 bits."""

from __future__ import annotations

import math

import numpy as np
from torch import fx

from secure_infer.frontends.builder import Value
from secure_infer.frontends.context import Context
from secure_infer.frontends.quantize import Reals
from secure_infer.graph import Polynomial
from secure_infer.graph.ops import Integers

_BUDGET = 60
_LEADING = 14
_TYPICAL = 14
_WIDEST = 32


def polynomial(ctx: Context, node: fx.Node, x: Value, coefficients: Reals) -> Value:
    """Export a polynomial of the reals that `x` stands for.

    The input is first shifted to so few bits that its highest power leaves room for the leading coefficient. The
    output's scale puts the values seen in calibration at about 14 bits, however far the worst case lies above them.

    Args:
        ctx: The translation.
        node: The activation.
        x: Its input.
        coefficients: Of 1, x, x^2, ..., shape `(channels | 1, degree + 1)`.
    """
    builder, label = ctx.builder, node.name
    degree = coefficients.shape[1] - 1
    x = builder.settle(x, label, insert=False)
    x = builder.shifted(x, max(2, (_BUDGET - _LEADING) // degree), label)
    kind = builder.types[x.name]
    rows = _compose(coefficients, x.scale, x.offset)
    peak = max(abs(kind.low), abs(kind.high), 1)
    powers = np.array([float(peak) ** d for d in range(degree + 1)])
    worst = float((np.abs(rows) * powers).sum(axis=1).max()) or 1.0
    typical = float(np.abs(ctx.real(node)).max(initial=0.0)) or worst
    bits = min(_WIDEST, max(16, _TYPICAL + math.ceil(math.log2(max(1.0, worst / typical)))))
    shift = _BUDGET - bits
    scale = worst / 2.0**bits
    integers = _round(rows / scale * 2.0**shift)
    name = builder.add(label, Polynomial(integers[0] if len(integers) == 1 else integers, shift, (scale,)), x.name)
    return Value(name, np.array([scale]), np.zeros(1))


def _compose(coefficients: Reals, scale: Reals, offset: Reals) -> Reals:
    """Coefficients in powers of the integer k of a polynomial of `scale * k + offset`, a row a channel."""
    rows = max(len(coefficients), scale.size, offset.size)
    terms = coefficients.shape[1]
    source = np.broadcast_to(coefficients, (rows, terms))
    unit, start = np.broadcast_to(scale, rows), np.broadcast_to(offset, rows)
    result = np.zeros((rows, terms))
    for degree in range(terms):
        for power in range(degree + 1):
            binomial = math.comb(degree, power) * unit**power * start ** (degree - power)
            result[:, power] += source[:, degree] * binomial
    return result


def _round(values: Reals) -> Integers:
    return np.asarray(np.rint(values), dtype=np.int64)
