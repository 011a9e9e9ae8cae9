"""Networks "of somebody's own" that tests name as `nets.py:function` on the command line."""

from __future__ import annotations

import time

import numpy as np

from secure_infer.graph import INPUT, Graph, Linear, Node, Polynomial, QuantRelu, Sign, TensorType

_INPUT = TensorType((4,), 0, 3, (0.25,))
_FIRST = Linear(np.array([[1, -1, 0, 1], [0, 1, 1, -1], [1, 0, -1, 0]]), np.array([0, 1, 0]), (0.5,))
_LAST = Linear(np.array([[1, -1, 1], [-1, 1, 1]]), np.array([0, 1]))

a_number = 7


def signs() -> Graph:
    """4 -> 3, sign, 3 -> 2."""
    return _net(Sign(np.array([1, 0, 1])))


def other_signs() -> Graph:
    """A network of other types than `signs`."""
    return _net(QuantRelu(np.array([1, 3])))


def square() -> Graph:
    """4 -> 3, x^2 / 4 + x / 2, 3 -> 2."""
    return _net(Polynomial(np.array([0, 2, 1]), 2, (0.5,)))


def cubic() -> Graph:
    """As `square`, of a higher degree."""
    return _net(Polynomial(np.array([0, 2, 1, 1]), 4, (0.5,)))


def deep() -> Graph:
    """Squares in a row: more levels than any secure CKKS parameters have."""
    nodes = [
        Node(f"square{i}", Polynomial(np.array([0, 0, 1]), 1), (f"square{i - 1}" if i else INPUT,)) for i in range(30)
    ]
    return Graph(TensorType((4,), 0, 1), tuple(nodes), "square29")


def broken() -> Graph:
    """A function that fails."""
    raise RuntimeError("no network today")


def slow() -> Graph:
    """Says that it began, then takes a minute."""
    print("began", flush=True)
    time.sleep(60)
    return signs()


def _net(activation: Sign | QuantRelu | Polynomial) -> Graph:
    nodes = (Node("first", _FIRST, (INPUT,)), Node("act", activation, ("first",)), Node("last", _LAST, ("act",)))
    return Graph(_INPUT, nodes, "last")
