"""The edges that cut each feature into bins, and trees that compare bins instead of reals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias, Union

import numpy as np

from secure_infer.frontends.quantize import Reals
from secure_infer.frontends.tabular.trees import LEAF, Tree
from secure_infer.graph.types import Integers


@dataclass(frozen=True, eq=False)
class Leaf:
    """What a leaf adds to the scores, in units of the scores' scale; shape `(outputs,)`."""

    value: Integers


@dataclass(frozen=True, eq=False)
class Split:
    """A comparison `x[feature] >= edges[feature, edge]`, and what follows if it fails or holds."""

    feature: int
    edge: int
    below: Binned
    above: Binned


Binned: TypeAlias = Union[Leaf, Split]


def quantile_edges(x: Reals, levels: int) -> Reals:
    """Edges midway between neighboring values of a feature, at equal shares of the rows where not all have room.

    Args:
        x: Calibration rows, shape `(n, features)`.
        levels: Most edges of a feature.

    Returns:
        Shape `(features, levels)`, ascending, of no more levels than the feature with the most values needs; one with
        fewer values repeats its last edge.
    """
    levels = max(1, min(levels, max(len(np.unique(column)) for column in x.T) - 1))
    edges = np.empty((x.shape[1], levels))
    for feature, column in enumerate(x.T):
        values, counts = np.unique(column, return_counts=True)
        if len(values) == 1:
            edges[feature] = values[0]
            continue
        middle = values[:-1] + np.diff(values) / 2
        middle = np.maximum(middle, np.nextafter(values[:-1], np.inf))
        if len(middle) > levels:
            goal = len(column) * np.arange(1, levels + 1) / (levels + 1)
            middle = middle[_nearest(np.cumsum(counts)[:-1], goal)]
        edges[feature] = np.concatenate([middle, np.full(levels - len(middle), middle[-1])])
    return edges


def _nearest(ranks: Integers, goals: Reals) -> Integers:
    """For ascending goals, indices of ascending ranks close to them, each index once."""
    found = np.abs(ranks[None] - goals[:, None]).argmin(axis=1)
    for k in range(1, len(found)):  # forwards, then backwards from the end, until no two are equal
        found[k] = max(found[k], found[k - 1] + 1)
    for k in reversed(range(len(found))):
        found[k] = min(found[k], len(ranks) - len(found) + k)
    return np.asarray(found)


class Binner:
    """Moves thresholds of trees to the edges that part the calibration rows alike, or most nearly so.

    Args:
        x: Calibration rows, shape `(n, features)`.
        edges: Shape `(features, levels)`.
    """

    def __init__(self, x: Reals, edges: Reals) -> None:
        self._columns = np.sort(x, axis=0)
        self._levels = edges.shape[1]
        below = [np.searchsorted(column, row) for column, row in zip(self._columns.T, edges, strict=True)]
        # Before the first edge all rows lie above, after the last one none does.
        self._ranks = np.array([[0, *row, len(x)] for row in below])

    def edge(self, feature: int, threshold: float) -> int:
        """Index of the edge that stands for `x > threshold`; -1 for always, `levels` for never."""
        rank = np.searchsorted(self._columns[:, feature], threshold, side="right")
        return int(np.abs(self._ranks[feature] - rank).argmin()) - 1

    def bin(self, tree: Tree, values: Integers) -> Binned:
        """The tree on bins, without splits whose outcome is known and without splits that change nothing.

        Args:
            tree: The tree on reals.
            values: What each node adds, shape `(nodes, outputs)`, in units of the scores' scale.
        """

        def grow(node: int, span: dict[int, tuple[int, int]]) -> Binned:
            if tree.left[node] == LEAF:
                return Leaf(values[node])
            feature = int(tree.feature[node])
            low, high = span.get(feature, (0, self._levels))
            edge = self.edge(feature, float(tree.threshold[node]))
            if edge < low or edge >= high:  # the edges below `low` are known to be passed, those from `high` on not
                return grow(int(tree.right[node] if edge < low else tree.left[node]), span)
            below = grow(int(tree.left[node]), {**span, feature: (low, edge)})
            above = grow(int(tree.right[node]), {**span, feature: (edge + 1, high)})
            if isinstance(below, Leaf) and isinstance(above, Leaf) and (below.value == above.value).all():
                return below
            return Split(feature, edge, below, above)

        return grow(0, {})
