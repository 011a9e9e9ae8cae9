"""Layers of integer weights for networks of signs, each sign to become one cheap, approximate look-up under TFHE.

The noise of such a look-up is a share of the range of the sum it reads. The weights of an output add up to zero, but
for rounding, so that all-black and all-white images do not widen that range. A batch-norm has to follow: weights have
no scale.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from secure_infer.errors import UsageError

_DEAD = 1e-12


class _RoundStraightThrough(torch.autograd.Function):
    """Rounding with a gradient of one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class _Balanced(nn.Module):
    """What both layers share.

    Attributes:
        weight: Real weights, of which only the direction of each output's matters.
        magnitude: Root mean square of the integers that stand for the weights.
        noise: Standard deviation of the noise that training adds, as a share of that of the sums.
    """

    weight: Tensor
    magnitude: float
    noise: float

    def _configure(self, magnitude: float, noise: float) -> None:
        if not magnitude > 0 or not noise >= 0:
            raise UsageError(f"Expected a magnitude above zero and noise of zero or more, got {magnitude} and {noise}.")
        self.magnitude, self.noise = magnitude, noise

    def _integers(self) -> Tensor:
        rows = self.weight.flatten(1)
        rows = rows - rows.mean(dim=1, keepdim=True)
        deviation = rows.square().mean(dim=1, keepdim=True).sqrt().clamp_min(_DEAD)
        result: Tensor = _RoundStraightThrough.apply(rows * (self.magnitude / deviation))  # type: ignore[no-untyped-call]
        return result.reshape(self.weight.shape)

    def _noisy(self, sums: Tensor) -> Tensor:
        if not (self.training and self.noise):
            return sums
        deviation = sums.detach().std([d for d in range(sums.dim()) if d != 1], correction=0, keepdim=True)
        return sums + self.noise * deviation * torch.randn_like(sums)

    @torch.no_grad()
    def integer_weight(self) -> tuple[Tensor, Tensor]:
        """Weights, of the shape of `weight`, and their scale: one."""
        return self._integers(), self.weight.new_ones(1)


class BalancedLinear(_Balanced, nn.Linear):
    """A linear layer with balanced integer weights.

    Args:
        in_features: Inputs.
        out_features: Outputs.
        magnitude: Root mean square of the integer weights. It costs nothing but bits of the sums.
        noise: Standard deviation of the noise that training adds, as a share of that of the sums.
    """

    def __init__(self, in_features: int, out_features: int, magnitude: float, noise: float = 0.0) -> None:
        nn.Linear.__init__(self, in_features, out_features, bias=False)
        self._configure(magnitude, noise)

    def forward(self, input: Tensor) -> Tensor:
        """`(n, in)` to `(n, out)`."""
        return self._noisy(nn.functional.linear(input, self._integers()))


class BalancedConv2d(_Balanced, nn.Conv2d):
    """A convolution with balanced integer weights.

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
        kernel_size: Height and width of the kernel.
        magnitude: As in `BalancedLinear`.
        noise: As in `BalancedLinear`.
        **options: `stride` and `padding` as in `torch.nn.Conv2d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        magnitude: float,
        noise: float = 0.0,
        **options: Any,
    ) -> None:
        nn.Conv2d.__init__(self, in_channels, out_channels, kernel_size, bias=False, **options)
        self._configure(magnitude, noise)

    def forward(self, input: Tensor) -> Tensor:
        """`(n, in, h, w)` to `(n, out, h', w')`."""
        return self._noisy(self._conv_forward(input, self._integers(), None))
