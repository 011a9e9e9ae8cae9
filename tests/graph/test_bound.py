"""Polynomials with a bound: clipped in exact evaluation, vouched for by calibration over the reals."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from secure_infer import backends
from secure_infer.backends.base import require_supported
from secure_infer.errors import UnsupportedNetwork
from secure_infer.frontends import to_graph
from secure_infer.graph import Graph, Node, Polynomial, TensorType, interpret, interpret_real, store
from secure_infer.nn import PolynomialActivation

X = np.array([[-5, 0, 3, 5]])


def _graph(bound: tuple[int, int] | None) -> Graph:
    square = Polynomial(np.array([0, 0, 1]), 1, (1.0,), bound)
    return Graph(TensorType((4,), -5, 5, (1.0,)), (Node("square", square, ("input",)),), "square")


def test_exact_evaluation_clips_and_real_evaluation_does_not() -> None:
    graph = _graph((2, 9))
    assert (graph.output_type.low, graph.output_type.high) == (2, 9)
    assert interpret(graph, X).tolist() == [[9, 2, 5, 9]]
    assert interpret_real(graph, X).tolist() == [[12.5, 0, 4.5, 12.5]]
    assert (_graph((-3, 99)).output_type.low, _graph((-3, 99)).output_type.high) == (0, 13)
    with pytest.raises(UnsupportedNetwork, match="never lies in 20"):
        _graph((20, 30))


def test_the_stored_form_is_that_of_schema_1_unless_there_is_a_bound() -> None:
    for bound, schema in ((None, 1), ((2, 9), 2)):
        head, weights = store.to_bytes(_graph(bound))
        assert json.loads(head)["schema"] == schema and (b"bound" in head) == bool(bound)
        assert store.from_bytes(head, weights).nodes[0].op.bound == bound


def test_shares_can_not_be_clipped() -> None:
    require_supported(backends.load("mpc"), _graph(None))
    with pytest.raises(UnsupportedNetwork, match="clipped"):
        require_supported(backends.load("mpc"), _graph((2, 9)))


def test_a_deep_network_of_quadratics_keeps_its_precision_under_ckks() -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for width in (6, 12, 12, 12, 12):
        layers += [nn.Linear(width, 12), nn.BatchNorm1d(12), PolynomialActivation(radius=3.0)]
    net = nn.Sequential(*layers, nn.Linear(12, 4))
    x = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)
    net(torch.from_numpy(x))
    with torch.no_grad():
        expected = net.eval()(torch.from_numpy(x)).numpy()
    graph = to_graph(net, x, "ckks")
    assert sum(node.op.bound is not None for node in graph.nodes if isinstance(node.op, Polynomial)) >= 1
    spread = np.abs(expected).max()
    for network, share in ((interpret_real, 0.01), (interpret, 0.05)):
        assert np.abs(graph.dequantize(network(graph, graph.quantize(x))) - expected).max() < share * spread
