"""Passes never change the function."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_infer.graph import (
    Conv2d,
    Graph,
    Linear,
    Max,
    Node,
    QuantRelu,
    Reshape,
    Sign,
    Sum,
    TensorType,
    interpret,
    passes,
)
from secure_infer.graph.types import Integers
from tests.strategies import graphs, inputs_for


def _column(*values: int) -> Integers:
    return np.array(values, dtype=np.int64)


def _gain(values: Integers, bias: Integers) -> Conv2d:
    return Conv2d(values.reshape(-1, 1, 1, 1), bias, groups=len(values))


def _batch_norm_net(gains: Integers, bias: Integers, activation: Sign | QuantRelu) -> Graph:
    rng = np.random.default_rng(0)
    conv = Conv2d(rng.integers(-3, 4, (3, 1, 2, 2)), _column(1, -1, 0))
    nodes = (
        Node("conv", conv, ("input",)),
        Node("norm", _gain(gains, bias), ("conv",)),
        Node("act", activation, ("norm",)),
    )
    return Graph(TensorType((1, 4, 5), -3, 3), nodes, "act")


@settings(deadline=None, max_examples=200)
@given(graphs(), st.booleans())
def test_optimize_keeps_every_output(graph: Graph, pool_first: bool) -> None:
    x = inputs_for(graph, 20)
    better = passes.optimize(graph, pool_first=pool_first)
    assert np.array_equal(interpret(better, x), interpret(graph, x))
    assert better.output_type.scale == graph.output_type.scale


gain_values = st.lists(st.integers(-3, 3), min_size=3, max_size=3).map(lambda v: np.array(v, dtype=np.int64))


@settings(deadline=None, max_examples=200)
@given(gain_values, gain_values, st.booleans())
def test_a_batch_norm_with_any_gain_folds_into_thresholds(gains: Integers, bias: Integers, sign: bool) -> None:
    activation = Sign(_column(0, 1, -2)) if sign else QuantRelu(_column(-4, 0, 3))
    graph = _batch_norm_net(gains, bias, activation)
    folded = passes.fold_gains(graph)
    assert [node.name for node in folded] == ["conv", "act"]
    x = inputs_for(graph, 50)
    assert np.array_equal(interpret(folded, x), interpret(graph, x))


def test_a_gain_before_another_reader_folds_into_the_layer_before() -> None:
    rng = np.random.default_rng(1)
    nodes = (
        Node("conv", Conv2d(rng.integers(-3, 4, (2, 1, 2, 2)), _column(1, 2), (0.5,)), ("input",)),
        Node("norm", Conv2d(_column(-2, 3).reshape(2, 1, 1, 1), _column(1, 1), (2.0, 4.0), groups=2), ("conv",)),
        Node("pool", Sum((2, 2), (2, 2), divisor=4), ("norm",)),
    )
    graph = Graph(TensorType((1, 5, 5), 0, 3), nodes, "pool")
    folded = passes.optimize(graph)
    assert [node.name for node in folded] == ["conv", "pool"]
    assert folded.output_type.scale == pytest.approx(graph.output_type.scale)
    x = inputs_for(graph, 20)
    assert np.array_equal(interpret(folded, x), interpret(graph, x))


@pytest.mark.parametrize(
    "second",
    [
        Sign(_column(2)),
        Sign(_column(-5, 1, 9)),
        QuantRelu(_column(-1, 1, 2, 7)),
        QuantRelu(np.array([[0, 1], [2, 3], [4, 5]]), low=-1),
    ],
)
def test_two_requantizations_become_one(second: Sign | QuantRelu) -> None:
    nodes = (
        Node("first", QuantRelu(np.array([[-40, -1, 4], [0, 2, 90], [1, 1, 3]])), ("input",)),
        Node("second", second, ("first",)),
    )
    graph = Graph(TensorType((3,), -6, 6), nodes, "second")
    fused = passes.fuse_requantizations(graph)
    assert [node.name for node in fused] == ["second"]
    x = np.stack([np.arange(-6, 7)] * 3, axis=1)
    assert np.array_equal(interpret(fused, x), interpret(graph, x))


def test_the_maximum_goes_where_it_is_cheaper() -> None:
    nodes = (
        Node("conv", Conv2d(np.ones((1, 1, 1, 1), dtype=np.int64), _column(0), padding=(1, 1)), ("input",)),
        Node("max", Max((2, 2), (2, 2)), ("conv",)),
        Node("sign", Sign(_column(1)), ("max",)),
    )
    graph = Graph(TensorType((1, 4, 4), -3, 3), nodes, "sign")
    assert [node.kind for node in passes.optimize(graph)] == ["Conv2d", "Sign", "Max"]
    again = passes.optimize(passes.optimize(graph), pool_first=True)
    assert [node.kind for node in again] == ["Conv2d", "Max", "Sign"]


def test_identities_and_unread_nodes_disappear() -> None:
    nodes = (
        Node("a", Reshape((2, 3)), ("input",)),
        Node("b", Reshape((6,)), ("a",)),
        Node("unread", Sign(), ("b",)),
        Node("out", Linear(np.eye(6, dtype=np.int64), _column(*range(6))), ("b",)),
    )
    graph = Graph(TensorType((6,), 0, 3), nodes, "out")
    assert [node.name for node in passes.optimize(graph)] == ["out"]
