"""Small fixed networks for tests that need one, exact or polynomial."""

from __future__ import annotations

import numpy as np

from secure_infer.graph import Graph, Linear, Node, Polynomial, QuantRelu, TensorType


def small_graph(exact: bool, seed: int = 0) -> Graph:
    """A 6-5-3 network: a quantized ReLU where `exact`, else a square."""
    rng = np.random.default_rng(seed)
    activation = QuantRelu(np.array([-1, 1, 2]), scale=(0.5,)) if exact else Polynomial(np.array([3, 2, 1]), 4, (0.25,))
    nodes = (
        Node("hidden", Linear(rng.integers(-1, 2, (5, 6)), rng.integers(-1, 2, 5), (0.5,)), ("input",)),
        Node("act", activation, ("hidden",)),
        Node("head", Linear(rng.integers(-1, 2, (3, 5)), rng.integers(-1, 2, 3), (0.5, 0.25, 1.0)), ("act",)),
    )
    return Graph(TensorType((6,), 0, 1, (0.5,)), nodes, "head", np.array([0.5, -1.0, 0.0]))


def all_corners(graph: Graph, n: int = 200, seed: int = 0) -> np.ndarray:
    """Reals over the whole input range, its two ends included, shape `(n + 2, *input shape)`: calibration data."""
    kind = graph.input
    drawn = np.random.default_rng(seed).integers(kind.low, kind.high + 1, (n, *kind.shape))
    ends = [np.full((1, *kind.shape), end) for end in (kind.low, kind.high)]
    return np.concatenate([drawn, *ends]) * kind.scale_array()
