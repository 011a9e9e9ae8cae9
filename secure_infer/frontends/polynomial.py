"""Real polynomials of scaled integers, as integer polynomials that stay inside 62 bits."""

from __future__ import annotations

import math

import numpy as np
from torch import fx

from secure_infer.frontends.builder import Value
from secure_infer.frontends.context import Context, data_inputs
from secure_infer.frontends.quantize import Reals
from secure_infer.graph import Polynomial
from secure_infer.graph.types import ACCUMULATOR_BITS, TypeProblem

_BUDGET = 60
_LEADING = 14
_TYPICAL = 14
_WIDEST = 32
_LOOSE = 2.0**16
_MARGIN = 8
_DIGITS = 128


def polynomial(ctx: Context, node: fx.Node, x: Value, coefficients: Reals) -> Value | None:
    """Export a polynomial of the reals that `x` stands for.

    The input is first shifted to so few bits that its highest power leaves room for the leading coefficient. The
    output's scale puts the values seen in calibration at about 14 bits, however far the worst case lies above them.
    Under CKKS, whose ranges are those of calibration anyway, a worst case far above them is cut to 8 times their peak.

    Args:
        ctx: The translation.
        node: The activation.
        x: Its input.
        coefficients: Of 1, x, x^2, ..., shape `(channels | 1, degree + 1)`.

    Returns:
        The result; None where rounding is real (not CKKS) and would leave too little of the input.

    Raises:
        TypeProblem: 62 bits can't hold the worst case with enough precision for the typical one.
    """
    builder, label = ctx.builder, node.name
    degree = coefficients.shape[1] - 1
    x = builder.settle(x, label, insert=False)
    x = builder.shifted(x, max(2, (_BUDGET - _LEADING) // degree), label)
    kind = builder.types[x.name]
    rows = _compose(coefficients, x.scale, x.offset)
    reach = max(abs(kind.low), abs(kind.high), 1)
    powers = np.array([float(reach) ** d for d in range(degree + 1)])
    worst = float((np.abs(rows) * powers).sum(axis=1).max()) or 1.0
    typical = float(np.abs(ctx.real(node)).max(initial=0.0)) or worst
    loose = ctx.protocol == "ckks" and worst > _LOOSE * typical
    widest = _BUDGET if loose else _WIDEST
    bits = min(widest, max(16, _TYPICAL + math.ceil(math.log2(max(1.0, worst / typical)))))
    shift = _BUDGET - bits
    scale = worst / 2.0**bits
    peak = _peak(ctx, node, x)
    if ctx.protocol != "ckks" and peak < _DIGITS:
        return None
    if typical / scale * 2.0**shift < _DIGITS * max(1.0, peak**degree):
        raise TypeProblem(
            f"Its worst-case input lies so far above the calibrated one that {ACCUMULATOR_BITS} bits "
            f"leave no precision for degree {degree}.",
            "use a lower degree, fewer activations, or smaller layers before it.",
        )
    integers = np.asarray(np.rint(rows / scale * 2.0**shift), dtype=np.int64)
    most = math.ceil(_MARGIN * typical / scale)
    bound = (-most, most) if loose else None
    rows_or_row = integers[0] if len(integers) == 1 else integers
    name = builder.add(label, Polynomial(rows_or_row, shift, (scale,), bound), x.name)
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


def _peak(ctx: Context, node: fx.Node, x: Value) -> float:
    """Greatest magnitude of the integers `x` on the calibration data."""
    reals = ctx.real(data_inputs(node, ctx.values)[0])
    trailing = (-1,) + (1,) * (reals.ndim - 2)
    scale = np.where(x.scale == 0, np.inf, np.abs(x.scale)).reshape(trailing)
    return float((np.abs(reals - x.offset.reshape(trailing)) / scale).max(initial=0.0))
