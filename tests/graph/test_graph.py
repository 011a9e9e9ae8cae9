"""Graphs check themselves, quantize inputs, print, and know their cost."""

from __future__ import annotations

import numpy as np
import pytest

from secure_infer.errors import InvalidInput, UnsupportedNetwork
from secure_infer.graph import (
    Add,
    Conv2d,
    Graph,
    Linear,
    Lookup,
    Max,
    Node,
    Op,
    Polynomial,
    QuantRelu,
    Reshape,
    Sign,
    Sum,
    TensorType,
    format_graph,
)
from secure_infer.graph.analyse import calibrated_ranges, cost, multiplicative_depth
from tests.networks import small_graph

IMAGE = TensorType((2, 4, 4), -3, 3)
VECTOR = TensorType((4,), 0, 3, (0.5,))


def _zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, dtype=np.int64)


BROKEN: list[tuple[TensorType, Op, str]] = [
    (VECTOR, Linear(_zeros(2, 5), _zeros(2)), r"Expected input shape \(5,\)"),
    (VECTOR, Linear(_zeros(2, 4), _zeros(3)), "Expected 2 biases"),
    (VECTOR, Linear(_zeros(2, 4), _zeros(2), (1.0, 1.0, 1.0)), "weight_scale has a wrong length"),
    (TensorType((4,), 0, 3, (1.0, 2.0, 3.0, 4.0)), Linear(_zeros(2, 4), _zeros(2)), "one scale a channel"),
    (VECTOR, Conv2d(_zeros(1, 2, 3, 3), _zeros(1)), "Expected an image"),
    (IMAGE, Conv2d(_zeros(1, 3, 3, 3), _zeros(1)), "Expected 3 input channels"),
    (IMAGE, Conv2d(_zeros(1, 2, 5, 5), _zeros(1)), "does not fit"),
    (IMAGE, Conv2d(_zeros(1, 2, 3, 3), _zeros(1), stride=(0, 1)), "out of range"),
    (IMAGE, Conv2d(_zeros(3, 1, 3, 3), _zeros(3), groups=2), "do not divide"),
    (IMAGE, Sum((5, 5), (1, 1)), "does not fit"),
    (IMAGE, Max((2, 2), (2, 2), (2, 2)), "more than half"),
    (IMAGE, Reshape((31,)), "Can't reshape 32 elements"),
    (IMAGE, Polynomial(_zeros(3, 3)), "1 or 2 rows"),
    (IMAGE, Polynomial(np.array([0, 1, 1 << 61])), "bits before its shift"),
    (IMAGE, Polynomial(np.array([0, 1]), shift=-1), "shift of zero or more"),
    (IMAGE, Sign(_zeros(3)), "1 or 2 rows"),
    (IMAGE, QuantRelu(np.array([2, 1])), "do not ascend"),
    (IMAGE, Lookup(_zeros(6), start=-3), "The table holds"),
    (VECTOR, Linear(np.full((1, 4), 1 << 61), _zeros(1)), "need 65 bits"),
]


@pytest.mark.parametrize(("kind", "op", "says"), BROKEN)
def test_operations_that_do_not_fit_are_refused(kind: TensorType, op: Op, says: str) -> None:
    with pytest.raises(UnsupportedNetwork, match=says) as caught:
        Graph(kind, (Node("node", op, ("input",)),), "node")
    assert caught.value.problems[0].fix


def test_all_problems_are_listed_and_underlined() -> None:
    nodes = (
        Node("a", Sum((9, 9), (1, 1)), ("input",)),
        Node("b", Reshape((5,)), ("input",)),
        Node("after_a", Sign(), ("a",)),
        Node("c", Add(), ("input", "nowhere")),
        Node("c", Sign(), ("input",)),
    )
    with pytest.raises(UnsupportedNetwork) as caught:
        Graph(IMAGE, nodes, "missing")
    assert [problem.where for problem in caught.value.problems] == ["a", "b", "c", "c", "missing"]
    lines = caught.value.excerpt.splitlines()
    assert lines[2].startswith("^^^")
    assert "Can't reshape" in lines[4]


def test_residuals_need_one_scale() -> None:
    nodes = (Node("half", Sign(scale=(0.5,)), ("input",)), Node("sum", Add((1, 3)), ("half", "input")))
    with pytest.raises(UnsupportedNetwork, match="do not meet"):
        Graph(IMAGE, nodes, "sum")
    assert Graph(IMAGE, (nodes[0], Node("sum", Add((1, 2)), ("half", "input"))), "sum").output_type.scale == (0.5,)


def test_quantize_rounds_clips_one_unit_and_refuses_more() -> None:
    graph = Graph(VECTOR, (Node("out", Sign(), ("input",)),), "out")
    assert graph.quantize([[0.0, 0.24, 0.26, 1.9]]).tolist() == [[0, 0, 1, 3]]
    assert graph.quantize(np.ones((1, 4), dtype=bool)).tolist() == [[2, 2, 2, 2]]
    with pytest.raises(InvalidInput) as caught:
        graph.quantize([[np.nan, 5.0, 0.0, 0.0]])
    assert len(caught.value.problems) == 2


def test_dequantize_scales_and_adds_the_offset() -> None:
    graph = small_graph(exact=True)
    unit = 0.5
    assert graph.output_type.scale == (unit * 0.5, unit * 0.25, unit)
    assert graph.dequantize([[4, 4, 4]]).tolist() == [[1.5, -0.5, 2.0]]


@pytest.mark.parametrize(
    ("low", "high", "bits"),
    [(0, 0, 1), (0, 1, 1), (0, 15, 4), (-1, 0, 1), (-8, 7, 4), (-9, 7, 5), (-1, 1, 2), (0, 256, 9)],
)
def test_bits_hold_the_range(low: int, high: int, bits: int) -> None:
    assert TensorType((1,), low, high).bits == bits


def test_text_names_every_value() -> None:
    text = format_graph(small_graph(exact=True))
    assert [line.split()[0] for line in text.splitlines()] == ["%input", "%hidden", "%act", "%head", "return"]
    assert "4 levels from 0" in text


def test_cost_counts_what_each_protocol_pays_for() -> None:
    found = cost(small_graph(exact=True))
    assert (found.macs, found.look_ups, found.comparisons, found.rounds) == (45, 5, 15, 1)
    assert multiplicative_depth(small_graph(exact=False)) == 1 + 1 + 1


def test_calibrated_ranges_are_the_seen_ones() -> None:
    graph = small_graph(exact=True)
    ranges = calibrated_ranges(graph, _zeros(1, 6))
    assert ranges["hidden"] == (graph.node("hidden").op.bias.min(), graph.node("hidden").op.bias.max())
