"""Every handler: a layer's graph is close to the layer, its functional form gives the same, and `check` agrees."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secure_infer.errors import UnsupportedNetwork
from secure_infer.frontends import to_graph
from secure_infer.nn import ChebyshevActivation, PolynomialActivation, Square
from secure_infer.nn.check import check
from tests.frontends.networks import error, outputs, randomized

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning"),
    pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning"),
]

X = np.random.default_rng(0).uniform(-0.5, 1, (48, 2, 6, 6))
FINE = {"input": 10, "weights": 10, "activations": 10}


class Call(nn.Module):
    """A function between two convolutions."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.function = nn.Conv2d(2, 3, 3), nn.LazyConv2d(2, 1), function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


class Gains(nn.Module):
    """Multiplies each channel by a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("gains", torch.tensor([1.0, -2.0, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gains.reshape(1, 3, 1, 1) + self.gains[:, None, None]


def between(layer: nn.Module | Callable[[Tensor], Tensor]) -> nn.Module:
    torch.manual_seed(0)
    return randomized(Call(copy.deepcopy(layer)), X)


AFFINE = {
    "stride": nn.Conv2d(3, 4, 2, stride=2),
    "padding": nn.Conv2d(3, 4, (3, 1), padding=(1, 0)),
    "dilation": nn.Conv2d(3, 4, 2, dilation=2),
    "groups": nn.Conv2d(3, 6, 3, groups=3, padding=1),
    "same": nn.Conv2d(3, 4, (2, 3), padding="same"),
    "same dilated": nn.Conv2d(3, 4, 3, padding="same", dilation=2),
    "valid": nn.Conv2d(3, 4, 2, padding="valid", bias=False),
    "norm": nn.BatchNorm2d(3),
    "norm, padding": nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, padding=1)),
    "average": nn.AvgPool2d(2),
    "padded average": nn.AvgPool2d(3, 1, 1),
    "divisor": nn.AvgPool2d(2, divisor_override=3),
    "adaptive": nn.AdaptiveAvgPool2d(2),
    "adaptive, one side": nn.AdaptiveAvgPool2d((None, 1)),
    "identity": nn.Identity(),
    "casts": lambda x: x.to(x.dtype).contiguous(),
    "dropout": nn.Dropout(0.9),
    "scalars": lambda x: 3 - (x * 2 + 1) / 4,
    "negative": lambda x: -x,
    "twice": lambda x: x + x,
    "constant a channel": Gains(),
    "residual": lambda x: x + F.avg_pool2d(x, 3, 1, 1),
    "difference": lambda x: x - F.avg_pool2d(x, 3, 1, 1),
    "pooled": lambda x: F.adaptive_avg_pool2d(x, 1),
    "mean": lambda x: x.mean((2, 3), keepdim=True),
}
POLYNOMIAL = {
    "Square": Square(),
    "x*x": lambda x: x * x,
    "x**2": lambda x: x**2,
    "square": torch.square,
    "polynomial": PolynomialActivation(),
    "a polynomial a channel": PolynomialActivation((0.1, 0.5, 0.2), channels=3),
    "chebyshev": ChebyshevActivation("silu", 4, 3.0),
}
EXACT = {
    "ReLU": nn.ReLU(),
    "relu": F.relu,
    "method": lambda x: x.relu(),
    "ReLU6": nn.ReLU6(),
    "Hardtanh": nn.Hardtanh(),
    "clamp": lambda x: x.clamp(min=-0.2, max=0.3),
    "Sigmoid": nn.Sigmoid(),
    "Tanh": nn.Tanh(),
    "tanh": torch.tanh,
    "LeakyReLU": nn.LeakyReLU(0.1),
    "falling": nn.LeakyReLU(-0.5),
    "ELU": nn.ELU(),
    "Softplus": nn.Softplus(),
    "SiLU": nn.SiLU(),
    "GELU": nn.GELU(),
    "gelu": F.gelu,
    "Hardswish": nn.Hardswish(),
    "Mish": nn.Mish(),
    "MaxPool2d": nn.MaxPool2d(2),
    "padded": nn.MaxPool2d(3, 2, 1),
    "max_pool2d": lambda x: F.max_pool2d(x, 2, 1),
    "norm after": nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, padding=1)),
    "norm before a pool": nn.Sequential(nn.BatchNorm2d(3), nn.MaxPool2d(2)),
}


@pytest.mark.parametrize("name", [*AFFINE, *POLYNOMIAL, *EXACT])
@pytest.mark.parametrize("protocol", ["clear", "tfhe", "ckks", "mpc"])
def test_layer(name: str, protocol: str) -> None:
    layer = {**AFFINE, **POLYNOMIAL, **EXACT}[name]
    net = between(layer)
    if protocol == "ckks" and name in EXACT:
        assert check(net, protocol)
        with pytest.raises(UnsupportedNetwork):
            to_graph(net, X, protocol)
        return
    assert not check(net, protocol, X.shape[1:])
    options = {} if protocol == "ckks" else {"n_bits": FINE}
    assert error(net, X, protocol, **options) < 0.02


class Head(nn.Module):
    """Whatever brings an image to a vector, then a linear layer."""

    def __init__(self, flatten: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.flatten, self.fc = nn.Conv2d(2, 4, 3, padding=1), flatten, nn.LazyLinear(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.flatten(F.relu(self.conv(x))))


@pytest.mark.parametrize(
    "flatten",
    [
        nn.Flatten(),
        lambda x: torch.flatten(x, 1),
        lambda x: x.view(x.size(0), -1),
        lambda x: x.reshape(x.shape[0], -1),
        lambda x: x.mean(dim=[2, 3]),
        lambda x: F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1),
    ],
)
def test_heads(flatten: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    net = randomized(Head(flatten), X)
    assert not check(net, "tfhe", X.shape[1:])
    assert error(net, X, "tfhe", n_bits=FINE) < 0.02


def test_functional_parameters_and_normalized_input() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 2, 3, 3))
            self.last = nn.Parameter(torch.randn(3, 4))
            self.register_buffer("mean", torch.rand(4))

        def forward(self, x: Tensor) -> Tensor:
            x = F.conv2d((x - 0.13) / 0.3, self.weight * 2, padding=1)
            x = F.batch_norm(x, self.mean, self.mean + 1, training=False)
            return F.linear(F.dropout(torch.sigmoid(x), 0.5, self.training).mean((2, 3)), self.last)

    torch.manual_seed(0)
    assert error(Functional().eval(), X, "mpc", n_bits=FINE) < 0.03


def test_softmax_at_the_end_is_left_to_the_client() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(72, 4), nn.LogSoftmax(dim=1)).eval()
    graph = to_graph(net, X, "clear")
    expected, found, _ = outputs(net, graph, X)
    assert (expected.argmax(1) == found.argmax(1)).all()
    difference = found - expected
    assert np.ptp(difference, axis=1).max() < 0.05


@pytest.mark.parametrize("protocol", ["clear", "tfhe", "mpc"])
def test_dead_channels_and_constant_networks(protocol: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)).eval()
    with torch.no_grad():
        net[1].weight[:] = torch.tensor([0.0, -1.0, 1.0])
        net[0].weight[2] = 0
    expected, found, _ = outputs(net, to_graph(net, X, protocol, n_bits=FINE), X)
    assert np.abs(found - expected).max() < 0.02
