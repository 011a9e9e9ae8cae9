"""Layers on narrow integers: what they compute, what is trained, and that their activation is one aligned look-up."""

import numpy as np
import pytest
import torch
from torch import nn

from secure_infer.frontends import to_graph
from secure_infer.graph import Conv2d, QuantRelu, interpret
from secure_infer.nn.architectures import build
from secure_infer.nn.check import check
from secure_infer.nn.integers import IntegerConv2d, IntegerLinear, Levels, ShiftNorm2d

SMALL = {
    "image": [2, 6, 6],
    "classes": 3,
    "convolutions": [[4, 3, 2, 1], [5, 3, 1, 0]],
    "input_bits": 3,
    "weight_bits": [4, 3, 2],
    "activation_bits": [3, 2],
    "span": 2.5,
}


@pytest.fixture(scope="module")
def trained():
    """A small network after a few steps, and images."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = build("integer-cnn", SMALL)
        x, y = torch.rand(256, 2, 6, 6), torch.randint(0, 3, (256,))
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        for _ in range(20):
            loss = nn.functional.cross_entropy(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return net.eval(), x, float(loss.detach())


@pytest.mark.parametrize(("bits", "top"), [(2, 1), (3, 3), (4, 7)])
def test_weights_are_integers_in_range_that_follow_the_trained_ones(bits, top):
    torch.manual_seed(0)
    layer = IntegerConv2d(3, 8, 3, bits)
    integers, scale = layer.integer_weight()
    assert scale.tolist() == [1.0]
    assert top / 2 < integers.abs().max() <= top and torch.equal(integers, integers.round())
    assert torch.corrcoef(torch.stack([integers.flatten(), layer.weight.detach().flatten()]))[0, 1] > 0.85
    x = torch.rand(2, 3, 5, 5)
    assert torch.equal(layer(x), nn.functional.conv2d(x, integers))


def test_noise_is_a_share_of_the_widest_range_and_for_training_only():
    torch.manual_seed(0)
    layer = IntegerConv2d(1, 4, 3, 4, noise=0.02)
    x = torch.rand(200, 1, 8, 8)
    clean = nn.functional.conv2d(x, layer.integer_weight()[0])
    width = max(float(channel.max() - channel.min()) for channel in clean.unbind(1))
    noise = layer(x) - clean
    assert noise.std((0, 2, 3)).tolist() == pytest.approx([0.02 * width] * 4, rel=0.05)
    assert torch.equal(layer.eval()(x), clean)


def test_levels_round_and_clip_and_pass_the_gradient_between():
    x = torch.tensor([-2.0, -0.4, 0.4, 0.6, 2.4, 3.4, 9.0], requires_grad=True)
    y = Levels(2)(x)
    y.sum().backward()
    assert y.tolist() == [0, 0, 0, 1, 2, 3, 3]
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 1, 0]


def test_the_norm_divides_by_powers_of_two_that_suit_the_variance(trained):
    net, x, _ = trained
    for layer in (layer for layer in net if isinstance(layer, ShiftNorm2d)):
        net(x)
        deviation = (layer.running_var + layer.eps).sqrt()
        powers = torch.log2(deviation / layer.weight)
        torch.testing.assert_close(powers, powers.round(), atol=1e-5, rtol=0)
        step = 2**powers / deviation / layer.step
        assert step.max() <= 2**0.5 + 1e-5 and step.min() >= 2**-0.5 - 1e-5


def test_training_learns_and_leaves_the_gain_alone(trained):
    net, _, loss = trained
    assert loss < 1.0  # ln 3 = 1.10 for guesses
    assert not any(layer.weight.requires_grad for layer in net if isinstance(layer, ShiftNorm2d))


def test_the_graph_is_the_network_and_its_thresholds_lie_powers_of_two_apart(trained):
    net, x, _ = trained
    graph = to_graph(net, x.numpy(), "tfhe")
    outputs = graph.dequantize(interpret(graph, graph.quantize(x.numpy())))
    np.testing.assert_allclose(outputs, net.double()(x.double()).detach().numpy(), atol=1e-9)
    net.float()
    assert check(net, "tfhe", (2, 6, 6)) == [] and check(net, "ckks", (2, 6, 6))
    found = [node.op for node in graph if isinstance(node.op, QuantRelu)]
    assert len(found) == 2
    for op in found:
        gaps = np.diff(np.atleast_2d(op.thresholds), axis=1)
        gaps = gaps[(np.abs(np.atleast_2d(op.thresholds)) < 1000).all(axis=1)]
        assert np.all(gaps == gaps[:, :1]) and np.all(gaps & (gaps - 1) == 0)
    assert all(np.abs(node.op.weight).max() <= 7 for node in graph if isinstance(node.op, Conv2d))


def test_a_last_layer_has_one_scale():
    layer = IntegerLinear(6, 3, 2)
    integers, scale = layer.integer_weight()
    x = torch.rand(4, 6)
    torch.testing.assert_close(layer(x), x @ integers.T * scale + layer.bias)
