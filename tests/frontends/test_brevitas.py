"""Networks as others write them with Brevitas: trained a little on digits, they come out as they evaluate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import brevitas.nn as qnn
import numpy as np
import pytest
import torch
from brevitas import quant
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import secure_infer as si
from secure_infer.frontends import to_graph
from secure_infer.graph import passes
from tests.frontends.networks import outputs

# Brevitas tensors do so when a function of torch reads them.
pytestmark = pytest.mark.filterwarnings("ignore:Defining your `__torch_function__:DeprecationWarning")

_DATA = load_digits()
_ORDER = np.random.default_rng(0).permutation(len(_DATA.target))
X, Y = (_DATA.images[_ORDER] / 16)[:, None].astype(np.float32), _DATA.target[_ORDER]
PER_CHANNEL = {"weight_quant": quant.Int8WeightPerChannelFloat}
BINARY = {"weight_quant": quant.SignedBinaryWeightPerTensorConst, "weight_scaling_init": 0.1}


class Cnn(nn.Module):
    """Layers and a forward as in Brevitas' tutorials."""

    def __init__(self, weights: int, activations: int, tensors: bool, **options: Any) -> None:
        super().__init__()
        kept, options = {"return_quant_tensor": tensors}, {"weight_bit_width": weights, **options}
        self.input = qnn.QuantIdentity(bit_width=activations, **kept)
        self.conv1 = qnn.QuantConv2d(1, 8, 3, padding=1, bias=True, **options)
        self.norm1, self.relu1 = nn.BatchNorm2d(8), qnn.QuantReLU(bit_width=activations, **kept)
        self.pool = qnn.QuantMaxPool2d(2) if tensors else nn.MaxPool2d(2)
        self.conv2 = qnn.QuantConv2d(8, 12, 3, bias=False, **options)
        self.norm2 = nn.BatchNorm2d(12)
        self.clip = qnn.QuantHardTanh(bit_width=activations, max_val=1.0, min_val=-1.0, **kept)
        self.first = qnn.QuantLinear(48, 24, bias=True, **options)
        self.relu2 = qnn.QuantReLU(bit_width=activations, **kept)
        self.last = qnn.QuantLinear(24, 10, bias=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu1(self.norm1(self.conv1(self.input(x)))))
        x = self.clip(self.norm2(self.conv2(x)))
        x = x.reshape(x.shape[0], -1)
        return self.last(self.relu2(self.first(x)))  # type: ignore[no-any-return]


def _averaging(weights: int, activations: int) -> nn.Module:
    integer = {"bias": True, "bias_quant": quant.Int32Bias, "weight_bit_width": weights}
    return nn.Sequential(
        qnn.QuantIdentity(bit_width=8, return_quant_tensor=True),
        qnn.QuantConv2d(1, 8, 3, return_quant_tensor=True, **integer),
        qnn.QuantReLU(bit_width=activations, return_quant_tensor=True),
        nn.AvgPool2d(2),
        qnn.QuantConv2d(8, 16, 3, bias=True, weight_bit_width=weights, **PER_CHANNEL),
        nn.BatchNorm2d(16),
        qnn.QuantReLU(bit_width=activations, return_quant_tensor=True),
        nn.Flatten(),
        qnn.QuantLinear(16, 10, **integer),
    )


def _binary(tensors: bool) -> nn.Module:
    def sign() -> nn.Module:
        return qnn.QuantIdentity(quant.SignedBinaryActPerTensorConst, scaling_init=1.0, return_quant_tensor=tensors)

    return nn.Sequential(
        qnn.QuantIdentity(bit_width=4, return_quant_tensor=tensors),
        qnn.QuantConv2d(1, 8, 3, padding=1, bias=False, **BINARY),
        nn.BatchNorm2d(8),
        sign(),
        nn.MaxPool2d(2),
        qnn.QuantConv2d(8, 16, 3, bias=False, **BINARY),
        nn.BatchNorm2d(16),
        sign(),
        nn.Flatten(),
        qnn.QuantLinear(64, 10, bias=True, **BINARY),
    )


