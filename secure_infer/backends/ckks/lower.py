"""Reads a graph off as affine maps between polynomials: one sparse matrix for each source a value depends on, one bias.

The matrix of a stretch is the product of its operations' matrices; the biases are what the interpreter makes of zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from secure_infer.backends.ckks.sparse import Indices, Matrix, Reals, identity, matrix_of, total
from secure_infer.graph import INPUT, Graph, Node, Polynomial
from secure_infer.graph.interpret import apply
from secure_infer.graph.ops import Op
from secure_infer.graph.types import channelwise

__all__ = ["Activation", "Affine", "Indices", "Matrix", "Network", "Reals", "horner", "lower"]

_AT_ONCE = 1 << 22


@dataclass(frozen=True, eq=False)
class Affine:
    """`y = sum over sources of terms[source] @ source + bias`; bias of shape `(rows,)`. Zero matrices are left out."""

    terms: Mapping[str, Matrix]
    bias: Reals

    def apply(self, sources: Mapping[str, Reals]) -> Reals:
        """Values of shape `(n, rows)` for sources of shape `(n, columns)`."""
        n = len(next(iter(sources.values())))
        total = np.tile(self.bias, (n, 1))
        for name, matrix in self.terms.items():
            total += matrix.apply(sources[name])
        return total


@dataclass(frozen=True, eq=False)
class Activation:
    """A polynomial of degree two or more, applied to each element of an affine map.

    Attributes:
        name: Name of the graph's node.
        affine: What it reads.
        coefficients: One polynomial for each element, shape `(elements, degree + 1)`, lowest degree first.
        shape: Of its tensor, channels first; elements of one channel share a range.
    """

    name: str
    affine: Affine
    coefficients: Reals
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Network:
    """A graph as affine maps and polynomials, in integer units; `activations` are in topological order."""

    graph: Graph
    activations: tuple[Activation, ...]
    output: Affine

    @property
    def inputs(self) -> int:
        """Number of inputs."""
        return self.graph.input.size

    def evaluate(self, x: Reals) -> tuple[dict[str, Reals], Reals]:
        """What each activation reads, shape `(n, elements)`, by name; and the outputs, shape `(n, outputs)`."""
        at_once = max(1, _AT_ONCE // max(kind.size for kind in self.graph.types.values()))
        parts = [self._evaluate(x[start : start + at_once]) for start in range(0, len(x), at_once)]
        read = {a.name: np.concatenate([part[0][a.name] for part in parts]) for a in self.activations}
        return read, np.concatenate([part[1] for part in parts])

    def _evaluate(self, x: Reals) -> tuple[dict[str, Reals], Reals]:
        """The graph's own layers are faster than their matrices."""
        values, read = {INPUT: x.reshape((-1, *self.graph.input.shape))}, {}
        curves = {activation.name: activation.coefficients for activation in self.activations}
        for node in self.graph:
            inputs = [values[name] for name in node.inputs]
            if node.name in curves:
                read[node.name] = inputs[0].reshape(len(x), -1)
                values[node.name] = horner(curves[node.name], read[node.name]).reshape(inputs[0].shape)
            else:
                values[node.name] = _apply(node.op, inputs)
        return read, values[self.graph.output].reshape(len(x), -1)


def horner(coefficients: Reals, x: Reals) -> Reals:
    """`sum_d coefficients[:, d] * x**d` for `x` of shape `(n, elements)`."""
    result = np.broadcast_to(coefficients[:, -1], x.shape)
    for column in coefficients.T[-2::-1]:
        result = result * x + column
    return np.asarray(result)


def lower(graph: Graph) -> Network:
    """Read a graph of `Linear Conv2d Add Sum Reshape Polynomial` off as affine maps and polynomials of degree >= 2."""
    curved = [node for node in graph if isinstance(node.op, Polynomial) and _rows(graph, node).shape[1] > 2]
    names = {node.name for node in curved}
    reads = {node.name: node.inputs[0] for node in curved}
    targets = {**reads, "": graph.output}
    bias = _biases(graph, names)
    terms: dict[str, dict[str, Matrix]] = {target: {} for target in targets}
    for source in (INPUT, *(node.name for node in curved)):
        for target, matrix in _matrices(graph, names, source, targets).items():
            terms[target][source] = matrix

    def affine(target: str) -> Affine:
        size = graph.types[targets[target]].size
        constant = bias.get(targets[target], np.zeros((1, size)))
        return Affine(terms[target], constant.reshape(size).astype(np.float64))

    activations = [
        Activation(node.name, affine(node.name), _rows(graph, node), graph.types[node.name].shape) for node in curved
    ]
    return Network(graph, tuple(activations), affine(""))


def _rows(graph: Graph, node: Node) -> Reals:
    """Coefficients of each element as reals, shape `(elements, degree + 1)`, without leading zeros."""
    op = node.op
    assert isinstance(op, Polynomial)
    kind = graph.types[node.name]
    table = np.atleast_2d(op.coefficients).astype(np.float64) / 2.0**op.shift
    used = max((d for d in range(table.shape[1]) if table[:, d].any()), default=0)
    columns = channelwise(table[:, : used + 1], kind.shape)  # type: ignore[arg-type]
    return np.stack([np.broadcast_to(column, kind.shape).reshape(-1) for column in columns], axis=1)


def _matrices(graph: Graph, curved: set[str], source: str, targets: Mapping[str, str]) -> dict[str, Matrix]:
    """The matrix from one source to each target that depends on it."""
    found = {source: identity(graph.types[source].size)}
    for node in graph:
        reads = [(i, name) for i, name in enumerate(node.inputs) if name in found and node.name not in curved]
        result = graph.types[node.name].shape
        parts = [matrix_of(node.op, i, graph.types[name].shape, result).after(found[name]) for i, name in reads]
        if parts:
            found[node.name] = parts[0] if len(parts) == 1 else total(parts)
    return {target: found[name] for target, name in targets.items() if name in found and len(found[name].values)}


def _biases(graph: Graph, curved: set[str]) -> dict[str, Reals]:
    """What every affine node makes of zeros in place of input and activations, shape `(1, *shape)`."""
    values: dict[str, Reals] = {}
    for node in graph:
        if node.name not in curved:
            inputs = [
                values[name] if name in values else np.zeros((1, *graph.types[name].shape)) for name in node.inputs
            ]
            values[node.name] = _apply(node.op, inputs)
    return values


def _apply(op: Op, inputs: list[Reals]) -> Reals:
    if isinstance(op, Polynomial):
        columns = channelwise(op.coefficients[..., :2], inputs[0].shape[1:]).astype(np.float64) / 2.0**op.shift
        return np.asarray(columns[0] + (columns[1] * inputs[0] if len(columns) > 1 else 0 * inputs[0]))
    return np.asarray(apply(op, *inputs, use_float=True, keep_float=True), dtype=np.float64)
