"""The CIFAR-10 network under TFHE: every layer on real ciphertexts, all channels at one position.

All but the last one, which has the head behind it, run under keys of the whole network's parameters.
"""

from dataclasses import replace

import numpy as np
import pytest

import secure_infer as si
from secure_infer import zoo
from secure_infer.backends.tfhe import TfheBackend
from secure_infer.errors import DataError
from secure_infer.graph import Conv2d, Graph, QuantRelu, interpret
from secure_infer.graph.interpret import trace
from secure_infer.nn.data import load_dataset

NAME = "cifar10-cnn-tfhe"
BACKEND = TfheBackend()
PATCHES, SIMULATIONS = 2, 20
LAST = 6

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
    """Each convolution with the activation after it, all channels at one position; the last one with the head."""
    nodes = {node.name: node for node in graph.nodes}
    pairs = [(nodes[node.inputs[0]], node) for node in graph.nodes if isinstance(node.op, QuantRelu)]
    for conv, activation in pairs[:-1]:
        yield conv, (replace(conv, op=Conv2d(conv.op.weight, conv.op.bias)), activation)
    yield pairs[-1][0], graph.nodes[graph.nodes.index(pairs[-1][0]) :]


def network(graph, conv, nodes):
    """A network of its own that reads what `conv` reads at one position."""
    source = graph.types[conv.inputs[0]]
    kind = replace(source, shape=(source.shape[0], *conv.op.weight.shape[2:]), scale=(1.0,))
    return Graph(kind, (replace(nodes[0], inputs=("input",)), *nodes[1:]), nodes[-1].name)


def windows(values, conv):
    """What one output position reads, away from the border where there is one."""
    height, width = conv.op.weight.shape[2:]
    top, left = (values.shape[2] - height) // 2, (values.shape[3] - width) // 2
    return values[:, :, top : top + height, left : left + width]


def test_the_network_has_seven_layers_of_look_ups(whole):
    compiled, _, _, _ = whole
    assert len(list(layers(compiled.graph))) == 7
    assert compiled.program.counts == {"look_ups": 43_136}


@pytest.mark.parametrize("number", range(7))
def test_a_layer_on_ciphertexts(whole, number):
    """Values differ from the clear ones as much as in simulations."""
    compiled, options, _, values = whole
    conv, nodes = list(layers(compiled.graph))[number]
    graph, inputs = network(compiled.graph, conv, nodes), windows(values[conv.inputs[0]], conv)
    shared = {} if number == LAST else {"keys_of": compiled.program.client}
    program = BACKEND.compile(graph, inputs, {**options, **shared})
    client, (server,) = BACKEND.client(program.client), BACKEND.servers(program.servers)
    keys = client.keygen()
    x = inputs[:PATCHES]
    (message,) = client.encrypt(x, keys)
    clear = interpret(graph, x)
    executed = np.abs(client.decrypt([server.run(message, keys.evaluation)], keys) - clear).sum()
    drawn = BACKEND.simulate(graph, program, np.concatenate([x] * SIMULATIONS), 0).reshape(SIMULATIONS, *clear.shape)
    simulated = np.abs(drawn - clear).reshape(SIMULATIONS, -1).sum(axis=1)
    assert abs(executed - simulated.mean()) <= 5 * simulated.std(ddof=1) * np.sqrt(1 + 1 / SIMULATIONS) + 1
    assert simulated.mean() < 0.2 * clear.size * (clear.max() - clear.min())


def test_the_simulation_keeps_the_accuracy(whole):
    compiled, _, data, _ = whole
    x, y = data.x_test[:200], data.y_test[:200]
    clear, simulated = (compiled.predict(x, mode=mode).argmax(1) for mode in ("clear", "simulate"))
    assert (simulated == clear).mean() > 0.85
    assert (simulated == y).mean() > 0.7
