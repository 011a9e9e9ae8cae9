"""Networks for the tests of CKKS: odd shapes, residual branches, polynomials of several degrees; and deployed ones."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from secure_infer.backends.base import Keys, Program
from secure_infer.backends.ckks import CkksBackend
from secure_infer.backends.ckks.client import CkksClient
from secure_infer.backends.ckks.server import CkksServer
from secure_infer.graph import (
    INPUT,
    Add,
    Conv2d,
    Graph,
    Linear,
    Node,
    Op,
    Polynomial,
    Reshape,
    Sum,
    TensorType,
    interpret_real,
)
from tests.strategies import inputs_for

RNG = np.random.default_rng(7)


def chain(shape: tuple[int, ...], *ops: Op | tuple[Op, str, str], low: int = -3, high: int = 3) -> Graph:
    """A graph of operations one after another; a tuple names the nodes (n0, n1 ..) that its operation reads."""
    nodes, last = [], INPUT
    for i, op in enumerate(ops):
        inputs = op[1:] if isinstance(op, tuple) else (last,)
        last = f"n{i}"
        nodes.append(Node(last, op[0] if isinstance(op, tuple) else op, inputs))
    return Graph(TensorType(shape, low, high), tuple(nodes), last)


def linear(outputs: int, inputs: int, scale: float = 1.0) -> Linear:
    return Linear(RNG.integers(-4, 5, (outputs, inputs)), RNG.integers(-9, 10, outputs), (scale,))


def conv(
    outputs: int, inputs: int, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1
) -> Conv2d:
    weight = RNG.integers(-4, 5, (outputs, inputs // groups, kernel, kernel))
    return Conv2d(
        weight,
        RNG.integers(-9, 10, outputs),
        (1.0,),
        (stride, stride),
        (padding, padding),
        (dilation, dilation),
        groups,
    )


def poly(*coefficients: int, shift: int = 4) -> Polynomial:
    return Polynomial(np.array(coefficients), shift)


SQUARE, BENT = poly(0, 0, 1), poly(3, -5, 2)
CUBIC, QUINTIC = poly(9, 20, -1, 2, shift=6), poly(1, 30, 0, -2, 1, 1, shift=9)
SEPTIC = poly(0, 9, 1, 1, 0, 1, 0, 1, shift=12)
PER_CHANNEL = Polynomial(np.array([[1, 2, 3], [5, 900, 1], [7, 3, 0], [4, 0, 0], [0, 0, 0]]), 3)

NETWORKS = {
    "one linear layer": chain((9,), linear(5, 9)),
    "one number": chain((1,), linear(1, 1)),
    "one convolution": chain((2, 7, 5), conv(3, 2, 3, 2, 1)),
    "more rows than columns": chain((3,), linear(33, 3), SQUARE, linear(2, 33)),
    "fewer rows than columns": chain((33,), linear(3, 33), BENT, linear(7, 3)),
    "activation first and last": chain((7,), SQUARE, linear(5, 7), BENT),
    "activation upon activation": chain((7,), BENT, BENT, linear(2, 7)),
    "two convolutions": chain(
        (2, 9, 9),
        conv(4, 2, 3, 2, 1),
        BENT,
        conv(6, 4, 3, 1, 1, groups=2),
        SQUARE,
        Sum((2, 2), (2, 2), divisor=4),
        Reshape((24,)),
        linear(10, 24),
    ),
    "dilated": chain((1, 11, 8), conv(3, 1, 3, 1, 2, dilation=2), SQUARE, Reshape((264,)), linear(3, 264)),
    "residual": chain(
        (6,),
        linear(6, 6),
        BENT,
        linear(6, 6, 2.0),
        (Add((1, 2)), "n1", "n2"),
        SQUARE,
        linear(6, 6, 3.0),
        (Add((3, 1)), "n5", "n0"),
        (Add(), "n6", INPUT),
    ),
    "residual after different depths": chain(
        (5,), linear(5, 5), CUBIC, linear(5, 5), BENT, (Add(), "n3", "n1"), (Add(), "n4", INPUT), linear(3, 5)
    ),
    "degree 3": chain((8,), linear(6, 8), CUBIC, linear(4, 6)),
    "degree 5": chain((8,), linear(6, 8), QUINTIC, linear(4, 6)),
    "degree 7": chain((4, 3, 3), conv(2, 4, 2), SEPTIC, Reshape((8,)), linear(4, 8)),
    "a polynomial per channel": chain((4,), linear(5, 4), PER_CHANNEL, linear(3, 5)),
    "shifts between layers": chain((6,), linear(8, 6), poly(0, 1, shift=2), BENT, poly(0, 1, shift=3), linear(3, 8)),
    "nothing but a bias": chain((4,), Linear(np.zeros((3, 4), np.int64), np.array([5, -2, 0]))),
    "zero": chain((4,), Linear(np.zeros((3, 4), np.int64), np.zeros(3, np.int64)), SQUARE, linear(2, 3)),
    "an unused branch": chain((4,), linear(3, 4), SQUARE, (linear(2, 4), INPUT)),
}


BACKEND = CkksBackend()


class Deployment:
    """A compiled network with its keys and server."""

    def __init__(self, graph: Graph, **options: Any) -> None:
        self.graph, self.x = graph, inputs_for(graph, 6, seed=1)
        self.program: Program = BACKEND.compile(graph, inputs_for(graph, 60), options)
        self.client: CkksClient = BACKEND.client(self.program.client)
        self.server: CkksServer = BACKEND.servers(self.program.servers)[0]
        self.keys: Keys = self.client.keygen()

    def predict(self, x: np.ndarray) -> np.ndarray:
        (message,) = self.client.encrypt(x, self.keys)
        return self.client.decrypt([self.server.run(message, self.keys.evaluation)], self.keys)

    @property
    def bound(self) -> float:
        """The guarantee's, in real units."""
        bound = self.program.guarantee.error_bound
        assert bound is not None
        return bound

    def error(self, n: int) -> float:
        """Greatest error in real units."""
        difference = np.abs(self.predict(self.x[:n]) - interpret_real(self.graph, self.x[:n]))
        return float((difference * self.graph.output_type.scale_array()).max())


@cache
def deployed(name: str) -> Deployment:
    return Deployment(NETWORKS[name])
