"""The CIFAR-10 network under TFHE: a part of every layer on real ciphertexts, each compiled on its own."""

from dataclasses import replace

import numpy as np
import pytest

import secure_infer as si
from secure_infer import zoo
from secure_infer.backends.tfhe import TfheBackend
from secure_infer.errors import DataError
from secure_infer.graph import Conv2d, Graph, Linear, Node, QuantRelu, TensorType, interpret
from secure_infer.graph.interpret import trace
from secure_infer.nn.data import load_dataset

NAME = "cifar10-cnn-tfhe"
BACKEND = TfheBackend()
CHANNELS, PATCHES = 4, 2

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def whole():
    """The compiled network, its options, the data, and what its layers give for some training images."""
    try:
        data = load_dataset("cifar10-jpeg", download=False)
    except DataError:
        pytest.skip("the data set is not on this machine")
    options = zoo.recipe(NAME).protocols["tfhe"]
    compiled = si.compile(zoo.load_model(NAME), data.x_train[:300], "tfhe", **options)
    x = compiled.graph.quantize(data.x_train[:300])
    return compiled, options, data, {"input": x, **trace(compiled.graph, x)}


def layers(graph):
    """Convolutions with the activation after each, and the last layer alone."""
    nodes = {node.name: node for node in graph.nodes}
    for node in graph.nodes:
        if isinstance(node.op, QuantRelu):
            yield nodes[node.inputs[0]], node
    yield nodes[graph.output], None


def part(graph, linear, activation):
    """A few outputs of a layer at one position, as a network of its own."""
    source = graph.types[linear.inputs[0]]
    if activation is None:
        kind = replace(source, scale=(1.0,))
        return Graph(kind, (Node("linear", linear.op, ("input",)),), "linear")
    op = linear.op
    kind = TensorType((source.shape[0], *op.weight.shape[2:]), source.low, source.high)
    conv = Conv2d(op.weight[:CHANNELS], op.bias[:CHANNELS])
    rows = np.broadcast_to(
        np.atleast_2d(activation.op.thresholds), (len(op.weight), activation.op.thresholds.shape[-1])
    )
    nodes = (
        Node("linear", conv, ("input",)),
        Node("activation", replace(activation.op, thresholds=rows[:CHANNELS], scale=(1.0,)), ("linear",)),
    )
    return Graph(kind, nodes, "activation")


def windows(values, op):
    """Inputs of one output position, away from the border where there is one."""
    if isinstance(op, Linear):
        return values
    height, width = op.weight.shape[2:]
    top = (values.shape[2] - height) // 2
    left = (values.shape[3] - width) // 2
    return values[:, :, top : top + height, left : left + width]


def test_the_network_has_seven_layers_of_look_ups(whole):
    compiled, _, _, _ = whole
    assert len(list(layers(compiled.graph))) == 8
    assert compiled.program.counts == {"look_ups": 43_136}


@pytest.mark.parametrize("number", range(8))
def test_a_layer_on_ciphertexts(whole, number):
    compiled, options, _, values = whole
    linear, activation = list(layers(compiled.graph))[number]
    graph = part(compiled.graph, linear, activation)
    inputs = windows(values[linear.inputs[0]], linear.op)
    program = BACKEND.compile(graph, inputs, dict(options))
    client, (server,) = BACKEND.client(program.client), BACKEND.servers(program.servers)
    keys = client.keygen()
    (message,) = client.encrypt(inputs[:PATCHES], keys)
    found = client.decrypt([server.run(message, keys.evaluation)], keys)
    wanted = interpret(graph, inputs[:PATCHES])
    if activation is None:  # noise in the last bits of the output is all that there may be
        assert np.abs(found - wanted).max() <= 4
    else:
        assert np.abs(found - wanted).max() <= 1
        assert (found == wanted).mean() >= 0.5


def test_the_simulation_keeps_the_accuracy(whole):
    compiled, _, data, _ = whole
    x, y = data.x_test[:200], data.y_test[:200]
    clear, simulated = (compiled.predict(x, mode=mode).argmax(1) for mode in ("clear", "simulate"))
    assert (simulated == clear).mean() > 0.85
    assert (simulated == y).mean() > 0.7
