"""Trees of scikit-learn and XGBoost in one form: arrays of splits, and values that add up to the model's scores."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from secure_infer.frontends.quantize import Reals
from secure_infer.graph.types import Integers

LEAF = -1


@dataclass(frozen=True, eq=False)
class Tree:
    """A binary tree; a row x goes right at a node if `x[feature] > threshold`.

    Attributes:
        feature: Shape `(nodes,)`.
        threshold: Shape `(nodes,)`.
        left: Index of the left child, shape `(nodes,)`; -1 at a leaf.
        right: Index of the right child, as `left`.
        value: What a leaf adds to the scores, shape `(nodes, outputs)`.
    """

    feature: Integers
    threshold: Reals
    left: Integers
    right: Integers
    value: Reals

    def __call__(self, x: Reals) -> Reals:
        """Values of rows `(n, features)`, shape `(n, outputs)`."""
        at, rows = np.zeros(len(x), dtype=np.int64), np.arange(len(x))
        while (self.left[at] != LEAF).any():
            inner = self.left[at] != LEAF
            right = x[rows, np.where(inner, self.feature[at], 0)] > self.threshold[at]
            at = np.where(inner, np.where(right, self.right[at], self.left[at]), at)
        return np.asarray(self.value[at])

    def to_output(self, output: int, outputs: int) -> Tree:
        """This tree, of one output, as part of a model of several."""
        value = np.zeros((len(self.value), outputs))
        value[:, output] = self.value[:, 0]
        return replace(self, value=value)


def read_trees(model: Any) -> list[Tree] | None:
    """The trees of a model whose scores are the sum of their values, up to a constant; None if it is no such model."""
    for kind in type(model).__mro__:
        if kind.__name__ in _READERS and kind.__module__.split(".")[0] in ("sklearn", "xgboost"):
            return _READERS[kind.__name__](model)
    return None


def _plain(tree: Any, weight: float = 1.0, classes: bool = False) -> Tree:
    """A fitted `sklearn.tree._tree.Tree`; the values of a classifier are made to probabilities."""
    value = np.asarray(tree.value, dtype=np.float64)
    value = value[:, 0] / value[:, 0].sum(axis=1, keepdims=True) if classes else value[:, :, 0]
    left, right = (np.asarray(side, dtype=np.int64) for side in (tree.children_left, tree.children_right))
    return Tree(np.asarray(tree.feature, dtype=np.int64), np.asarray(tree.threshold), left, right, weight * value)


def _single(model: Any) -> list[Tree]:
    return [_plain(model.tree_, classes=hasattr(model, "classes_"))]


def _forest(model: Any) -> list[Tree]:
    share, classes = 1 / len(model.estimators_), hasattr(model, "classes_")
    return [_plain(part.tree_, share, classes) for part in model.estimators_]


def _boosted(model: Any) -> list[Tree]:
    outputs = model.estimators_.shape[1]
    return [
        _plain(part.tree_, model.learning_rate).to_output(k, outputs)
        for stage in model.estimators_
        for k, part in enumerate(stage)
    ]


def _histogram(model: Any) -> list[Tree]:
    found = []
    for stage in model._predictors:
        for k, predictor in enumerate(stage):
            nodes = predictor.nodes
            if nodes["is_categorical"].any():
                raise ValueError("it splits on categories")
            leaf = nodes["is_leaf"].astype(bool)
            left, right = (np.where(leaf, LEAF, nodes[side].astype(np.int64)) for side in ("left", "right"))
            feature = nodes["feature_idx"].astype(np.int64)
            tree = Tree(feature, nodes["num_threshold"], left, right, nodes["value"][:, None].astype(np.float64))
            found.append(tree.to_output(k, len(stage)))
    return found


def _xgboost(model: Any) -> list[Tree]:
    booster = model.get_booster()
    learner = json.loads(bytes(booster.save_raw("json")))["learner"]
    gradient = learner["gradient_booster"]
    if gradient["name"] != "gbtree":
        raise ValueError(f"its booster is {gradient['name']}, not gbtree")
    outputs = max(1, int(learner["learner_model_param"]["num_class"]))
    groups: Iterable[int] = gradient["model"]["tree_info"]
    return [
        _xgboost_tree(tree).to_output(k, outputs) for tree, k in zip(gradient["model"]["trees"], groups, strict=True)
    ]


def _xgboost_tree(tree: dict[str, Any]) -> Tree:
    if any(tree.get("split_type", ())):
        raise ValueError("it splits on categories")
    left, right, feature = (
        np.asarray(tree[key], dtype=np.int64) for key in ("left_children", "right_children", "split_indices")
    )
    conditions = np.asarray(tree["split_conditions"], dtype=np.float32)
    # A row goes left if x < condition, so right from the next float below the condition on.
    below = np.nextafter(conditions, np.float32(-np.inf)).astype(np.float64)
    # At a leaf, the condition is its value.
    return Tree(feature, below, left, right, np.where(left == LEAF, conditions, 0.0)[:, None].astype(np.float64))


_READERS = {
    "BaseDecisionTree": _single,
    "BaseForest": _forest,
    "BaseGradientBoosting": _boosted,
    "BaseHistGradientBoosting": _histogram,
    "XGBModel": _xgboost,
}
