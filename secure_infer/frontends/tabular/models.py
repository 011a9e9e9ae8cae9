"""What a scikit-learn or XGBoost model is: its scalers, its family, and the scores that its predictions come from.

    regressors                          predict(x), a column an output
    trees and forests that classify     predict_proba(x)
    all other classifiers               decision_function(x); of two classes, -d/2 and d/2 for its one column d

So the greatest column is the predicted class in each case, and for models with a logistic loss the softmax of the
columns is predict_proba(x).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from secure_infer.errors import InvalidInput, Problem, UnsupportedNetwork
from secure_infer.frontends.quantize import Reals
from secure_infer.frontends.tabular.trees import read_trees
from secure_infer.graph.types import Integers

Family = Literal["linear", "trees", "perceptron"]
_FIX = "use a linear model, trees, a forest, gradient boosting or a multi-layer perceptron."
_HALVES = np.array([[-1], [1]])


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores as a function of fewer raw columns: `unit * columns @ raw + shift`.

    Attributes:
        raw: On the calibration rows, shape `(n, outputs)`.
        columns: Of 0, 1 and -1, shape `(columns, outputs)`.
        unit: A factor.
        shift: Shape `(columns,)`.
    """

    raw: Reals
    columns: Integers
    unit: float
    shift: Reals

    @property
    def values(self) -> Reals:
        """The scores of the calibration rows, shape `(n, columns)`."""
        return self.finish(self.raw)

    def finish(self, raw: Reals) -> Reals:
        """Scores of raw columns."""
        return np.asarray(self.unit * raw @ self.columns.T + self.shift)


def parts(model: Any) -> tuple[list[Any], Any]:
    """The scalers of a pipeline, and the model at its end; the best model of a search stands for the search."""
    model = getattr(model, "best_estimator_", model)
    if not hasattr(model, "steps"):
        return [], model
    *before, last = (step for _, step in model.steps)
    scalers, end = parts(last)
    return [step for step in before if step not in (None, "passthrough")] + scalers, end


def family(model: Any) -> Family | None:
    """The family of a fitted model; None if it is of none.

    Raises:
        ValueError: Trees of a kind that can't be read; the text says why.
    """
    if hasattr(model, "coefs_") and hasattr(model, "out_activation_"):
        return "perceptron"
    if hasattr(model, "coef_") and hasattr(model, "intercept_"):
        return "linear"
    return None if read_trees(model) is None else "trees"


def problems(model: Any, protocol: str) -> Iterator[Problem]:
    """All that stands in the way of a model, as far as can be said without data."""
    scalers, end = parts(model)
    for scaler in scalers:
        if _affine(scaler) is None:
            where, fix = type(scaler).__name__, "apply it on the client, before the encrypted part."
            yield Problem(where, "It is no fitted scaler of single features.", fix)
    where = type(end).__name__
    if not _fitted(end):
        yield Problem(where, "It is not fitted.", "call fit() first.")
        return
    try:
        found = family(end)
    except ValueError as error:
        yield Problem(where, f"Its trees can't be read: {error}.", "train it without this option.")
        return
    if found is None:
        yield Problem(where, f"There is no encrypted form of {where}.", _FIX)
    elif found == "trees" and protocol == "ckks":
        yield Problem(where, "CKKS can't evaluate trees: it adds and multiplies only.", 'use "tfhe" or "mpc".')
    elif found == "perceptron" and protocol == "ckks" and end.activation != "identity":
        yield Problem(
            where,
            f"CKKS can't evaluate {end.activation}: it adds and multiplies only.",
            'use "tfhe" or "mpc", or train a torch network with polynomial activations.',
        )
    several = str(getattr(getattr(end, "_label_binarizer", None), "y_type_", "")).startswith("multilabel")
    if several or isinstance(getattr(end, "classes_", None), list):
        yield Problem(where, "It predicts several labels at once.", "train one model a label.")


def _fitted(model: Any) -> bool:
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    try:
        check_is_fitted(model)
    except (NotFittedError, TypeError):
        return False
    return True


