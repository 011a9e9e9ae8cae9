"""The zoo's networks by name, each built from a few parameters of its recipe."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from secure_infer.errors import Problem, UsageError
from secure_infer.nn.architectures_mpc import pooled_integers
from secure_infer.nn.balanced import BalancedConv2d, BalancedLinear
from secure_infer.nn.integers import IntegerConv2d, IntegerLinear, Levels, ShiftNorm2d
from secure_infer.nn.layers import BinaryLinear, PolynomialActivation, Sign

Architecture = Callable[..., nn.Sequential]


def binary_mlp(
    *, inputs: int, classes: int, hidden: Sequence[int], input_bits: int, weight_bits: Sequence[int], noise: float = 0.0
) -> nn.Sequential:
    """A multi-layer perceptron with sign activations.

    Args:
        inputs: Pixels of an image.
        classes: Outputs.
        hidden: Neurons of each hidden layer.
        input_bits: Bits of a pixel; one bit means a threshold at one half.
        weight_bits: Bits of the weights of each layer: 1 for +1 and -1, 2 for -1, 0 and +1, ...
        noise: Standard deviation of the training noise on normalized pre-activations.
    """
    sizes = [inputs, *hidden]
    layers: list[nn.Module] = [nn.Flatten(), _pixels(input_bits)]
    for size, width, bits in zip(sizes, hidden, weight_bits, strict=False):
        layers += [_linear(size, width, bits, bias=False), nn.BatchNorm1d(width), Sign(noise)]
    layers.append(_linear(sizes[-1], classes, weight_bits[-1], bias=True))
    return nn.Sequential(*layers)


def quantized_cnn(
    *,
    image: Sequence[int],
    classes: int,
    convolutions: Sequence[Sequence[int]],
    hidden: Sequence[int] = (),
    input_bits: int,
    weight_bits: Sequence[int],
    activation_bits: int,
) -> nn.Sequential:
    """A convolutional network with quantized weights and quantized ReLUs; strides stand in for pooling.

    Args:
        image: Channels, height and width of the input.
        classes: Outputs.
        convolutions: For each: output channels, width of the kernel, stride, zeros around its input.
        hidden: Neurons of each fully connected hidden layer.
        input_bits: Bits of a pixel.
        weight_bits: Bits of the weights of each layer, 2 to 8.
        activation_bits: Bits of an activation.
    """
    from secure_infer.nn.quantizers import quant_conv2d, quant_relu

    layers: list[nn.Module] = [_pixels(input_bits)]
    depth, height, width = image
    bits = iter(weight_bits)
    for number, kernel, stride, padding in convolutions:
        layers += [
            quant_conv2d(depth, number, kernel, next(bits), stride=stride, padding=padding, bias=False),
            nn.BatchNorm2d(number),
            quant_relu(activation_bits),
        ]
        depth, height, width = number, *_sides(height, width, kernel, stride, padding)
    layers.append(nn.Flatten())
    size = depth * height * width
    for number in hidden:
        layers += [_linear(size, number, next(bits), bias=False), nn.BatchNorm1d(number), quant_relu(activation_bits)]
        size = number
    return nn.Sequential(*layers, _linear(size, classes, next(bits), bias=True))


def integer_cnn(
    *,
    image: Sequence[int],
    classes: int,
    convolutions: Sequence[Sequence[int]],
    input_bits: int,
    weight_bits: Sequence[int],
    activation_bits: Sequence[int],
    span: float,
    noise: float = 0.0,
    head_noise: float = 0.0,
) -> nn.Sequential:
    """A convolutional network each of whose activations is one narrow look-up under TFHE.

    Args:
        image: Channels, height and width of the input.
        classes: Outputs.
        convolutions: For each: output channels, width of the kernel, stride, zeros around its input.
        input_bits: Bits of a pixel.
        weight_bits: Bits of the weights of each layer, 2 or more.
        activation_bits: Bits of the activation after each convolution.
        span: Standard deviations of a sum from the least to the greatest level of an activation, about: the distance of
            two levels is a power of two.
        noise: Standard deviation of the training noise, as a share of the range of a layer's sums.
        head_noise: Standard deviation of the training noise on what the last layer reads.
    """
    depth, height, width = image
    # Pixels are multiples of a power of two, lest the sums be of another number.
    layers: list[nn.Module] = [_pixels(input_bits, top=1 - 0.5**input_bits)]
    for (number, kernel, stride, padding), bits, levels in zip(
        convolutions, weight_bits, activation_bits, strict=False
    ):
        layers.append(IntegerConv2d(depth, number, kernel, bits, noise, stride=stride, padding=padding))
        layers += [ShiftNorm2d(number, span / ((1 << levels) - 1)), Levels(levels)]
        depth, height, width = number, *_sides(height, width, kernel, stride, padding)
    head = IntegerLinear(depth * height * width, classes, weight_bits[-1], head_noise)
    return nn.Sequential(*layers, nn.Flatten(), head)


def sign_network(
    *,
    image: Sequence[int],
    classes: int,
    convolutions: Sequence[Sequence[int]] = (),
    hidden: Sequence[int] = (),
    input_bits: int,
    magnitude: float,
    head_bits: int,
    noise: float = 0.0,
    head_noise: float = 0.0,
) -> nn.Sequential:
    """Signs of wide sums, trained to bear the noise of an approximate look-up under TFHE.

    Args:
        image: Channels, height and width of the input.
        classes: Outputs.
        convolutions: For each: output channels, width of the kernel, stride, zeros around its input.
        hidden: Neurons of each fully connected hidden layer.
        input_bits: Bits of a pixel.
        magnitude: Root mean square of an output's integer weights before a sign.
        head_bits: Bits of the last layer's weights.
        noise: Standard deviation of the training noise, as a share of the sums' own.
        head_noise: Standard deviation of the training noise on the signs that the last layer reads.
    """
    depth, height, width = image
    layers: list[nn.Module] = [_pixels(input_bits)]
    for number, kernel, stride, padding in convolutions:
        layers.append(BalancedConv2d(depth, number, kernel, magnitude, noise, stride=stride, padding=padding))
        layers += [nn.BatchNorm2d(number), Sign()]
        depth, height, width = number, *_sides(height, width, kernel, stride, padding)
    size = depth * height * width
    layers.append(nn.Flatten())
    for number in hidden:
        layers += [BalancedLinear(size, number, magnitude, noise), nn.BatchNorm1d(number), Sign()]
        size = number
    return nn.Sequential(*layers, IntegerLinear(size, classes, head_bits, head_noise))


def polynomial_cnn(
    *,
    image: Sequence[int],
    classes: int,
    convolutions: Sequence[Sequence[int]] = (),
    hidden: Sequence[int] = (),
    radius: float = 3.0,
) -> nn.Sequential:
    """Convolutions and linear layers with quadratic activations between, after LoLa (Brutzkus et al., ICML 2019).

    Args:
        image: Channels, height and width of the input.
        classes: Outputs.
        convolutions: For each: output channels, width of the kernel, stride, zeros around its input.
        hidden: Neurons of each fully connected hidden layer.
        radius: Half-width of the range that activations are meant for.
    """
    layers: list[nn.Module] = []
    depth, height, width = image
    for number, kernel, stride, padding in convolutions:
        layers += [
            nn.Conv2d(depth, number, kernel, stride=stride, padding=padding, bias=False),
            nn.BatchNorm2d(number),
            PolynomialActivation(radius=radius),
        ]
        depth, height, width = number, *_sides(height, width, kernel, stride, padding)
    layers.append(nn.Flatten())
    size = depth * height * width
    for number in hidden:
        layers += [nn.Linear(size, number, bias=False), nn.BatchNorm1d(number), PolynomialActivation(radius=radius)]
        size = number
    return nn.Sequential(*layers, nn.Linear(size, classes))


def relu_cnn(
    *, image: Sequence[int], classes: int, convolutions: Sequence[Sequence[int]], hidden: Sequence[int] = ()
) -> nn.Sequential:
    """A plain convolutional network with ReLUs in floating point: what the other forms are measured against.

    Args:
        image: Channels, height and width of the input.
        classes: Outputs.
        convolutions: For each: output channels, width of the kernel, stride, zeros around its input.
        hidden: Neurons of each fully connected hidden layer.
    """
    layers: list[nn.Module] = []
    depth, height, width = image
    for number, kernel, stride, padding in convolutions:
        layers += [
            nn.Conv2d(depth, number, kernel, stride=stride, padding=padding, bias=False),
            nn.BatchNorm2d(number),
            nn.ReLU(),
        ]
        depth, height, width = number, *_sides(height, width, kernel, stride, padding)
    layers.append(nn.Flatten())
    size = depth * height * width
    for number in hidden:
        layers += [nn.Linear(size, number), nn.ReLU()]
        size = number
    return nn.Sequential(*layers, nn.Linear(size, classes))


ARCHITECTURES: Mapping[str, Architecture] = {
    function.__name__.replace("_", "-"): function
    for function in (binary_mlp, quantized_cnn, integer_cnn, sign_network, polynomial_cnn, relu_cnn, pooled_integers)
}
"""Networks by the name that a recipe gives."""


def build(name: str, parameters: Mapping[str, Any]) -> nn.Sequential:
    """An untrained network.

    Args:
        name: One of `ARCHITECTURES`.
        parameters: Its keyword arguments.

    Raises:
        UsageError: An unknown architecture, or parameters that it does not take or lacks; all are listed.
    """
    if name not in ARCHITECTURES:
        raise UsageError(
            f"There is no architecture {name!r}.",
            [Problem("architecture", f"Expected one of {', '.join(ARCHITECTURES)}.", "correct the name.")],
        )
    signature = inspect.signature(ARCHITECTURES[name]).parameters
    problems = [
        Problem(key, "Unknown parameter.", f"use one of {', '.join(signature)}.")
        for key in parameters.keys() - signature.keys()
    ]
    problems += [
        Problem(key, "Missing.", "add it.")
        for key, entry in signature.items()
        if entry.default is inspect.Parameter.empty and key not in parameters
    ]
    if problems:
        raise UsageError(f"The parameters do not fit {name}.", problems)
    return ARCHITECTURES[name](**parameters)


def _linear(inputs: int, outputs: int, bits: int, bias: bool) -> nn.Module:
    if bits == 1:
        return BinaryLinear(inputs, outputs, bias, scaling="tensor")
    from secure_infer.nn.quantizers import quant_linear

    return quant_linear(inputs, outputs, bits, bias)


def _sides(height: int, width: int, kernel: int, stride: int, padding: int) -> tuple[int, int]:
    """Height and width of a convolution's output."""
    high, wide = ((side + 2 * padding - kernel) // stride + 1 for side in (height, width))
    return high, wide


def _pixels(bits: int, top: float = 1.0) -> nn.Module:
    """Round pixels in [0, 1] to `bits` bits, the greatest of which means `top`; the scale is fixed."""
    from secure_infer.nn.quantizers import quant_identity

    return quant_identity(bits, signed=False, scaling_impl_type="const", scaling_init=top)
