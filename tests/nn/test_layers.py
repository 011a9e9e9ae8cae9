"""The trainable layers: their integer and polynomial forms, gradients, ranges, and wrong arguments."""

from __future__ import annotations

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secure_infer import nn as layers
from secure_infer.errors import UsageError
from secure_infer.nn import BinaryConv2d, BinaryLinear, ChebyshevActivation, PolynomialActivation, Sign, Square
from secure_infer.nn.fits import FUNCTIONS, chebyshev_polynomial, fit_polynomial


@pytest.mark.parametrize("scaling", ["tensor", "channel", "none"])
def test_binary_weights_are_their_integers_times_a_scale(scaling) -> None:
    torch.manual_seed(0)
    linear, conv = BinaryLinear(5, 3, scaling=scaling), BinaryConv2d(4, 6, 3, scaling=scaling, groups=2, padding=1)
    x, image = torch.randn(7, 5), torch.randn(2, 4, 5, 5)
    for layer, data, function in ((linear, x, F.linear), (conv, image, lambda a, w, b: F.conv2d(a, w, b, 1, 1, 1, 2))):
        integers, scale = layer.integer_weight()
        assert set(integers.unique().tolist()) == {-1, 1}
        assert scale.shape == ((len(integers),) if scaling == "channel" else (1,))
        weight = integers * scale.reshape((-1,) + (1,) * (integers.dim() - 1))
        torch.testing.assert_close(layer(data), function(data, weight, layer.bias))


def test_sign_is_plus_one_at_zero_and_passes_gradients_near_it() -> None:
    x = torch.tensor([-2.0, -0.5, -0.0, 0.0, 0.5, 2.0], requires_grad=True)
    y = Sign()(x)
    assert y.tolist() == [-1, -1, 1, 1, 1, 1]
    y.sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 0]


def test_noise_flips_signs_in_training_only() -> None:
    torch.manual_seed(0)
    layer, x = Sign(noise=1.0), torch.full((10_000,), 0.5)
    flipped = float((layer.train()(x) < 0).float().mean())
    assert abs(flipped - 0.3085) < 0.02  # the normal tail beyond half a standard deviation
    assert (layer.eval()(x) == 1).all()


def test_binary_network_learns() -> None:
    torch.manual_seed(0)
    x = torch.randn(400, 8)
    y = (x[:, 0] > x[:, 1]).long()
    net = nn.Sequential(BinaryLinear(8, 32), nn.BatchNorm1d(32), Sign(noise=0.1), BinaryLinear(32, 2))
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(80):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    assert float((net.eval()(x).argmax(1) == y).float().mean()) > 0.8


@pytest.mark.parametrize("channels", [None, 3])
@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 4, 2)])
def test_polynomial_is_its_coefficients(channels, shape) -> None:
    torch.manual_seed(0)
    layer = PolynomialActivation((0.5, -1.0, 0.25), channels)
    nn.init.normal_(layer.coefficients)
    x = torch.randn(shape)
    c = layer.polynomial().expand(3, 3).reshape(3, 3, *(1,) * (len(shape) - 2))
    torch.testing.assert_close(layer(x), c[:, 0] + c[:, 1] * x + c[:, 2] * x**2)


