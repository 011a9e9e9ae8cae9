"""Models of rows of features, from scikit-learn and XGBoost, as graphs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy.typing as npt

from secure_infer.errors import Problem, UnsupportedNetwork, UsageError
from secure_infer.frontends.quantize import Reals
from secure_infer.frontends.tabular.forest import forest_graph
from secure_infer.frontends.tabular.linear import linear_graph
from secure_infer.frontends.tabular.models import Family, family, parts, problems, rows, scaling, scores
from secure_infer.frontends.tabular.trees import read_trees
from secure_infer.graph import Graph
from secure_infer.graph.encoding import Affine, Bins, Encoding

__all__ = ["check", "to_graph"]

_PROTOCOLS = ("clear", "tfhe", "ckks", "mpc", "mpc-fss", "mpc-spu")
_SUM_BITS = 13
_DEFAULTS: dict[Family, dict[str, int]] = {"linear": {"input": 10, "weights": 12}, "trees": {"input": 5}}


def to_graph(
    model: Any, calibration: npt.ArrayLike, protocol: str, n_bits: int | Mapping[str, int] | None = None
) -> Graph:
    """Translate a fitted model, or a pipeline of scalers and a model, to an integer graph.

    A client rounds each feature to a grid of its own before it encrypts. For trees it compares the feature with edges
    that part the calibration rows evenly, so that no comparison is left for the server; a threshold of the model is
    moved to the edge that parts these rows alike, or most nearly so. Features with fewer than `2**input` values are
    not changed by that at all.

    Args:
        model: A linear model, a decision tree, a forest, gradient boosting or a multi-layer perceptron of scikit-learn,
            a boosted model of XGBoost, or a pipeline that ends in one after scalers.
        calibration: Typical rows, shape `(n, features)`; best the training data.
        protocol: "clear", "tfhe", "mpc", or for linear models "ckks".
        n_bits: Bits of a feature (`input`: trees 5, linear models 10) and of a weight or a leaf's value (`weights`).

    Returns:
        The graph. Its outputs are scores: the prediction of a regressor; for a classifier a column a class, of which
        the greatest names the class: probabilities for trees and forests, else the decision function (of two classes,
        minus and plus half of it; a softmax makes probabilities of it where the loss is logistic).

    Raises:
        UsageError: An unknown protocol, or bits out of range.
        InvalidInput: Calibration data that the model can't read.
        UnsupportedNetwork: A model or a scaler that can't be translated.
    """
    found = check(model, protocol)
    if found:
        raise UnsupportedNetwork(f"The model can't run under {protocol}.", found)
    scalers, end = parts(model)
    kind = family(end)
    x = rows(model, calibration)
    gain, shift = scaling(scalers, x.shape[1])
    z = x * gain + shift
    graph = _translated(end, kind, z, protocol, n_bits)
    return replace(graph, encoding=_unscaled(graph.encoding, gain, shift))


def check(model: Any, protocol: str) -> list[Problem]:
    """All that stands in the way of a model; none means that it compiles, if its calibration data does.

    Raises:
        UsageError: An unknown protocol.
    """
    if protocol not in _PROTOCOLS:
        raise UsageError(
            f"There is no protocol {protocol!r}.",
            [Problem("protocol", f"Expected one of {', '.join(_PROTOCOLS)}.", "check the spelling.")],
        )
    return list(problems(model, protocol))


def _translated(
    end: Any, kind: Family | None, z: Reals, protocol: str, n_bits: int | Mapping[str, int] | None
) -> Graph:
    assert kind is not None
    found = scores(end, kind, z)
    if kind == "perceptron":
        from secure_infer.frontends.tabular.perceptron import perceptron_graph

        wide = {"input": 6} if protocol == "tfhe" else None  # outliers take most of a narrow grid
        return perceptron_graph(end, z, found, protocol, wide if n_bits is None else n_bits)
    if kind == "linear":
        bits = _bits(n_bits, _DEFAULTS[kind])
        return linear_graph(end, z, found, bits["input"], bits["weights"])
    trees = read_trees(end) or []
    # Sums over all trees should stay within some bits, and each value needs a few.
    values = max(4, _SUM_BITS - math.ceil(math.log2(len(trees)))) if protocol == "tfhe" else 16
    bits = _bits(n_bits, {**_DEFAULTS[kind], "weights": values})
    return forest_graph(end, trees, z, found, bits["input"], bits["weights"], not protocol.startswith("mpc"))


def _bits(given: int | Mapping[str, int] | None, defaults: Mapping[str, int]) -> dict[str, int]:
    named = dict(given) if isinstance(given, Mapping) else {} if given is None else dict.fromkeys(defaults, given)
    wrong = [
        Problem("n_bits", f"There is no {name!r}.", f"use {', '.join(defaults)}.")
        for name in named
        if name not in defaults
    ]
    limits = {"input": 12, "weights": 16}
    wrong += [
        Problem("n_bits", f"Expected {name}={bits!r} in [1, {limits[name]}].", "use a number of bits in this range.")
        for name, bits in named.items()
        if name in defaults and (type(bits) is not int or not 1 <= bits <= limits[name])
    ]
    if wrong:
        raise UsageError("n_bits does not make sense.", wrong)
    return {**defaults, **named}


def _unscaled(encoding: Encoding | None, gain: Reals, shift: Reals) -> Encoding:
    """The encoding of rows as they are before `z = gain * x + shift`."""
    match encoding:
        case Affine():
            return Affine((encoding.offset - shift) / gain, encoding.scale / gain)
        case Bins():
            return Bins((encoding.edges - shift[:, None]) / gain[:, None])
        case None:
            raise AssertionError("models of rows always have an encoding")
