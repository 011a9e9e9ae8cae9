"""Reads a graph off as affine maps between polynomials: one sparse matrix for each source a value depends on, one bias.

The matrix of a stretch of layers is found by pushing unit vectors through the interpreter, so its semantics are the
interpreter's by construction, for every stride, padding, group, dilation, gain and reshape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from secure_infer.graph import INPUT, Graph, Node, Polynomial
from secure_infer.graph.interpret import apply
from secure_infer.graph.ops import Conv2d, Linear, Op
from secure_infer.graph.types import channelwise

Reals = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

_DENSE = 1 << 24
_BASIS = 1 << 21


@dataclass(frozen=True, eq=False)
class Matrix:
    """A sparse matrix by its nonzero entries.

    Attributes:
        rows: Row of each entry, shape `(entries,)`.
        cols: Column of each entry, shape `(entries,)`.
        values: Value of each entry, shape `(entries,)`.
        shape: Rows and columns.
    """

    rows: Indices
    cols: Indices
    values: Reals
    shape: tuple[int, int]

    def apply(self, x: Reals) -> Reals:
        """The product with a batch: `(n, columns)` to `(n, rows)`."""
        if self.shape[0] * self.shape[1] <= _DENSE:
            dense = np.zeros(self.shape)
            np.add.at(dense, (self.rows, self.cols), self.values)
            return np.asarray(x @ dense.T)
        result = np.empty((len(x), self.shape[0]))
        for sample, row in zip(x, result, strict=True):
            row[:] = np.bincount(self.rows, self.values * sample[self.cols], self.shape[0])
        return result


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
        channels: Length of the first axis of its tensor; elements of one channel share a range.
    """

    name: str
    affine: Affine
    coefficients: Reals
    channels: int


@dataclass(frozen=True, eq=False)
class Network:
    """A graph as affine maps and polynomials, in integer units; `activations` are in topological order."""

    inputs: int
    activations: tuple[Activation, ...]
    output: Affine

    def evaluate(self, x: Reals) -> tuple[dict[str, Reals], Reals]:
        """What each activation reads, shape `(n, elements)`, by name; and the outputs, shape `(n, outputs)`."""
        sources, read = {INPUT: x}, {}
        for activation in self.activations:
            read[activation.name] = activation.affine.apply(sources)
            sources[activation.name] = horner(activation.coefficients, read[activation.name])
        return read, self.output.apply(sources)


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
    bias = _propagate(graph, names, {}, linear=False)
    terms: dict[str, dict[str, Matrix]] = {target: {} for target in targets}
    for source in (INPUT, *(node.name for node in curved)):
        for target, matrix in _matrices(graph, names, source, targets).items():
            terms[target][source] = matrix

    def affine(target: str) -> Affine:
        size = graph.types[targets[target]].size
        constant = bias.get(targets[target], np.zeros((1, size)))
        return Affine(terms[target], constant.reshape(size).astype(np.float64))

    activations = [
        Activation(node.name, affine(node.name), _rows(graph, node), graph.types[node.name].shape[0]) for node in curved
    ]
    return Network(graph.input.size, tuple(activations), affine(""))


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
    kind = graph.types[source]
    chunk = max(1, _BASIS // max(t.size for t in graph.types.values()))
    found: dict[str, list[tuple[Indices, Indices, Reals]]] = {}
    for start in range(0, kind.size, chunk):
        basis = np.eye(min(chunk, kind.size - start), kind.size, k=start)
        values = _propagate(graph, curved, {source: basis.reshape((-1, *kind.shape))}, linear=True)
        for target, name in targets.items():
            if name in values:
                flat = values[name].reshape(len(basis), -1)
                cols, rows = np.nonzero(flat)
                found.setdefault(target, []).append((rows, cols + start, flat[cols, rows]))
    joined = {target: [np.concatenate(part) for part in zip(*parts, strict=True)] for target, parts in found.items()}
    return {
        target: Matrix(rows, cols, values, (graph.types[targets[target]].size, kind.size))
        for target, (rows, cols, values) in joined.items()
        if len(values)
    }


def _propagate(graph: Graph, curved: set[str], values: dict[str, Reals], linear: bool) -> dict[str, Reals]:
    """Push batches through all affine nodes; a value that depends on none of them is zero and stays absent.

    Args:
        graph: The network.
        curved: Nodes that end a stretch; they pass nothing on.
        values: Batches of shape `(n, *shape)` to start from.
        linear: Leave biases and constants out.
    """
    values = dict(values)
    for node in graph:
        if node.name in curved:
            continue
        inputs = list(_inputs(graph, node, values, linear))
        if inputs:
            values[node.name] = _apply(_linear_part(node.op) if linear else node.op, inputs)
    return values


def _inputs(graph: Graph, node: Node, values: Mapping[str, Reals], linear: bool) -> Iterator[Reals]:
    if linear and not any(name in values for name in node.inputs):
        return
    n = len(next(iter(values.values()))) if values else 1
    for name in node.inputs:
        yield values[name] if name in values else np.zeros((n, *graph.types[name].shape))


def _linear_part(op: Op) -> Op:
    if isinstance(op, Linear | Conv2d):
        return replace(op, bias=np.zeros_like(op.bias))
    if isinstance(op, Polynomial):
        table = op.coefficients.copy()
        table[..., 0] = 0
        return replace(op, coefficients=table)
    return op


def _apply(op: Op, inputs: list[Reals]) -> Reals:
    if isinstance(op, Polynomial):
        columns = channelwise(op.coefficients[..., :2], inputs[0].shape[1:]).astype(np.float64) / 2.0**op.shift
        return np.asarray(columns[0] + (columns[1] * inputs[0] if len(columns) > 1 else 0 * inputs[0]))
    return np.asarray(apply(op, *inputs, use_float=True, keep_float=True), dtype=np.float64)
