"""Linear models as one layer of integers."""

from __future__ import annotations

from typing import Any

import numpy as np

from secure_infer.frontends.quantize import Reals
from secure_infer.frontends.tabular.models import Scores, disagrees
from secure_infer.graph import INPUT, Graph, Linear, Node, TensorType
from secure_infer.graph.encoding import Affine

_MARGIN = 0.25
_CLOSE = 1e-6


def grid(x: Reals, bits: int) -> Affine:
    """A grid for each feature, from its least to its greatest value and a quarter of that span more on both sides."""
    low, high = x.min(axis=0), x.max(axis=0)
    span = np.where(high > low, high - low, np.maximum(np.abs(low), 1.0))
    return Affine(low - _MARGIN * span, (1 + 2 * _MARGIN) * span / ((1 << bits) - 1))


def linear_graph(model: Any, x: Reals, scores: Scores, bits: int, weight_bits: int) -> Graph:
    """A linear model on rows whose features are rounded to `bits` bits.

    Args:
        model: It has `coef_` and `intercept_`.
        x: Calibration rows, shape `(n, features)`.
        scores: Its scores of these rows.
        bits: Bits of a feature.
        weight_bits: Bits of a weight, sign included.

    Raises:
        UnsupportedNetwork: Its scores are not affine in the features.
    """
    weight = np.asarray(model.coef_, dtype=np.float64).reshape(-1, x.shape[1])
    bias = np.asarray(model.intercept_, dtype=np.float64).reshape(-1)
    affine = scores.raw.shape[1] == len(weight) and bias.size in (1, len(weight))
    slack = _CLOSE * float(np.ptp(scores.raw))
    if not affine or not np.allclose(x @ weight.T + bias, scores.raw, rtol=_CLOSE, atol=slack):
        raise disagrees(model)
    encoding = grid(x, bits)
    steps = weight * encoding.scale
    top = (1 << (weight_bits - 1)) - 1
    unit = np.abs(steps).max(axis=1) / max(1, top)
    unit = np.where(unit > 0, unit, 1.0)
    integers = scores.columns @ np.rint(steps / unit[:, None]).astype(np.int64)
    scale = scores.unit * np.abs(scores.columns) @ unit
    op = Linear(integers, np.zeros(len(integers), dtype=np.int64), tuple(map(float, scale)))
    kind = TensorType((x.shape[1],), 0, (1 << bits) - 1)
    offset = scores.finish((weight @ encoding.offset + bias)[None])[0]
    return Graph(kind, (Node("scores", op, (INPUT,)),), "scores", offset, encoding)
