"""A multi-layer perceptron of scikit-learn as a torch network, quantized after training as any other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from secure_infer.frontends.quantize import Reals
from secure_infer.frontends.tabular.models import Scores
from secure_infer.frontends.translate import to_graph
from secure_infer.graph import Graph
from secure_infer.graph.encoding import Affine

_ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "logistic": nn.Sigmoid, "identity": nn.Identity}


def perceptron_graph(
    model: Any, x: Reals, scores: Scores, protocol: str, n_bits: int | Mapping[str, int] | None
) -> Graph:
    """A fitted `MLPClassifier` or `MLPRegressor`, on features that the client brings to mean 0 and deviation 1.

    Args:
        model: It has `coefs_` and `intercepts_`.
        x: Calibration rows, shape `(n, features)`.
        scores: Its scores of these rows.
        protocol: Name of the protocol.
        n_bits: As in `to_graph`.
    """
    mean, spread = x.mean(axis=0), x.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    graph = to_graph(_network(model, mean, spread, scores), (x - mean) / spread, protocol, n_bits)
    return replace(graph, encoding=Affine(mean, spread * graph.input.scale[0]))


def _network(model: Any, mean: Reals, spread: Reals, scores: Scores) -> nn.Sequential:
    """The network on standardized features, with the scores' columns folded into its last layer."""
    weights, biases = [np.array(w).T for w in model.coefs_], [np.array(b) for b in model.intercepts_]
    biases[0] = biases[0] + weights[0] @ mean
    weights[0] = weights[0] * spread
    weights[-1] = scores.unit * scores.columns @ weights[-1]
    biases[-1] = scores.unit * scores.columns @ biases[-1] + scores.shift
    layers: list[nn.Module] = []
    for weight, bias in zip(weights, biases, strict=True):
        layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(weight))
            layer.bias.copy_(torch.from_numpy(bias))
        layers += [layer, _ACTIVATIONS[model.activation]()]
    return nn.Sequential(*layers[:-1])
