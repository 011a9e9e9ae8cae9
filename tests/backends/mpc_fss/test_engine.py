"""The engine equals the interpreter, bit for bit, at the cost that its plan says, whatever the network and the mode."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from secure_infer.backends.mpc_fss import ring
from secure_infer.backends.mpc_fss.cost import cost
from secure_infer.backends.mpc_fss.lower import Fusing, lower
from secure_infer.backends.mpc_fss.plan import MODES, Plan
from secure_infer.errors import BundleError, UnsupportedNetwork
from secure_infer.graph import (
    Add,
    Conv2d,
    Graph,
    Linear,
    Lookup,
    Max,
    Node,
    Polynomial,
    QuantRelu,
    Reshape,
    Sign,
    Sum,
    TensorType,
    interpret,
)
from tests.backends.mpc_fss.in_process import TAG, Engine
from tests.strategies import EXACT_OPS, graphs, inputs_for

RNG = np.random.default_rng(0)
VECTOR, IMAGE = TensorType((5,), -8, 7), TensorType((4, 5, 6), -8, 7)


def ints(*shape: int, bound: int = 5) -> np.ndarray:
    return RNG.integers(-bound, bound + 1, shape)


def alone(op: object, kind: TensorType) -> Graph:
    return Graph(kind, (Node("op", op, ("input",) * op.arity),), "op")


CASES = {
    "linear": alone(Linear(ints(3, 5), ints(3)), VECTOR),
    "linear, 32 bits": alone(Linear(ints(3, 5, bound=1 << 20), ints(3)), VECTOR),
    "linear, 64 bits": alone(Linear(ints(3, 5, bound=1 << 40), ints(3)), VECTOR),
    "conv": alone(Conv2d(ints(3, 4, 2, 3), ints(3)), IMAGE),
    "conv, all parameters": alone(Conv2d(ints(6, 2, 3, 2), ints(6), (1.0,), (2, 1), (1, 2), (1, 2), 2), IMAGE),
    "depthwise conv": alone(Conv2d(ints(4, 1, 3, 3), ints(4), (1.0,), (1, 2), (1, 1), groups=4), IMAGE),
    "add": alone(Add((3, 3)), VECTOR),
    "sum": alone(Sum((2, 3), (1, 2), (1, 1), 6), IMAGE),
    "max": alone(Max((2, 2), (2, 2)), IMAGE),
    "max, odd window": alone(Max((3, 1), (1, 2), (1, 0)), IMAGE),
    "max, 7 values": alone(Max((1, 5), (1, 1), (0, 2)), IMAGE),
    "reshape": alone(Reshape((5, 1, 1)), VECTOR),
    "sign": alone(Sign(ints(4)), IMAGE),
    "sign, out of reach": alone(Sign(np.array([99, -99, 7, 8])), IMAGE),
    "sign, two values": alone(Sign(), TensorType((3,), -1, 0)),
    "quantized": alone(QuantRelu(np.sort(ints(4, 3), axis=1), -2), IMAGE),
    "quantized, one row": alone(QuantRelu(np.array([-8, -1, -1, 0, 3, 9])), IMAGE),
    "quantized, constant": alone(QuantRelu(np.empty((1, 0), dtype=np.int64), 3), VECTOR),
    "quantized, 40 bits": alone(QuantRelu(np.array([-(1 << 38), 5, 1 << 35])), TensorType((3,), -(1 << 39), 1 << 39)),
    "look-up": alone(Lookup(ints(16, bound=99), -8), VECTOR),
    "look-up by channel": alone(Lookup(ints(4, 20, bound=1 << 30), -9), IMAGE),
    "look-up of one entry": alone(Lookup(np.array([7]), 3), TensorType((2,), 3, 3)),
    "polynomial": alone(Polynomial(np.array([5, -3, 2, 1])), VECTOR),
    "polynomial by channel": alone(Polynomial(ints(4, 5)), IMAGE),
    "polynomial, shifted": alone(Polynomial(ints(4, 3, bound=1 << 12), 7), IMAGE),
    "polynomial, shifted to nothing": alone(Polynomial(np.array([3, 1]), 12), VECTOR),
    "polynomial, constant": alone(Polynomial(np.array([1 << 20]), 3), VECTOR),
    "wide sums": Graph(
        TensorType((40,), -(1 << 14), 1 << 14),
        (
            Node("a", Linear(ints(6, 40, bound=1 << 12), ints(6)), ("input",)),
            Node("b", QuantRelu(np.sort(ints(6, 3, bound=1 << 27), axis=1)), ("a",)),
            Node("c", Linear(ints(3, 6, bound=100), ints(3)), ("b",)),
        ),
        "c",
    ),
}


FUSE = 1 << 20
FUSED = {
    "signs": Graph(
        TensorType((9,), -8, 7),
        (Node("a", Sign(ints(9)), ("input",)), Node("b", Linear(ints(12, 9, bound=1 << 9), ints(12)), ("a",))),
        "b",
    ),
    "levels by channel, flattened": Graph(
        IMAGE,
        (
            Node("a", QuantRelu(np.sort(ints(4, 3), axis=1), -2), ("input",)),
            Node("b", Reshape((120,)), ("a",)),
            Node("c", Linear(ints(3, 120), ints(3)), ("b",)),
        ),
        "c",
    ),
    "between layers, 64 bits": Graph(
        VECTOR,
        (
            Node("a", Linear(ints(6, 5), ints(6)), ("input",)),
            Node("b", QuantRelu(np.array([-30, 0, 0, 99])), ("a",)),
            Node("c", Linear(ints(2, 6, bound=1 << 40), ints(2)), ("b",)),
            Node("d", Sign(), ("c",)),
        ),
        "d",
    ),
}


def corners(graph: Graph) -> np.ndarray:
    """Random inputs, and both ends of the range."""
    kind = graph.input
    x = np.random.default_rng(1).integers(kind.low, kind.high + 1, (5, *kind.shape))
    x[0], x[1] = kind.low, kind.high
    return x


def check(graph: Graph, x: np.ndarray, mode: str, fuse: int = 0) -> None:
    engine = Engine(graph, mode, fuse)
    ran = engine.run(x)
    assert np.array_equal(ran.outputs, interpret(graph, x))
    assert np.array_equal(engine.run(x[:1], foreseen=True).outputs, interpret(graph, x[:1]))
    expected = cost(ran.plan, len(x))
    assert [pipe.rounds for pipe in ran.pipes] == [expected.rounds] * 2
    assert sum(pipe.bytes_sent for pipe in ran.pipes) == expected.bytes


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CASES)
def test_every_operation_is_exact(name: str, mode: str) -> None:
    graph = CASES[name]
    check(graph, corners(graph), mode)
    check(graph, corners(graph)[:1], mode)


def _drawn(examples: int) -> None:
    @settings(
        deadline=None,
        max_examples=examples,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
        derandomize=True,
        database=None,
    )
    @given(
        graphs(EXACT_OPS | {"Polynomial"}, max_layers=4, max_bits=3),
        st.integers(0, 2**16),
        st.sampled_from(MODES),
        st.sampled_from([0, FUSE]),
    )
    def equals_the_interpreter(graph: Graph, seed: int, mode: str, fuse: int) -> None:
        check(graph, inputs_for(graph, 3, seed), mode, fuse)

    equals_the_interpreter()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", FUSED)
def test_an_activation_and_the_layer_after_it_take_one_round(name: str, mode: str) -> None:
    graph = FUSED[name]
    apart, joined = (lower(graph, "0" * 32, mode, 60.0, 4, Fusing(fuse)).plan for fuse in (0, FUSE))
    assert cost(joined).rounds == cost(apart).rounds - 1
    assert [step.kind for step in joined.steps].count("CompareLinear") == 1
    check(graph, corners(graph), mode, FUSE)
    check(graph, corners(graph)[:1], mode, FUSE)


def test_only_what_one_layer_alone_reads_is_joined_to_it() -> None:
    """Not an output, not what another step reads as well, and nothing that would take too many bytes."""
    first, second = Node("a", Sign(), ("input",)), Node("b", Linear(ints(5, 5), ints(5)), ("a",))
    twice = Node("c", Add((1, 1)), ("a", "b"))
    for nodes, output, fuse in (
        ((first, second), "b", 10),
        ((first, second), "a", FUSE),
        ((first, second, twice), "c", FUSE),
    ):
        plan = lower(Graph(VECTOR, nodes, output), "0" * 32, "outsourced", 60.0, 4, Fusing(fuse)).plan
        assert "CompareLinear" not in [step.kind for step in plan.steps]


def test_a_round_is_saved_where_that_is_faster() -> None:
    """Longer comparisons for many outputs gain nothing where a message takes no time."""
    layers = {outputs: Linear(ints(outputs, 120), ints(outputs)) for outputs in (10, 200)}
    found = []
    for round_trip_s in (0.0, 40e-3):
        for layer in layers.values():
            nodes = (Node("a", Sign(), ("input",)), Node("b", layer, ("a",)))
            graph = Graph(TensorType((120,), -500, 500), nodes, "b")
            plan = lower(graph, "0" * 32, "outsourced", 60.0, 4, Fusing(1 << 20, round_trip_s)).plan
            found.append("CompareLinear" in [step.kind for step in plan.steps])
    assert found == [True, False, True, True]


def test_drawn_networks_are_exact() -> None:
    _drawn(25)


@pytest.mark.full
def test_many_drawn_networks_are_exact() -> None:
    _drawn(400)


@pytest.mark.parametrize("mode", MODES)
def test_what_a_server_sees_is_uniform_whatever_the_input(mode: str) -> None:
    """Each byte value of all that a server is sent in a run is equally frequent: chi-square, 6 sigma.

    Comparisons of 8 bits and a ring of 16 fill their bytes.
    """
    ones, nothing = np.ones((1000, 2000), dtype=np.int64), np.zeros(1000, dtype=np.int64)
    nodes = (Node("a", Sign(), ("input",)), Node("b", Linear(ones, nothing), ("a",)))
    engine = Engine(Graph(TensorType((2000,), -128, 127), nodes, "b"), mode)
    for value in (-128, 0, 127):
        for pipe in engine.run(np.full((3, 2000), value)).pipes:
            data = np.frombuffer(bytes(pipe.seen[len(TAG) :]), np.uint8)
            assert data.size >= 6000
            expected = data.size / 256
            statistic = ((np.bincount(data, minlength=256) - expected) ** 2 / expected).sum()
            assert abs(statistic - 255) < 6 * np.sqrt(2 * 255)


def test_weights_are_shared_uniformly_and_the_plan_holds_none() -> None:
    """Two networks of one structure, with other weights, give one plan."""
    plans = []
    for seed in (0, 1):
        rng = np.random.default_rng(seed)
        signs = rng.permutation(np.tile([[1, -1]], 10).reshape(4, 5), axis=1)
        nodes = (
            Node("a", Linear(signs, np.zeros(4, dtype=np.int64)), ("input",)),
            Node("b", QuantRelu(np.sort(rng.integers(-9, 9, (4, 3)))), ("a",)),
            Node("c", Lookup(rng.integers(-5, 6, 4)), ("b",)),
        )
        plans.append(lower(Graph(VECTOR, nodes, "c"), "0" * 32, "outsourced", 60.0, 4).plan.to_bytes())
    assert plans[0] == plans[1]


def test_rings_follow_the_ranges() -> None:
    """A narrow layer stays in 16 bits beside a wide one, and what is compared fits its ring."""
    plan = lower(CASES["wide sums"], "0" * 32, "outsourced", 60.0, 4).plan
    assert plan.rings == {"input": 32, "a": 32, "b": 16, "c": 16}
    for bound, bits in ((1 << 14, 16), ((1 << 15) - 1, 16), (1 << 15, 32), ((1 << 31) - 1, 32), (1 << 31, 64)):
        kind = TensorType((2,), -bound, bound)
        graph = alone(Linear(np.eye(2, dtype=np.int64), np.zeros(2, dtype=np.int64)), kind)
        assert lower(graph, "0" * 32, "outsourced", 60.0, 4).plan.rings["op"] == bits


def test_what_does_not_fit_is_refused_at_compilation() -> None:
    wide = TensorType((1,), 0, 5000)
    graph = Graph(
        wide,
        (
            Node("a", Lookup(np.zeros(5001, dtype=np.int64)), ("input",)),
            Node("b", Polynomial(np.zeros(9, dtype=np.int64)), ("a",)),
        ),
        "b",
    )
    with pytest.raises(UnsupportedNetwork, match="5001 entries") as caught:
        lower(graph, "0" * 32, "outsourced", 60.0, 4)
    assert [problem.where for problem in caught.value.problems] == ["a", "b"]


@pytest.mark.parametrize(
    "change",
    [
        {"weight": list(range(9))},
        {"weight": [-3, 5]},
        {"weight": [3, 5], "bias": [1, 2, 3]},
        {"weight": [0.5, 5]},
        {"weight": "AAAA"},
        {},
    ],
)
def test_a_plan_that_could_carry_weights_is_refused(change: dict[str, object]) -> None:
    fields = json.loads(lower(CASES["linear"], "0" * 32, "outsourced", 60.0, 4).plan.to_bytes())
    assert Plan.from_bytes(json.dumps(fields).encode()).model == "0" * 32
    fields["steps"][0]["parameters"] = change
    with pytest.raises(BundleError):
        Plan.from_bytes(json.dumps(fields).encode())


@pytest.mark.parametrize("bits", ring.KINDS)
@pytest.mark.parametrize("bound", [3, 1 << 20, None])
def test_products_are_exact(bits: int, bound: int | None) -> None:
    """Against Python's integers, with elements that fill the ring, and with weights that fit one limb."""
    kind = ring.kind_of(bits)
    x = RNG.integers(0, 1 << 62, (7, 300)).astype(kind) * kind.type(5)
    w = (RNG.integers(-bound, bound + 1, (300, 4)) if bound else RNG.integers(0, 1 << 62, (300, 4))).astype(kind)
    found = ring.Factor(w).left(x)
    exact = x.astype(object) @ w.astype(object)
    assert found.dtype == kind
    assert (found.astype(object) == exact % (1 << bits)).all()
