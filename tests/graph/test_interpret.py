"""The interpreter, the oracle of all other tests, against torch and against plain Python integers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from secure_infer.graph import (
    Add,
    Conv2d,
    Linear,
    Lookup,
    Max,
    Polynomial,
    QuantRelu,
    Sign,
    Sum,
    interpret,
    interpret_real,
)
from secure_infer.graph.interpret import apply, trace
from tests.strategies import EXACT_OPS, REAL_OPS, graphs, inputs_for


@settings(deadline=None)
@given(st.data())
def test_conv2d_is_torchs(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    groups, into, out = (data.draw(st.integers(1, 3)) for _ in range(3))
    kernel, stride, padding, dilation = (
        (data.draw(st.integers(low, high)), data.draw(st.integers(low, high)))
        for low, high in ((1, 3), (1, 3), (0, 2), (1, 2))
    )
    x = rng.integers(-9, 9, (2, groups * into, 7, 8))
    weight, bias = rng.integers(-9, 9, (groups * out, into, *kernel)), rng.integers(-9, 9, groups * out)
    op = Conv2d(weight, bias, (1.0,), stride, padding, dilation, groups)
    tensors = (torch.from_numpy(array).double() for array in (x, weight, bias))
    expected = functional.conv2d(*tensors, stride, padding, dilation, groups).numpy()
    for use_float in (False, True):
        assert np.array_equal(apply(op, x, use_float=use_float), expected)


@settings(deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 1), st.integers(0, 2**32 - 1))
def test_pooling_is_torchs(kernel: int, stride: int, padding: int, seed: int) -> None:
    padding = min(padding, kernel // 2)
    x = np.random.default_rng(seed).integers(-9, 9, (2, 3, 6, 7))
    image, sides = torch.from_numpy(x).double(), ((kernel, kernel), (stride, stride), (padding, padding))
    total = functional.avg_pool2d(image, kernel, stride, padding) * kernel**2
    assert np.array_equal(apply(Sum(*sides), x), np.rint(total.numpy()))
    assert np.array_equal(apply(Max(*sides), x), functional.max_pool2d(image, kernel, stride, padding).numpy())


def test_activations_on_small_vectors() -> None:
    x = np.array([[-3, -1, 0, 1, 2]])
    assert apply(Sign(), x).tolist() == [[-1, -1, 1, 1, 1]]
    assert apply(Sign(np.array([0, 0, 1, 1, 3])), x).tolist() == [[-1, -1, -1, 1, -1]]
    assert apply(QuantRelu(np.array([-1, 1, 2])), x).tolist() == [[0, 1, 1, 2, 3]]
    assert apply(QuantRelu(np.array([-1, 1, 2]), low=-2), x).tolist() == [[-2, -1, -1, 0, 1]]
    assert apply(Lookup(np.array([9, 8, 7, 6, 5, 4]), start=-3), x).tolist() == [[9, 7, 6, 5, 4]]
    assert apply(Polynomial(np.array([1, 2, 3])), x).tolist() == [[22, 2, 1, 6, 17]]
    assert apply(Polynomial(np.array([0, 1]), shift=1), x).tolist() == [[-1, 0, 0, 1, 1]]
    assert apply(Add((2, 3)), x, x).tolist() == [[-15, -5, 0, 5, 10]]


def test_sums_beyond_the_floats_are_exact() -> None:
    weight = np.full((1, 4), (1 << 52) + 1)
    x = np.array([[1, 1, -1, 1]])
    assert int(apply(Linear(weight, np.zeros(1, dtype=np.int64)), x)[0, 0]) == 2 * ((1 << 52) + 1)


@settings(deadline=None, max_examples=200)
@given(graphs(EXACT_OPS | {"Polynomial"}))
def test_every_value_lies_in_its_inferred_range(graph) -> None:
    for name, values in trace(graph, inputs_for(graph, 30)).items():
        kind = graph.types[name]
        assert values.shape[1:] == kind.shape
        assert kind.low <= values.min()
        assert values.max() <= kind.high


@settings(deadline=None)
@given(graphs(REAL_OPS))
def test_over_the_reals_only_the_rounding_is_missing(graph) -> None:
    x = inputs_for(graph, 5)
    exact, real = interpret(graph, x), interpret_real(graph, x)
    if not any(isinstance(node.op, Polynomial) for node in graph):
        assert np.array_equal(exact, real)
    assert real.dtype == np.float64


@pytest.mark.parametrize("degree", [1, 2, 3, 5])
def test_polynomials_round_to_nearest(degree: int) -> None:
    rng = np.random.default_rng(degree)
    op = Polynomial(rng.integers(-9, 10, (2, degree + 1)), shift=5)
    x = rng.integers(-20, 20, (50, 2))
    values = apply(op, x)
    for channel, row in enumerate(op.coefficients):
        for integer, result in zip(x[:, channel], values[:, channel], strict=True):
            exact = sum(int(c) * int(integer) ** d for d, c in enumerate(row)) / 32
            assert result == int(np.floor(exact + 0.5))
