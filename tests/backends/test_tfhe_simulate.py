"""The simulation under TFHE is true: what it flips, and how often, is what ciphertexts do."""

import numpy as np
import pytest

from secure_infer.backends.tfhe import TfheBackend
from secure_infer.graph import Conv2d, Graph, Linear, Node, QuantRelu, Sign, TensorType, interpret

BACKEND = TfheBackend()
SIMULATIONS = 60


def signs():
    """Sixteen signs of one input each; the inputs below lie close to the thresholds."""
    nodes = (
        Node("sum", Linear(np.eye(16, dtype=np.int64), np.zeros(16, dtype=np.int64)), ("input",)),
        Node("sign", Sign(np.full(16, 64)), ("sum",)),
    )
    x = 64 + np.random.default_rng(1).integers(-24, 25, (16, 16))
    return Graph(TensorType((16,), 0, 127), nodes, "sign"), x


def two_layers():
    """Signs far from their thresholds, whose sums lie close to those of the next layer, and bear their noise."""
    weight = np.random.default_rng(2).choice([-1, 1], (8, 32))
    nodes = (
        Node("first", Linear(np.eye(32, dtype=np.int64), np.zeros(32, dtype=np.int64)), ("input",)),
        Node("bits", Sign(np.full(32, 2)), ("first",)),
        Node("second", Linear(weight, np.zeros(8, dtype=np.int64)), ("bits",)),
        Node("sign", Sign(np.array([-2, 0, 2, -4, 0, 2, 4, 0])), ("second",)),
    )
    x = 3 * np.random.default_rng(3).integers(0, 2, (5, 32))
    return Graph(TensorType((32,), 0, 3), nodes, "sign"), x


def tables():
    """A staircase read in full, at a failure probability that one sees."""
    nodes = (
        Node("sum", Linear(np.eye(16, dtype=np.int64), np.zeros(16, dtype=np.int64)), ("input",)),
        Node("step", QuantRelu(np.arange(1, 15, 2)), ("sum",)),
    )
    return Graph(TensorType((16,), 0, 15), nodes, "step"), np.random.default_rng(4).integers(0, 16, (16, 16))


@pytest.mark.parametrize(
    ("network", "options", "some"),
    [
        (signs, {"rounding": "approximate", "keep_bits": 1, "p_error": 0.05}, True),
        (signs, {"rounding": "approximate", "keep_bits": 2, "p_error": 0.05}, True),
        (two_layers, {"rounding": "approximate", "keep_bits": 2, "p_error": 0.15}, True),
        (tables, {"p_error": 2**-7}, False),
    ],
    ids=["one bit", "two bits", "noise of sums", "exact"],
)
def test_as_many_values_flip_on_ciphertexts_as_in_the_simulation(network, options, some):
    graph, x = network()
    everything = np.concatenate([x, np.random.default_rng(5).integers(0, graph.input.high + 1, (300, *x.shape[1:]))])
    compiled = BACKEND.compile(graph, everything, options)
    client, (server,) = BACKEND.client(compiled.client), BACKEND.servers(compiled.servers)
    keys = client.keygen()
    (message,) = client.encrypt(x, keys)
    clear = interpret(graph, x)
    executed = client.decrypt([server.run(message, keys.evaluation)], keys) != clear
    simulated = BACKEND.simulate(graph, compiled, np.concatenate([x] * SIMULATIONS), 0).reshape(
        -1, *x.shape[:1], *clear.shape[1:]
    )
    rates = (simulated != clear).mean(axis=0)
    expected, variance = rates.sum(), (rates * (1 - rates)).sum() * (1 + 1 / SIMULATIONS)
    assert not some or expected > 5  # else nothing was seen
    assert abs(executed.sum() - expected) <= 4 * np.sqrt(variance) + 1
    # Of the values that no simulation flips, ciphertexts flip p * (1 - p)**SIMULATIONS: 1 in e * SIMULATIONS at most.
    quiet = np.count_nonzero(rates == 0) / (np.e * SIMULATIONS)
    assert executed[rates == 0].sum() <= quiet + 4 * np.sqrt(quiet) + 1


def test_the_order_of_an_arrays_memory_makes_no_difference():
    """As images have it whose channels were stored last."""
    weight = np.random.default_rng(6).integers(-2, 3, (1, 2, 3, 4))
    node = Node("conv", Conv2d(weight, np.zeros(1, dtype=np.int64)), ("input",))
    graph = Graph(TensorType((2, 3, 4), 0, 3), (node,), "conv")
    x = np.random.default_rng(7).integers(0, 4, (9, 3, 4, 2)).transpose(0, 3, 1, 2)
    assert not x[0].flags.c_contiguous
    compiled = BACKEND.compile(graph, x, {})
    np.testing.assert_array_equal(BACKEND.simulate(graph, compiled, x, 0), interpret(graph, x))
    client, (server,) = BACKEND.client(compiled.client), BACKEND.servers(compiled.servers)
    keys = client.keygen()
    (message,) = client.encrypt(x[:2], keys)
    np.testing.assert_array_equal(client.decrypt([server.run(message, keys.evaluation)], keys), interpret(graph, x[:2]))
