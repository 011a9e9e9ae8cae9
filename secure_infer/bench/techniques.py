"""Five kinds of classifiers, each fitted on flat images and attacked as Papernot et al. 2016 did."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from secure_infer.attacks import Goal, NetworkTarget, attack
from secure_infer.attacks.extraction import Training
from secure_infer.attacks.transfer import Tree, against_weights, logistic_sign, nearest_leaf, neighbor_sign
from secure_infer.errors import missing_extra

Reals = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
RADIUS = 0.3
"""Of the gradient signs, as in the paper."""
_LENGTHS = range(1, 10)
_SURE = 0.99


@dataclass(frozen=True, eq=False)
class Model:
    """A fitted classifier.

    Attributes:
        predict: From inputs `(n, features)` to classes `(n,)`.
        craft: From inputs and the classes to leave to disturbed inputs.
    """

    predict: Callable[[Reals], Labels]
    craft: Callable[[Reals, Labels], Reals]


Fit = Callable[[Reals, Labels, int], Model]


def techniques() -> dict[str, Fit]:
    """How each kind is fitted to inputs `(n, features)` and classes `(n,)`, with a seed; in the paper's order.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise missing_extra("The transfer matrix", "train", "sklearn") from None
    return {"DNN": network, "LR": logistic, "SVM": machine, "DT": tree, "kNN": neighbors}


def network(x: Reals, y: Labels, seed: int) -> Model:
    """A convolutional network with two layers and dropout; attacked by the fast gradient sign."""
    side, classes = math.isqrt(x.shape[1]), int(y.max()) + 1
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Training(epochs=6, batch=128, rate=2e-3).fit(
            _convolutions(side, classes), torch.from_numpy(x), torch.from_numpy(y), generator
        )
    target = NetworkTarget(net, (x.shape[1],))

    def craft(inputs: Reals, labels: Labels) -> Reals:
        sign = attack("fgsm")(radius=RADIUS)  # type: ignore[call-arg]
        return _numpy(sign(target, torch.from_numpy(inputs), Goal(torch.from_numpy(labels))))

    return Model(lambda inputs: _numpy(target.query(torch.from_numpy(inputs)).labels), craft)


def logistic(x: Reals, y: Labels, seed: int) -> Model:
    """Softmax regression; attacked by the fast gradient sign."""
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(C=1.0, max_iter=1000, tol=1e-2, random_state=seed).fit(x, y)
    weights, biases = fitted.coef_.astype(np.float32), fitted.intercept_.astype(np.float32)
    return Model(_labels(fitted), lambda inputs, labels: logistic_sign(inputs, labels, weights, biases, RADIUS))


def machine(x: Reals, y: Labels, seed: int) -> Model:
    """A linear one-against-rest SVM; attacked along its weights, by the least whole length that fools it for sure."""
    from sklearn.svm import LinearSVC

    fitted = LinearSVC(C=0.1, dual=True, max_iter=10_000, tol=1e-2, random_state=seed).fit(x, y)
    weights, predict = fitted.coef_.astype(np.float32), _labels(fitted)
    tried = predict(x[:1000])
    moved = {length: against_weights(x[:1000], tried, weights, length) for length in _LENGTHS}
    enough = [length for length, found in moved.items() if (predict(found) != tried).mean() >= _SURE]
    length = min(enough, default=max(_LENGTHS))
    return Model(predict, lambda inputs, labels: against_weights(inputs, labels, weights, length))


def tree(x: Reals, y: Labels, seed: int) -> Model:
    """A decision tree; attacked by way of the nearest leaf of another class."""
    from sklearn.tree import DecisionTreeClassifier

    fitted = DecisionTreeClassifier(random_state=seed).fit(x, y)
    nodes = fitted.tree_
    classes = fitted.classes_[nodes.value[:, 0].argmax(1)]
    plain = Tree(nodes.children_left, nodes.children_right, nodes.feature, nodes.threshold, classes)
    return Model(_labels(fitted), lambda inputs, labels: nearest_leaf(inputs, plain))


def neighbors(x: Reals, y: Labels, seed: int) -> Model:
    """Five nearest neighbors; attacked by the gradient sign of their smoothed vote."""
    from sklearn.neighbors import KNeighborsClassifier

    fitted = KNeighborsClassifier(5).fit(x, y)
    return Model(_labels(fitted), lambda inputs, labels: neighbor_sign(inputs, labels, x, y, RADIUS))


def _convolutions(side: int, classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, side, side)),
        nn.Conv2d(1, 16, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * (side // 4) ** 2, 200),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(200, classes),
    )


def _labels(fitted: Any) -> Callable[[Reals], Labels]:
    return lambda inputs: np.asarray(fitted.predict(inputs), dtype=np.int64)


def _numpy(values: torch.Tensor) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = values.detach().cpu().numpy()
    return array
