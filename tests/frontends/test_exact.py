"""Networks that are quantized already come out exactly, whatever batch-norms and poolings stand between."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from secure_infer.nn import (
    BinaryConv2d,
    BinaryLinear,
    Sign,
    quant_conv2d,
    quant_identity,
    quant_linear,
    quant_relu,
)
from tests.frontends.networks import error, randomized

EXACT = 1e-9
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")


def images(channels: int, height: int, width: int, n: int = 24) -> np.ndarray:
    return np.random.default_rng(7).uniform(0, 1, (n, channels, height, width))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("protocol", ["clear", "tfhe", "mpc"])
def test_brevitas(bits: int, protocol: str) -> None:
    torch.manual_seed(bits)
    net = nn.Sequential(
        quant_identity(4, signed=False),
        quant_conv2d(2, 6, 3, bits, padding=1),
        nn.BatchNorm2d(6),
        quant_relu(bits),
        quant_conv2d(6, 6, 3, bits, padding="same", groups=2, bias=False),
        nn.AvgPool2d(2),
        nn.BatchNorm2d(6),
        quant_identity(bits),
        nn.Dropout(0.5),
        nn.Flatten(),
        quant_linear(6 * 3 * 2, 5, bits),
    )
    x = images(2, 6, 5)
    assert error(randomized(net, x), x, protocol) < EXACT


def test_brevitas_tensors_and_integer_biases() -> None:
    import brevitas.nn as qnn
    from brevitas.quant import Int32Bias

    torch.manual_seed(0)
    net = nn.Sequential(
        qnn.QuantIdentity(bit_width=5, return_quant_tensor=True),
        qnn.QuantLinear(7, 9, True, weight_bit_width=3, bias_quant=Int32Bias, return_quant_tensor=True),
        qnn.QuantReLU(bit_width=3, return_quant_tensor=True),
        qnn.QuantLinear(9, 4, True, weight_bit_width=3, bias_quant=Int32Bias),
        qnn.QuantHardTanh(bit_width=4, max_val=1.0, min_val=-1.0),
    )
    x = np.random.default_rng(3).normal(size=(40, 7))
    assert error(randomized(net, x), x, "tfhe") < EXACT


def test_input_beyond_its_quantizer_is_clipped_as_in_torch() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(quant_identity(3), quant_linear(5, 3, 4))
    x = np.random.default_rng(1).normal(size=(60, 5))
    net = randomized(net, x)
    assert error(net, 4 * x, "clear") < EXACT


@pytest.mark.parametrize(
    "order",
    [
        lambda: [nn.Hardtanh(), Sign()],
        lambda: [Sign()],
        lambda: [nn.ReLU(), quant_identity(3)],
        lambda: [nn.MaxPool2d(2, 1), Sign()],
        lambda: [nn.AvgPool2d(2, 1), nn.BatchNorm2d(4), Sign()],
    ],
)
def test_activations_are_joined(order) -> None:
    torch.manual_seed(1)
    middle = order()
    size = 3 * 4 if isinstance(middle[0], nn.MaxPool2d | nn.AvgPool2d) else 4 * 5
    net = nn.Sequential(
        quant_identity(4, signed=False),
        BinaryConv2d(1, 4, 3, padding=1, scaling="channel"),
        nn.BatchNorm2d(4),
        *middle,
        nn.Flatten(),
        BinaryLinear(4 * size, 3, scaling="tensor"),
    )
    x = images(1, 4, 5)
    assert error(randomized(net, x), x, "tfhe") < EXACT


class Residual(nn.Module):
    """`sign(bn(conv(x))) + x` for an x of +1 and -1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = BinaryConv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.sign = Sign()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.sign(self.norm(self.conv(x))) + x


@st.composite
def nets(draw: st.DrawFn) -> tuple[nn.Module, np.ndarray]:
    """A binarized or Brevitas network of one to three convolutions and a linear layer, with inputs."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    channels, height, width = draw(st.integers(1, 3)), draw(st.integers(7, 8)), draw(st.integers(7, 9))
    x = images(channels, height, width)
    layers: list[nn.Module] = [quant_identity(draw(st.integers(2, 5)), signed=False)]
    for _ in range(draw(st.integers(1, 3))):
        out = 2 * draw(st.integers(1, 3))
        groups = 2 if channels % 2 == 0 and draw(st.booleans()) else 1
        options = {"padding": draw(st.sampled_from([0, 1, "same"])), "groups": groups, "bias": draw(st.booleans())}
        kernel = draw(st.integers(1, 2))
        bits = draw(st.integers(1, 4))
        binary = draw(st.booleans())
        layers.append(
            BinaryConv2d(channels, out, kernel, **options)
            if binary
            else quant_conv2d(channels, out, kernel, bits, **options)
        )
        pool = draw(st.sampled_from([None, nn.MaxPool2d(2, 1), nn.AvgPool2d(2, 1)]))
        layers += [pool] if pool is not None else []
        layers.append(nn.BatchNorm2d(out))
        layers.append(Sign() if draw(st.booleans()) else quant_relu(bits))
        if isinstance(layers[-1], Sign) and draw(st.booleans()):
            layers += [Residual(out), nn.BatchNorm2d(out), Sign()]
        channels = out
    layers.append(nn.Flatten())
    with torch.no_grad():
        size = nn.Sequential(*layers)(torch.from_numpy(x).float()).shape[1]
    layers.append(BinaryLinear(size, 3) if draw(st.booleans()) else quant_linear(size, 3, 3))
    return nn.Sequential(*layers), x


@settings(deadline=None, max_examples=25, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(nets(), st.sampled_from(["clear", "tfhe", "mpc"]))
def test_drawn_networks(drawn: tuple[nn.Module, np.ndarray], protocol: str) -> None:
    net, x = drawn
    assert error(randomized(net, x), x, protocol) < EXACT
