"""Small torch networks with random parameters, and the comparison of a network with its graph."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from secure_infer.frontends import to_graph
from secure_infer.graph import Graph, interpret, interpret_real


def randomized(net: nn.Module, x: np.ndarray, seed: int = 0) -> nn.Module:
    """The network in evaluation mode, with quantizers that have seen data and batch-norms of random sign."""
    rng = torch.Generator().manual_seed(seed)
    net.train()
    with torch.no_grad():
        net(torch.from_numpy(x).float())
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=rng))
                layer.bias.copy_(torch.randn(layer.bias.shape, generator=rng))
    return net.eval()


def outputs(net: nn.Module, graph: Graph, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """What the network and the graph make of the same quantized inputs, and the spread of the network's outputs."""
    units = graph.quantize(x)
    reals = torch.from_numpy(units * graph.input.scale_array())
    with torch.no_grad():
        expected = net.double()(reals)
    expected = (expected if isinstance(expected, torch.Tensor) else expected.value).numpy()
    evaluate = interpret_real if "Polynomial" in graph.kinds else interpret
    return expected, graph.dequantize(evaluate(graph, units)), float(np.abs(expected - expected.mean()).max())


def error(net: nn.Module, x: np.ndarray, protocol: str, **options: object) -> float:
    """Greatest difference between a network and its graph, relative to the spread of the outputs."""
    graph = to_graph(net, x, protocol, **options)
    expected, found, spread = outputs(net, graph, x)
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max()) / spread
