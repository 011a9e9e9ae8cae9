"""Layers of networks that run on narrow integers: weights of few bits, a batch-norm that shifts, levels for a ReLU.

If one step of a quantized activation is 2**k units of the sum before it, the low bits of the sum do not matter, and one
narrow look-up under TFHE does for the whole activation. So the batch-norm may divide by powers of two only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import ops  # `torch.ops`, which torch does not export by its types
from torch.nn import functional

_TERNARY_STEP = 1.4
_STEP = 3.2


class _RoundStraightThrough(torch.autograd.Function):
    """Rounding and clipping with the gradient of the clipping alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.ends = low - 0.5, high + 0.5
        return x.round().clamp_(low, high)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        # The one kernel for this is a quarter of the price of comparing and multiplying.
        gradient: Tensor = ops.aten.hardtanh_backward(grads[0], x, *ctx.ends)
        return gradient, None, None


def _rounded(x: Tensor, low: int, high: int) -> Tensor:
    result: Tensor = _RoundStraightThrough.apply(x, low, high)  # type: ignore[no-untyped-call]
    return result


def _integers(weight: Tensor, bits: int) -> Tensor:
    """Weights in units of a step for each output, rounded; the step is near that of the least squared error.

    For three levels the threshold lies at 0.7 mean magnitudes (ternary weight networks, Li et al., 2016).
    """
    top = (1 << (bits - 1)) - 1
    step = _TERNARY_STEP if top == 1 else _STEP / (top + 1)
    # In double precision: training leaves weights on the very edge between two integers, and there the order in which a
    # machine sums floats would decide.
    mean = weight.detach().double().abs().flatten(1).mean(dim=1).clamp_min(1e-12)
    units = weight / (step * mean).reshape((-1,) + (1,) * (weight.dim() - 1))
    return _rounded(units, -top, top).to(weight.dtype)


class IntegerConv2d(nn.Conv2d):
    """A convolution whose weights are integers; a batch-norm has to follow, for they have no scale.

    Training may add the noise of the look-ups that read the sums: alike for all channels, a share of the widest one.

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
        kernel_size: Height and width of the kernel.
        bits: Bits of a weight, sign included: 2 or more.
        noise: Standard deviation of the noise that training adds, as a share of the widest channel's range of sums.
        **options: `stride`, `padding`, `dilation`, `groups` as in `torch.nn.Conv2d`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, bits: int, noise: float = 0.0, **options: Any
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, bias=False, **options)
        self.bits, self.noise = bits, noise

    def forward(self, input: Tensor) -> Tensor:
        """`(n, in, h, w)` to `(n, out, h', w')`."""
        sums: Tensor = self._conv_forward(input, _integers(self.weight, self.bits), None)
        if not (self.training and self.noise):
            return sums
        known = sums.detach()
        width = (known.amax((0, 2, 3)) - known.amin((0, 2, 3))).max()
        return sums + self.noise * width * torch.randn_like(sums)

    @torch.no_grad()
    def integer_weight(self) -> tuple[Tensor, Tensor]:
        """Weights, shape `(out, in / groups, kh, kw)`, and their scale: one."""
        return _integers(self.weight, self.bits), self.weight.new_ones(1)


class IntegerLinear(nn.Linear):
    """A last layer: weights are integers times one scale, both trained.

    Args:
        in_features: Inputs.
        out_features: Outputs.
        bits: Bits of a weight, sign included: 2 or more.
        noise: Standard deviation of the noise that training adds to each input: that of the look-ups it comes from.
    """

    def __init__(self, in_features: int, out_features: int, bits: int, noise: float = 0.0) -> None:
        super().__init__(in_features, out_features)
        self.bits, self.noise = bits, noise
        self.scale = nn.Parameter(torch.tensor([in_features**-0.5]))

    def forward(self, input: Tensor) -> Tensor:
        """`(n, in)` to `(n, out)`."""
        if self.training and self.noise:
            input = input + self.noise * torch.randn_like(input)
        return functional.linear(input, _integers(self.weight, self.bits)) * self.scale + self.bias

    @torch.no_grad()
    def integer_weight(self) -> tuple[Tensor, Tensor]:
        """Weights, shape `(out, in)`, and their scale, shape `(1,)`."""
        return _integers(self.weight, self.bits), self.scale.detach()


class ShiftNorm2d(nn.BatchNorm2d):
    """A batch-norm whose gain is 2**-k, with the k for each channel that suits its running variance.

    Args:
        channels: Channels.
        step: How many standard deviations of the input one unit of the output should be, up to a factor of sqrt(2).
    """

    def __init__(self, channels: int, step: float) -> None:
        super().__init__(channels)
        self.step = step
        self.weight.requires_grad_(False)
        # A hook, not a forward of its own: to whoever reads the network it is a batch-norm.
        self.register_forward_pre_hook(_choose_powers)


@torch.no_grad()
def _choose_powers(norm: nn.Module, _: Any) -> None:
    assert isinstance(norm, ShiftNorm2d) and norm.running_var is not None
    deviation = (norm.running_var + norm.eps).sqrt()
    norm.weight.copy_(deviation / torch.exp2(torch.log2(norm.step * deviation).round()))


class Levels(nn.Module):
    """A ReLU rounded to 0, 1, ..., 2**bits - 1.

    Args:
        bits: Bits of the output.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise, any shape."""
        return _rounded(x, 0, self.top_level())

    def top_level(self) -> int:
        """The greatest output."""
        return (1 << self.bits) - 1

    def extra_repr(self) -> str:
        """Shown by `print(net)`."""
        return f"bits={self.bits}"
