"""Layers with balanced integer weights: what they compute, and what training them adds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from secure_infer.errors import UsageError
from secure_infer.nn.balanced import BalancedConv2d, BalancedLinear

LAYERS: dict[str, tuple[nn.Module, torch.Tensor]] = {
    "linear": (BalancedLinear(50, 7, magnitude=3.0, noise=0.5), torch.rand(400, 50)),
    "conv2d": (
        BalancedConv2d(2, 7, 5, magnitude=3.0, noise=0.5, stride=2, padding=1),
        torch.rand(40, 2, 11, 11),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_it_computes_with_the_integers_it_tells(name: str) -> None:
    layer: Any
    layer, x = LAYERS[name]
    integers, scale = layer.eval().integer_weight()
    assert torch.equal(scale, torch.ones(1)) and torch.equal(integers, integers.round())
    conv = isinstance(layer, nn.Conv2d)
    expected = functional.conv2d(x, integers, stride=2, padding=1) if conv else functional.linear(x, integers)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("name", LAYERS)
def test_weights_of_an_output_add_up_to_about_zero_and_have_the_magnitude(name: str) -> None:
    layer: Any = LAYERS[name][0]
    nn.init.uniform_(layer.weight, 0.1, 0.3)
    rows = layer.integer_weight()[0].flatten(1)
    # Rounding errors of n weights add up to sqrt(n / 12), about.
    assert rows.sum(dim=1).abs().max() < 4 * (rows.shape[1] / 12) ** 0.5
    torch.testing.assert_close(rows.square().mean(dim=1).sqrt(), torch.full((7,), 3.0), rtol=0.1, atol=0)


@pytest.mark.parametrize("name", LAYERS)
def test_training_adds_noise_in_proportion_to_the_sums_and_passes_gradients(name: str) -> None:
    layer: Any
    layer, x = LAYERS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        clean, noisy = layer.eval()(x), layer.train()(x)
    dims = [d for d in range(clean.dim()) if d != 1]
    share = (noisy - clean).std(dims) / clean.std(dims)
    torch.testing.assert_close(share, torch.full((7,), 0.5), rtol=0.2, atol=0)
    noisy.square().mean().backward()
    assert layer.weight.grad is not None and float(layer.weight.grad.abs().max()) > 0


def test_an_output_without_weights_stays_finite() -> None:
    layer = BalancedLinear(5, 3, magnitude=2.0)
    nn.init.constant_(layer.weight, 0.7)
    assert torch.equal(layer.integer_weight()[0], torch.zeros(3, 5))


@pytest.mark.parametrize(("magnitude", "noise"), [(0.0, 0.1), (-1.0, 0.1), (1.0, -0.1), (float("nan"), 0.0)])
def test_bad_arguments_are_refused(magnitude: float, noise: float) -> None:
    with pytest.raises(UsageError, match="Expected a magnitude"):
        BalancedLinear(5, 3, magnitude=magnitude, noise=noise)
    with pytest.raises(UsageError, match="Expected a magnitude"):
        BalancedConv2d(1, 3, 3, magnitude=magnitude, noise=noise)
