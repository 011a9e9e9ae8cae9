"""Networks for secret sharing: comparisons are what costs there, so maxima are taken before activations."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from secure_infer.nn.integers import IntegerConv2d, IntegerLinear, Levels

_SPAN = 2.0
"""Standard deviations of a normalized sum that the levels of an activation cover at first."""


def pooled_integers(
    *,
    image: Sequence[int],
    classes: int,
    convolutions: Sequence[Sequence[int]] = (),
    hidden: Sequence[int] = (),
    input_bits: int,
    weight_bits: Sequence[int],
    activation_bits: int,
) -> nn.Sequential:
    """Convolutions and linear layers of narrow integers; each ReLU is rounded to few levels.

    A maximum and a function that never falls may change places: taken first, the maximum leaves a quarter of the
    activations, each of which is one comparison a level.

    Args:
        image: Channels, height and width of the input.
        classes: Outputs.
        convolutions: For each: output channels, width of the kernel, zeros around its input, width of the max-pool.
        hidden: Neurons of each fully connected hidden layer.
        input_bits: Bits of a pixel.
        weight_bits: Bits of the weights of each layer, 2 or more.
        activation_bits: Bits of an activation.
    """
    from secure_infer.nn.quantizers import quant_identity

    layers: list[nn.Module] = [quant_identity(input_bits, signed=False, scaling_impl_type="const", scaling_init=1.0)]
    depth, height, width = image
    bits = iter(weight_bits)
    for number, kernel, padding, pool in convolutions:
        layers.append(IntegerConv2d(depth, number, kernel, next(bits), padding=padding))
        layers += [_spread(nn.BatchNorm2d(number), activation_bits), nn.MaxPool2d(pool), Levels(activation_bits)]
        height, width = ((side + 2 * padding - kernel + 1) // pool for side in (height, width))
        depth = number
    layers.append(nn.Flatten())
    size = depth * height * width
    for number in hidden:
        layers += [IntegerLinear(size, number, next(bits)), _spread(nn.BatchNorm1d(number), activation_bits)]
        layers.append(Levels(activation_bits))
        size = number
    return nn.Sequential(*layers, IntegerLinear(size, classes, next(bits)))


def _spread(norm: nn.Module, bits: int) -> nn.Module:
    """A batch-norm whose output at first spreads over the levels that follow."""
    nn.init.constant_(norm.weight, ((1 << bits) - 1) / _SPAN)
    return norm