def scaling(scalers: list[Any], features: int) -> tuple[Reals, Reals]:
    """Gain and shift of each feature that scalers one after another amount to, each of shape `(features,)`."""
    gain, shift = np.ones(features), np.zeros(features)
    for scaler in scalers:
        g, s = _affine(scaler) or (np.ones(1), np.zeros(1))
        gain, shift = gain * g, shift * g + s
    return gain, shift


def _affine(scaler: Any) -> tuple[Reals, Reals] | None:
    """Gain and shift of a fitted scaler; None if it is something else."""
    name = type(scaler).__name__
    if not hasattr(scaler, "scale_"):
        return None
    spread = np.asarray(1.0 if scaler.scale_ is None else scaler.scale_, dtype=np.float64)
    match name:
        case "StandardScaler":
            return 1 / spread, -np.asarray(0.0 if scaler.mean_ is None else scaler.mean_) / spread
        case "RobustScaler":
            return 1 / spread, -np.asarray(0.0 if scaler.center_ is None else scaler.center_) / spread
        case "MaxAbsScaler":
            return 1 / spread, np.zeros(1)
        case "MinMaxScaler" if not scaler.clip:
            return spread, np.asarray(scaler.min_)
        case _:
            return None


def rows(model: Any, calibration: Any) -> Reals:
    """Calibration rows, shape `(n, features)`.

    Raises:
        InvalidInput: They are no finite numbers, or have another number of features than the model.
    """
    x, expected = np.asarray(calibration), getattr(model, "n_features_in_", None)
    if x.dtype.kind not in "buif":
        problem = Problem("calibration", f"Expected numbers, got dtype {x.dtype}.", "encode categories as numbers.")
    elif x.ndim != 2 or not len(x) or expected not in (None, x.shape[1]):
        shape = f"(n, {'features' if expected is None else expected})"
        problem = Problem("calibration", f"Expected shape {shape}, got {x.shape}.", "pass typical rows.")
    elif not np.isfinite(x).all():
        problem = Problem("calibration", "Some values are NaN or infinite.", "fill them in, in calibration and use.")
    else:
        return x.astype(np.float64)
    raise InvalidInput("The calibration data can't be used.", [problem])


def scores(model: Any, kind: Family, x: Reals) -> Scores:
    """The scores of a fitted model on rows `(n, features)`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # rows without the names of their columns
        if not hasattr(model, "classes_"):
            return _plain(model.predict(x))
        if hasattr(model, "get_booster"):
            return _decision(model.predict(x, output_margin=True))
        if kind == "perceptron":
            return _decision(_logits(model.predict_proba(x)))
        if not hasattr(model, "decision_function"):
            return _probabilities(model.predict_proba(x))
        return _decision(model.decision_function(x))


def _plain(values: Any) -> Scores:
    raw = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
    outputs = raw.shape[1]
    return Scores(raw, np.eye(outputs, dtype=np.int64), 1.0, np.zeros(outputs))


def _decision(values: Any) -> Scores:
    found = _plain(values)
    return found if found.raw.shape[1] > 1 else Scores(found.raw, _HALVES, 0.5, np.zeros(2))


def _probabilities(values: Any) -> Scores:
    found = _plain(values)
    if found.raw.shape[1] != 2:
        return found
    return Scores(found.raw[:, 1:], _HALVES, 1.0, np.array([1.0, 0.0]))


def _logits(probabilities: Any) -> Reals:
    """What a softmax, or for two classes a sigmoid, was applied to; up to a constant for each row."""
    logs = np.log(np.maximum(probabilities, 1e-300))
    return np.asarray(logs[:, 1:] - logs[:, :1] if logs.shape[1] == 2 else logs - logs.mean(axis=1, keepdims=True))


def disagrees(model: Any) -> UnsupportedNetwork:
    """The error for a model that computes something else than its family does."""
    where = type(model).__name__
    what = "Its scores are not what its coefficients or trees add up to, as with a link function or a custom loss."
    return UnsupportedNetwork("The model can't be translated.", [Problem(where, what, _FIX)])
