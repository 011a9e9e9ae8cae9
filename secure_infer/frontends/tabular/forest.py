"""Trees and forests as a graph: comparison bits in, one layer of look-ups, a sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from secure_infer.frontends.quantize import Reals
from secure_infer.frontends.tabular.bins import Binner, quantile_edges
from secure_infer.frontends.tabular.blocks import Bit, Cut, cut
from secure_infer.frontends.tabular.models import Scores, disagrees
from secure_infer.frontends.tabular.trees import Tree
from secure_infer.graph import INPUT, Add, Graph, Linear, Lookup, Node, Sign, TensorType
from secure_infer.graph.encoding import Bins
from secure_infer.graph.types import Integers

_CLOSE = 1e-4


def forest_graph(
    model: Any, trees: Sequence[Tree], x: Reals, scores: Scores, bits: int, value_bits: int, tables: bool
) -> Graph:
    """Trees that add up, on rows whose features are cut into `2**bits` bins.

    Args:
        model: Whose trees they are, for errors.
        trees: Values of as many outputs as the raw scores, or with one more for two classes.
        x: Calibration rows, shape `(n, features)`.
        scores: Scores of these rows.
        bits: Logarithm of the number of bins.
        value_bits: Bits of a leaf's value.
        tables: Whether look-up tables are cheap, as under TFHE.

    Raises:
        UnsupportedNetwork: The scores are no sum of the trees' values.
    """
    values = [tree.value[:, -scores.raw.shape[1] :] for tree in trees]
    constant, seen = _constant(model, trees, x, scores)
    edges = quantile_edges(x, (1 << bits) - 1)
    span = max(float(np.ptp(value[tree.left < 0], axis=0).max()) for tree, value in zip(trees, values, strict=True))
    unit = span / ((1 << value_bits) - 1) or 1.0
    binner = Binner(seen, edges)
    rounded = [np.rint(value / unit).astype(np.int64) for value in values]
    binned = [binner.bin(tree, value) for tree, value in zip(trees, rounded, strict=True)]
    found = cut(binned, tables)
    offset = scores.finish((constant + unit * found.constant)[None])[0]
    nodes = _nodes(found, edges.shape, scores.columns, unit * scores.unit, tables)
    return Graph(TensorType((edges.size,), 0, 1), tuple(nodes), nodes[-1].name, offset, Bins(edges))


def _constant(model: Any, trees: Sequence[Tree], x: Reals, scores: Scores) -> tuple[Reals, Reals]:
    """What the scores are beyond the sum of the trees, shape `(outputs,)`, and the rows as the model sees them."""
    for seen in (x, x.astype(np.float32).astype(np.float64)):  # most of scikit-learn's trees round rows to float32
        total = sum(tree(seen)[:, -scores.raw.shape[1] :] for tree in trees)
        rest = scores.raw - total
        constant = np.median(rest, axis=0)
        if np.allclose(rest, constant, rtol=_CLOSE, atol=_CLOSE * max(1e-12, float(np.ptp(scores.raw)))):
            return np.asarray(constant), seen
    raise disagrees(model)


def _nodes(found: Cut, shape: tuple[int, ...], columns: Integers, unit: float, tables: bool) -> list[Node]:
    nodes: list[Node] = []
    if found.look_ups:
        nodes += _look_ups(found, shape, tables)
        rows = columns @ np.stack([look.row for look in found.look_ups], axis=1)
        # A sign s stands for the bit (s + 1) / 2.
        bias, scale = (np.zeros(len(rows), dtype=np.int64), unit) if tables else (rows.sum(axis=1), unit / 2)
        nodes.append(Node("scores", Linear(rows, bias, (scale,)), ("look_up",)))
    if found.linear or not nodes:
        weight = columns @ _dense([found.linear], shape, len(columns.T))
        nodes.append(Node("single", Linear(weight, np.zeros(len(weight), dtype=np.int64), (unit,)), (INPUT,)))
        if found.look_ups:
            nodes.append(Node("sum", Add((1, 1) if tables else (1, 2)), ("scores", "single")))
    return nodes


def _look_ups(found: Cut, shape: tuple[int, ...], tables: bool) -> list[Node]:
    looks = found.look_ups
    weight = np.concatenate([_dense([look.weights], shape, 1) for look in looks])
    bias = np.array([look.bias for look in looks])
    number = Node("number", Linear(weight, bias), (INPUT,))
    if not tables:
        threshold = np.array([len(look.table) - 1 for look in looks])
        return [number, Node("look_up", Sign(threshold), ("number",))]
    width = max(len(look.table) for look in looks)
    table = np.stack([np.pad(look.table, (0, width - len(look.table)), "edge") for look in looks])
    return [number, Node("look_up", Lookup(table), ("number",))]


def _dense(weights: Sequence[Mapping[Bit, Any]], shape: tuple[int, ...], outputs: int) -> Integers:
    dense = np.zeros((outputs, *shape), dtype=np.int64)
    for given in weights:
        for (feature, edge), value in given.items():
            dense[:, feature, edge] = value
    return dense.reshape(outputs, -1)
