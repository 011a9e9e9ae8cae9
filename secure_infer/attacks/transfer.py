"""Examples made on one kind of model to fool another: logistic regression, linear SVM, decision tree, neighbors.

Papernot, McDaniel, Goodfellow: Transferability in Machine Learning, 2016. Plain arrays in and out: whoever fits the
models hands over their parameters. Networks are attacked by `FGSM`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from secure_infer.attacks.base import Bounds

Reals = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.integer[Any]]
_UNIT = Bounds()
_TINY = 1e-12


@dataclass(frozen=True, eq=False)
class Tree:
    """A fitted binary decision tree, one entry a node, the root first.

    Attributes:
        left, right: Children, -1 at leaves; the left one takes features up to the threshold.
        feature: Tested at each node.
        threshold: Compared with.
        classes: Decided at each leaf.
    """

    left: Labels
    right: Labels
    feature: Labels
    threshold: Reals
    classes: Labels


def logistic_sign(
    x: Reals, labels: Labels, weights: Reals, biases: Reals, radius: float, bounds: Bounds = _UNIT
) -> Reals:
    """The fast gradient sign on a softmax regression.

    Args:
        x: Inputs `(n, features)`.
        labels: Classes to leave, `(n,)`.
        weights: `(classes, features)`.
        biases: `(classes,)`.
        radius: Change of each feature.
        bounds: Of the features.

    Returns:
        Disturbed inputs `(n, features)`.
    """
    scores = x @ weights.T + biases
    chances = np.exp(scores - scores.max(1, keepdims=True))
    chances /= chances.sum(1, keepdims=True)
    chances[np.arange(len(x)), labels] -= 1
    return _clipped(x + radius * np.sign(chances @ weights), bounds)


def against_weights(x: Reals, labels: Labels, weights: Reals, length: float, bounds: Bounds = _UNIT) -> Reals:
    """A step of Euclidean length against the weight vector of the class to leave, for a one-against-rest linear SVM.

    Args:
        x: Inputs `(n, features)`.
        labels: Classes to leave, `(n,)`.
        weights: `(classes, features)`.
        length: Of the step, before it is cut at the bounds.
        bounds: Of the features.
    """
    units = weights / np.maximum(np.linalg.norm(weights, axis=1, keepdims=True), _TINY)
    return _clipped(x - length * units[labels], bounds)


def neighbor_sign(
    x: Reals,
    labels: Labels,
    known: Reals,
    classes: Labels,
    radius: float,
    *,
    temperature: float = 1.0,
    bounds: Bounds = _UNIT,
) -> Reals:
    """The fast gradient sign on nearest neighbors whose votes are smoothed into a softmax of squared distances.

    Args:
        x: Inputs `(n, features)`.
        labels: Classes to leave, `(n,)`.
        known: Points that vote, `(m, features)`.
        classes: Their classes, `(m,)`.
        radius: Change of each feature.
        temperature: Squared distance over which a vote falls by a factor e.
        bounds: Of the features.
    """
    away = np.square(x).sum(1, keepdims=True) - 2 * x @ known.T + np.square(known).sum(1)
    votes = np.exp((away.min(1, keepdims=True) - away) / temperature)
    votes /= votes.sum(1, keepdims=True)
    own = votes * (classes == labels[:, None])
    share = own.sum(1, keepdims=True)
    # d(log share)/dx = 2/T (mean of the own voters - mean of all voters): voters attract.
    uphill = own / np.maximum(share, _TINY) @ known - votes @ known
    return _clipped(x - radius * np.sign(uphill), bounds)


def nearest_leaf(x: Reals, tree: Tree, *, margin: float = 1e-3, bounds: Bounds = _UNIT) -> Reals:
    """The fewest branches up from each input's leaf and down again to a leaf of another class.

    From the leaf, parents are visited until the other side of one holds such a leaf; features on the way down to the
    nearest one there are moved just past their thresholds.

    Args:
        x: Inputs `(n, features)`.
        tree: What decides.
        margin: How far past a threshold a feature is moved.
        bounds: Of the features.

    Returns:
        Disturbed inputs; those for which the tree has no other class stay.
    """
    return np.stack([_moved(row, tree, margin, bounds) for row in x]) if len(x) else x.copy()


def _clipped(x: Reals, bounds: Bounds) -> Reals:
    clipped: Reals = np.clip(x, bounds.low, bounds.high)
    return clipped


def _moved(row: Reals, tree: Tree, margin: float, bounds: Bounds) -> Reals:
    path = [0]
    while tree.left[path[-1]] >= 0:
        path.append(_child(row, tree, path[-1]))
    own = tree.classes[path.pop()]
    while path:
        node = path.pop()
        other = tree.left[node] + tree.right[node] - _child(row, tree, node)
        for steps in _leaves(tree, node, int(other), int(own)):
            moved = _past(row, tree, steps, margin, bounds)
            if _decided(moved, tree) != own:
                return moved
    return row.copy()


def _child(row: Reals, tree: Tree, node: int) -> int:
    side = tree.left if row[tree.feature[node]] <= tree.threshold[node] else tree.right
    return int(side[node])


def _decided(row: Reals, tree: Tree) -> int:
    node = 0
    while tree.left[node] >= 0:
        node = _child(row, tree, node)
    return int(tree.classes[node])


def _leaves(tree: Tree, parent: int, start: int, own: int) -> list[list[tuple[int, int]]]:
    """Ways (node, child) from a parent through one child to leaves of another class, the shortest first."""
    found, level = [], [[(parent, start)]]
    while level:
        found += [way for way in level if tree.left[way[-1][1]] < 0 and tree.classes[way[-1][1]] != own]
        inner = [way for way in level if tree.left[way[-1][1]] >= 0]
        level = [[*way, (way[-1][1], int(side[way[-1][1]]))] for way in inner for side in (tree.left, tree.right)]
    return found


def _past(row: Reals, tree: Tree, steps: list[tuple[int, int]], margin: float, bounds: Bounds) -> Reals:
    moved = row.copy()
    for node, child in steps:
        feature, threshold, down = tree.feature[node], tree.threshold[node], child == tree.left[node]
        if (moved[feature] <= threshold) != down:
            moved[feature] = threshold - margin if down else threshold + margin
    return _clipped(moved, bounds)