class Residual(nn.Module):
    """A quantizer shared by both branches of an addition, and a function of torch on the plain values."""

    def __init__(self) -> None:
        super().__init__()
        options = {"bias": False, "weight_bit_width": 4}
        self.input = qnn.QuantIdentity(bit_width=4, return_quant_tensor=True)
        self.conv1, self.relu1 = qnn.QuantConv2d(1, 6, 3, padding=1, **options), qnn.QuantReLU(bit_width=4)
        self.conv2, self.norm = qnn.QuantConv2d(6, 6, 3, padding=1, **options), nn.BatchNorm2d(6)
        self.shared = qnn.QuantIdentity(bit_width=4, return_quant_tensor=True)
        self.relu2 = qnn.QuantReLU(bit_width=4, return_quant_tensor=True)
        self.last = qnn.QuantLinear(96, 10, bias=True, weight_bit_width=4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(self.relu1(self.conv1(self.input(x))))
        x = self.relu2(x + self.shared(self.norm(self.conv2(x))))
        return self.last(F.max_pool2d(x.value, 2).flatten(1))  # type: ignore[no-any-return, attr-defined]


NETWORKS: dict[str, tuple[Callable[[], nn.Module], float]] = {
    "2W2A": (lambda: Cnn(2, 2, False), 0.5),
    "2W2A tensors": (lambda: Cnn(2, 2, True), 0.5),
    "4W4A": (lambda: Cnn(4, 4, False), 0.85),
    "4W4A tensors": (lambda: Cnn(4, 4, True), 0.85),
    "4W4A channels": (lambda: Cnn(4, 4, True, **PER_CHANNEL), 0.85),
    "2W2A averages": (lambda: _averaging(2, 2), 0.5),
    "4W4A averages": (lambda: _averaging(4, 4), 0.85),
    "1W1A": (lambda: _binary(False), 0.4),
    "1W1A tensors": (lambda: _binary(True), 0.4),
    "residual": (Residual, 0.6),
}


def _trained(net: nn.Module, epochs: int = 4) -> nn.Module:
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    x, y = torch.from_numpy(X[:1350]), torch.from_numpy(Y[:1350])
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(net(x[batch]), y[batch]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return net.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_trained_network_comes_out_as_it_evaluates_itself(name: str) -> None:
    torch.manual_seed(0)
    make, least = NETWORKS[name]
    net = _trained(make())
    assert si.check(net, "tfhe", (1, 8, 8)) == []
    for protocol in ("tfhe", "mpc"):
        graph = passes.optimize(to_graph(net, X[:300], protocol), pool_first=protocol == "mpc")
        expected, found, spread = outputs(net, graph, X[1350:])
        np.testing.assert_allclose(found, expected, atol=1e-9 * spread)
        assert (found.argmax(axis=1) == Y[1350:]).mean() > least


def test_a_scale_that_rounds_below_its_top_level_keeps_that_level() -> None:
    """15 * scale / scale is 14.999... for some scales."""
    for scale in np.random.default_rng(0).uniform(0.1, 1, 60):
        relu = qnn.QuantReLU(bit_width=4, scaling_impl_type="const", max_val=float(15 * scale))
        net = nn.Sequential(qnn.QuantIdentity(bit_width=4), qnn.QuantLinear(3, 2, True, weight_bit_width=4), relu)
        graph = to_graph(net.eval(), 10 * np.ones((4, 3)), "tfhe")
        assert graph.output_type.high == 15


@pytest.mark.parametrize("bits", [2, pytest.param(4, marks=pytest.mark.full)])
def test_an_encrypted_cnn_of_brevitas_defaults(bits: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        qnn.QuantIdentity(bit_width=bits, return_quant_tensor=True),
        qnn.QuantConv2d(1, 2, 3, stride=3, bias=True, weight_bit_width=bits),
        nn.BatchNorm2d(2),
        qnn.QuantReLU(bit_width=bits, return_quant_tensor=True),
        nn.Flatten(),
        qnn.QuantLinear(8, 10, bias=True, weight_bit_width=bits),
    )
    compiled = si.compile(_trained(net, 1), X[:300], protocol="tfhe")
    expected, _, spread = outputs(net, compiled.graph, X[1350:1352])
    np.testing.assert_allclose(compiled.predict(X[1350:1352]), expected, atol=1e-9 * spread)
    compiled.close()


@pytest.mark.full
@pytest.mark.parametrize("name", ["2W2A", "4W4A"])
def test_a_whole_cnn_of_brevitas_defaults_simulated(name: str) -> None:
    torch.manual_seed(0)
    net = _trained(NETWORKS[name][0]())
    compiled = si.compile(net, X[:300], protocol="tfhe")
    held = X[1350:1400]
    expected, _, spread = outputs(net, compiled.graph, held)
    np.testing.assert_allclose(compiled.predict(held, mode="simulate"), expected, atol=1e-9 * spread)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
def test_concrete_ml_lowers_to_the_same_predictions() -> None:
    theirs = pytest.importorskip("concrete.ml.torch.compile")
    torch.manual_seed(0)
    net = _trained(
        nn.Sequential(
            qnn.QuantIdentity(bit_width=2, return_quant_tensor=True),
            nn.Flatten(),
            qnn.QuantLinear(64, 16, bias=True, weight_bit_width=2),
            nn.BatchNorm1d(16),
            qnn.QuantReLU(bit_width=2, return_quant_tensor=True),
            qnn.QuantLinear(16, 10, bias=True, weight_bit_width=2),
        )
    )
    module = theirs.compile_brevitas_qat_model(net, X[:300])
    compiled = si.compile(net, X[:300], protocol="tfhe")
    held = X[1350:]
    classes = compiled.predict(held, mode="clear").argmax(axis=1)
    assert (module.forward(held, fhe="disable").argmax(axis=1) == classes).mean() >= 0.99