@pytest.mark.parametrize("channels", [None, 3])
def test_the_short_way_of_training_has_the_same_values_and_gradients(channels) -> None:
    torch.manual_seed(0)
    layer = PolynomialActivation(channels=channels, radius=1.0).double()
    with torch.no_grad():
        layer.coefficients += 0.1 * torch.randn_like(layer.coefficients)
    x = torch.randn(4, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(layer.train()(x), layer.eval()(x))
    layer.train()
    assert torch.autograd.gradcheck(
        lambda x, c: torch.func.functional_call(layer, {"coefficients": c}, (x,)), (x, layer.coefficients)
    )
    assert torch.autograd.gradgradcheck(layer, (x,))
    assert torch.autograd.gradcheck(lambda x: (layer(x), layer.range_penalty())[1], (x,))
    excess = F.relu(x.abs() - 1).square().mean()
    torch.testing.assert_close(layer.range_penalty(), excess)


def test_range_control() -> None:
    layer = PolynomialActivation(radius=2.0)
    layer(torch.tensor([[1.0, -1.5]]))
    assert float(layer.range_penalty()) == 0
    x = torch.tensor([[1.0, -4.0]], requires_grad=True)
    layer(x)
    assert float(layer.peak) == 4
    penalty = layers.range_penalty(nn.Sequential(layer))
    torch.testing.assert_close(penalty, torch.tensor(0.5))  # mean of 0 and (4 / 2 - 1)^2
    penalty.backward()
    assert x.grad[0, 1] < 0 == x.grad[0, 0]
    layer.eval()(torch.tensor([[9.0]]))
    assert float(layer.peak) == 4
    assert copy.deepcopy(layer).state_dict()["peak"] == 4
    assert float(layers.range_penalty(nn.Linear(2, 2))) == 0


def test_default_polynomial_is_the_best_parabola_for_relu() -> None:
    x = np.linspace(-3, 3, 4001)
    fitted = np.polynomial.polynomial.polyval(x, PolynomialActivation(radius=3.0).polynomial()[0].double().numpy())
    best = np.polynomial.polynomial.polyval(x, np.polynomial.polynomial.polyfit(x, np.maximum(x, 0), 2))
    assert np.abs(fitted - best).max() < 1e-3


@pytest.mark.parametrize("function", sorted(FUNCTIONS))
@pytest.mark.parametrize("degree", [3, 8, 15])
def test_chebyshev_fits(function, degree) -> None:
    layer = ChebyshevActivation(function, degree, 4.0)
    x = np.linspace(-4, 4, 801)
    found = layer.double()(torch.from_numpy(x)[None])[0].numpy()
    powers = np.polynomial.polynomial.polyval(x, layer.polynomial()[0].numpy())
    assert np.abs(found - powers).max() < 1e-5
    worst = np.abs(found - FUNCTIONS[function](x)).max()
    assert worst < {3: 0.6, 8: 0.25, 15: 0.13}[degree]


def test_polynomials_are_reproduced_by_both_fits() -> None:
    def cubic(x: np.ndarray) -> np.ndarray:
        return 1 - 2 * x + 0.5 * x**3

    for fit in (fit_polynomial, chebyshev_polynomial):
        np.testing.assert_allclose(fit(cubic, 4, 2.5), [1, -2, 0, 0.5, 0], atol=1e-9)


def test_square() -> None:
    assert Square()(torch.tensor([-3.0])).item() == 9
    assert Square().polynomial().tolist() == [[0, 0, 1]]


@pytest.mark.filterwarnings("ignore:Named tensors:UserWarning")
@pytest.mark.parametrize("bits", range(1, 9))
def test_brevitas_constructors(bits) -> None:
    torch.manual_seed(0)
    levels = {1: {-1, 1}}.get(bits, set(range(-(2 ** (bits - 1)) + 1, 2 ** (bits - 1))))
    for layer in (layers.quant_linear(6, 40, bits), layers.quant_conv2d(3, 8, 3, bits, padding=1)):
        quantized = layer.quant_weight()
        integers = set(torch.round(quantized.value / quantized.scale).int().flatten().tolist())
        assert integers <= levels
    x = torch.randn(200, 6)
    relu = layers.quant_relu(bits).train()
    relu(x)
    assert len(relu.eval()(x).unique()) <= 2**bits
    identity = layers.quant_identity(bits)
    identity(x)
    assert 1 < len(identity.eval()(x).unique()) <= 2**bits


@pytest.mark.parametrize(
    "make",
    [
        lambda: BinaryLinear(2, 2, scaling="row"),
        lambda: BinaryConv2d(2, 2, 1, scaling="row"),
        lambda: Sign(-1),
        lambda: PolynomialActivation((1.0,)),
        lambda: PolynomialActivation(radius=0),
        lambda: ChebyshevActivation("cosine", 3, 1),
        lambda: ChebyshevActivation("relu", 0, 1),
        lambda: ChebyshevActivation("relu", 3, -1),
        lambda: layers.quant_linear(2, 2, 0),
        lambda: layers.quant_relu(9),
    ],
)
def test_wrong_arguments(make) -> None:
    with pytest.raises(UsageError):
        make()


def test_layers_need_no_brevitas() -> None:
    program = (
        "import sys, secure_infer.nn, secure_infer.frontends, secure_infer.nn.fix\n"
        "import numpy, torch\n"
        "secure_infer.frontends.to_graph(torch.nn.Linear(2, 2), numpy.ones((3, 2)), 'clear')\n"
        "assert 'brevitas' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    with pytest.raises(AttributeError):
        layers.no_such_layer  # noqa: B018
