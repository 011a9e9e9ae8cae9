"""A network of affine layers and quadratics as peers want it: affine maps with nothing but squares between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from secure_infer.bench.contender import Reals
from secure_infer.errors import Problem, UnsupportedNetwork
from secure_infer.graph import INPUT, Conv2d, Graph, Node, Polynomial, Reshape, interpret_real


@dataclass(frozen=True, eq=False)
class Affine:
    """`y = x @ matrix + bias` over the reals, shapes `(in, out)` and `(out,)`."""

    matrix: Reals
    bias: Reals


def squares_form(graph: Graph) -> list[Affine]:
    """A chain of affine stretches and quadratics as affine maps with nothing but squares between them.

    `a x^2 + b x + c = a (x + b / 2a)^2 + c - b^2 / 4a`: the shift goes to the map before, the rest to the one after.

    Raises:
        UnsupportedNetwork: Branches, or activations that are no quadratics.
    """
    stretches, quadratics = _split(graph)
    maps = [_dense(graph, start, nodes) for start, nodes in stretches]
    for index, node in enumerate(quadratics):
        constant, linear, square = _coefficients(graph, node)
        before, after = maps[index], maps[index + 1]
        maps[index] = replace(before, bias=before.bias + linear / (2 * square))
        rest = constant - linear**2 / (4 * square)
        maps[index + 1] = Affine(square[:, None] * after.matrix, after.bias + rest @ after.matrix)
    return maps


def _split(graph: Graph) -> tuple[list[tuple[str, list[Node]]], list[Node]]:
    """Affine stretches, each with the value it starts from, and the quadratics between; degree 1 only rescales."""
    stretches: list[tuple[str, list[Node]]] = [(INPUT, [])]
    quadratics: list[Node] = []
    last = INPUT
    for node in graph.nodes:
        if node.inputs != (last,):
            raise unsuited(f"{node.name} does not read the value before it.")
        last = node.name
        if isinstance(node.op, Polynomial) and node.op.degree == 2:
            quadratics.append(node)
            stretches.append((last, []))
        elif node.kind in ("Linear", "Conv2d", "Sum", "Reshape") or (
            isinstance(node.op, Polynomial) and node.op.degree < 2
        ):
            stretches[-1][1].append(node)
        else:
            raise unsuited(f"{node.name} is neither affine nor a quadratic.")
    if not all(nodes for _, nodes in stretches):
        raise unsuited("Two activations follow each other, or the last layer is one.")
    return stretches, quadratics


def _dense(graph: Graph, start: str, nodes: Sequence[Node]) -> Affine:
    """An affine stretch as a matrix, by evaluating it on the unit vectors."""
    kind, end = graph.types[start], graph.types[nodes[-1].name]
    names = [INPUT, *(node.name for node in nodes)]
    renamed = tuple(replace(node, inputs=(names[i],)) for i, node in enumerate(nodes))
    stretch = Graph(kind, renamed, nodes[-1].name)
    units = np.vstack([np.zeros((1, kind.size)), np.eye(kind.size)]).astype(np.int64)
    rows = interpret_real(stretch, units.reshape(-1, *kind.shape)).reshape(len(units), -1)
    scale_in, scale_out = (np.broadcast_to(t.scale_array(), t.shape).ravel() for t in (kind, end))
    return Affine((rows[1:] - rows[0]) * scale_out / scale_in[:, None], rows[0] * scale_out)


def _coefficients(graph: Graph, node: Node) -> Sequence[Reals]:
    """Coefficients of a quadratic over the reals, lowest degree first, one of each for every element."""
    op, kind, before = node.op, graph.types[node.name], graph.input_type(node)
    rows = np.atleast_2d(op.coefficients).astype(np.float64).T / 2.0**op.shift  # type: ignore[union-attr]
    scales = [np.broadcast_to(t.scale_array(), t.shape).ravel() for t in (kind, before)]
    shape = (-1, *(1,) * (len(kind.shape) - 1))
    found = [
        np.broadcast_to(row.reshape(shape), kind.shape).ravel() * scales[0] / scales[1] ** d
        for d, row in enumerate(rows)
    ]
    if np.abs(found[2]).min() < 1e-9:
        raise unsuited(f"A quadratic of {node.name} has no square term.")
    return found


def first_convolution(graph: Graph) -> Conv2d | None:
    """The first operation if it is all of the first map: a convolution of equal strides without dilation; else None."""
    op = graph.nodes[0].op
    if not isinstance(op, Conv2d) or op.groups != 1:
        return None
    alone = all(isinstance(node.op, Reshape) for node in _split(graph)[0][0][1][1:])
    return op if alone and op.stride[0] == op.stride[1] and op.dilation == (1, 1) else None


def kernels(op: Conv2d) -> Reals:
    """The real weights of a convolution that reads real inputs, shape `(out, in, height, width)`."""
    scale = np.broadcast_to(op.weight_scale, len(op.weight))
    return np.asarray(op.weight * scale[:, None, None, None], dtype=np.float64)


def unsuited(what: str) -> UnsupportedNetwork:
    """The error for a network that is no such chain."""
    return UnsupportedNetwork(
        "The peer's recipe can't express this network.", [Problem("network", what, "choose another model.")]
    )
