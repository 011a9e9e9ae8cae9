"""Tiny networks with random weights, as subjects of a benchmark."""

from __future__ import annotations

import numpy as np

from secure_infer.bench.contender import Subject
from secure_infer.graph import Graph, Linear, Node, Polynomial, Reshape, Sign, TensorType
from secure_infer.graph.ops import Conv2d

_PIXELS = TensorType((1, 6, 6), 0, 3, (1 / 3,))


def subject(graph: Graph, n: int = 30) -> Subject:
    rng = np.random.default_rng(1)
    x = rng.random((n, *graph.input.shape))
    return Subject("tiny", graph, x, x, rng.integers(0, 4, n))


def binary_mlp() -> Graph:
    rng = np.random.default_rng(0)
    return Graph(
        _PIXELS,
        (
            Node("flat", Reshape((36,)), ("input",)),
            Node("first", Linear(rng.integers(-1, 2, (8, 36)), rng.integers(-3, 4, 8)), ("flat",)),
            Node("sign", Sign(rng.integers(-4, 5, 8)), ("first",)),
            Node("last", Linear(rng.integers(-1, 2, (4, 8)), rng.integers(-3, 4, 4)), ("sign",)),
        ),
        "last",
    )


def polynomial_cnn() -> Graph:
    """Quadratics with a coefficient of either sign in each channel."""
    rng = np.random.default_rng(0)
    first = np.array([[5, 40, 20], [3, -30, -12]])
    return Graph(
        _PIXELS,
        (
            Node(
                "conv",
                Conv2d(
                    rng.integers(-7, 8, (2, 1, 3, 3)), rng.integers(-9, 9, 2), (0.05,), stride=(2, 2), padding=(1, 1)
                ),
                ("input",),
            ),
            Node("square", Polynomial(first, 6, (0.02,)), ("conv",)),
            Node("flat", Reshape((18,)), ("square",)),
            Node("hidden", Linear(rng.integers(-3, 4, (8, 18)), rng.integers(-9, 9, 8), (0.02,)), ("flat",)),
            Node("again", Polynomial(np.array([5, 300, 7]), 12, (0.02,)), ("hidden",)),
            Node("last", Linear(rng.integers(-3, 4, (4, 8)), rng.integers(-9, 9, 4), (0.0005,)), ("again",)),
        ),
        "last",
    )
