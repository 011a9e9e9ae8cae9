"""Trainable layers that have an exact integer or polynomial form: binarized weights, signs and polynomials.

What a frontend needs to know is told by three methods, so that nobody has to know the classes:

    integer_weight() -> (integers, scale)      layers with weights: weight = scale * integers
    sign_scale()     -> scale                  two-valued activations: +scale if x >= 0 else -scale
    polynomial()     -> (rows, degree + 1)     polynomial activations: coefficients of 1, x, x^2, ..., a row a channel
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from secure_infer.errors import Problem, UsageError
from secure_infer.nn.fits import Function, chebyshev_polynomial, fit_polynomial

Scaling = Literal["tensor", "channel", "none"]


class _SignStraightThrough(torch.autograd.Function):
    """Sign whose gradient is that of a clip to [-1, 1] (Hubara et al., NeurIPS 2016)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        gradient: Tensor = grads[0] * (x.abs() <= 1)
        return gradient


def sign(x: Tensor) -> Tensor:
    """+1 where `x >= 0`, else -1; the gradient passes straight through where `|x| <= 1`."""
    result: Tensor = _SignStraightThrough.apply(x)  # type: ignore[no-untyped-call]
    return result


def _weight_scale(weight: Tensor, scaling: Scaling) -> Tensor:
    """Mean magnitude, of all or an output (XNOR-Net, Rastegari et al., ECCV 2016); shape `(1,)` or `(out,)`."""
    if scaling == "none":
        return weight.new_ones(1)
    if scaling == "tensor":
        return weight.detach().abs().mean().reshape(1)
    return weight.detach().abs().flatten(1).mean(1)


def _binary_weight(weight: Tensor, scaling: Scaling) -> Tensor:
    scale = _weight_scale(weight, scaling)
    return sign(weight) * scale.reshape((-1,) + (1,) * (weight.dim() - 1))


def _integer_weight(weight: Tensor, scaling: Scaling) -> tuple[Tensor, Tensor]:
    return torch.where(weight >= 0, 1, -1), _weight_scale(weight, scaling)


def _check_scaling(scaling: str) -> None:
    if scaling not in ("tensor", "channel", "none"):
        raise UsageError(
            f"There is no scaling {scaling!r}.",
            [Problem("scaling", "Expected 'tensor', 'channel' or 'none'.", "use one of these.")],
        )


class BinaryLinear(nn.Linear):
    """A linear layer whose weights are +1 or -1 times a scale.

    Args:
        in_features: Inputs.
        out_features: Outputs.
        bias: Whether to add a (real) bias.
        scaling: One scale for the `"tensor"`, for each output (`"channel"`), or `"none"`: weights of exactly +1 and -1.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, scaling: Scaling = "channel") -> None:
        _check_scaling(scaling)
        super().__init__(in_features, out_features, bias)
        self.scaling: Scaling = scaling

    def forward(self, input: Tensor) -> Tensor:
        """`(n, in)` to `(n, out)`."""
        result: Tensor = functional.linear(input, _binary_weight(self.weight, self.scaling), self.bias)
        return result

    @torch.no_grad()
    def integer_weight(self) -> tuple[Tensor, Tensor]:
        """Weights of +1 and -1, shape `(out, in)`, and their scale, shape `(1,)` or `(out,)`."""
        return _integer_weight(self.weight, self.scaling)


class BinaryConv2d(nn.Conv2d):
    """A convolution whose weights are +1 or -1 times a scale.

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
        kernel_size: Height and width of the kernel.
        scaling: As in `BinaryLinear`.
        **options: `stride`, `padding`, `dilation`, `groups`, `bias` as in `torch.nn.Conv2d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        scaling: Scaling = "channel",
        **options: Any,
    ) -> None:
        _check_scaling(scaling)
        super().__init__(in_channels, out_channels, kernel_size, **options)
        self.scaling: Scaling = scaling

    def forward(self, input: Tensor) -> Tensor:
        """`(n, in, h, w)` to `(n, out, h', w')`."""
        result: Tensor = self._conv_forward(input, _binary_weight(self.weight, self.scaling), self.bias)
        return result

    @torch.no_grad()
    def integer_weight(self) -> tuple[Tensor, Tensor]:
        """Weights of +1 and -1, shape `(out, in / groups, kh, kw)`, and their scale, shape `(1,)` or `(out,)`."""
        return _integer_weight(self.weight, self.scaling)


class Sign(nn.Module):
    """+1 where `x >= 0`, else -1, with a straight-through gradient.

    Args:
        noise: Standard deviation of the Gaussian noise that training adds to the pre-activation, in its own units: a
            network trained so tolerates the noise of an approximate look-up.
    """

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        if noise < 0:
            raise UsageError(f"Expected noise of zero or more, got {noise}.")
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise, any shape."""
        if self.training and self.noise:
            x = x + self.noise * torch.randn_like(x)
        return sign(x)

    def sign_scale(self) -> float:
        """Magnitude of the output."""
        return 1.0

    def extra_repr(self) -> str:
        """Shown by `print(net)`."""
        return f"noise={self.noise}" if self.noise else ""


class _Quadratic(torch.autograd.Function):
    """`c + b x + a x^2` in few passes over memory; a tensor that is broadcast would cost far more than a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, columns: Tensor) -> Tensor:
        ctx.save_for_backward(x, columns)
        constant, linear, square = _numbers(columns, x)
        result: Tensor = (x * square).add_(linear).mul_(x).add_(constant)
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, columns = ctx.saved_tensors
        _, linear, square = _numbers(columns, x)
        powers = grads[0], grads[0] * x, grads[0] * x * x
        moments = torch.stack([power.sum_to_size(columns[0].shape) for power in powers])
        return grads[0] * (x * (2 * square) + linear), moments.to(columns.dtype)


def _numbers(columns: Tensor, x: Tensor) -> Any:
    """Three columns as numbers where each holds but one, and nobody differentiates by them."""
    return columns.to(x.dtype) if columns.numel() > 3 or torch.is_grad_enabled() else columns.flatten().tolist()


class _Excess(torch.autograd.Function):
    """Mean of `max(|x| / radius - 1, 0)^2`, whose gradient is what its forward pass makes on the way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, radius: float) -> Tensor:
        excess = functional.softshrink(x, radius)
        ctx.scale = 1 / (x.numel() * radius**2)
        ctx.save_for_backward(excess)
        wide = torch.promote_types(x.dtype, torch.float32)
        result: Tensor = torch.linalg.vector_norm(excess, dtype=wide).square() * ctx.scale
        return result

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (excess,) = ctx.saved_tensors
        return excess * (2 * ctx.scale * grads[0]).to(excess.dtype), None


def _columns(rows: Tensor, x: Tensor) -> Tensor:
    """Coefficients `(channels | 1, degree + 1)` as `(degree + 1, channels | 1, 1, ...)`, to broadcast along `x`."""
    return rows.T.reshape((rows.shape[1], -1) + (1,) * (x.dim() - 2))


def _evaluate(rows: Tensor, x: Tensor) -> Tensor:
    """Horner's rule for coefficients `(channels | 1, degree + 1)` on `x` of shape `(n, channels, ...)`."""
    columns = _columns(rows, x)
    result = columns[-1].expand_as(x)
    for column in reversed(columns[:-1].unbind()):
        result = result * x + column
    return result


class _Ranged(nn.Module):
    """An activation for inputs in `[-radius, radius]`, which remembers the greatest |x| of training (`peak`)."""

    peak: Tensor

    def __init__(self, radius: float) -> None:
        super().__init__()
        if not radius > 0:
            raise UsageError(f"Expected a radius above zero, got {radius}.")
        self.radius = radius
        self.register_buffer("peak", torch.zeros(()))
        self._penalty: Tensor | None = None

    def _watch(self, x: Tensor) -> None:
        if self.training:
            peak = torch.stack(x.detach().aminmax()).abs().max()
            self.peak = torch.maximum(self.peak, peak.to(self.peak))
            self._penalty = _Excess.apply(x, self.radius)  # type: ignore[no-untyped-call]

    def range_penalty(self) -> Tensor:
        """Mean squared excess of the last training batch over the radius, relative to it; a scalar for the loss."""
        return self.peak.new_zeros(()) if self._penalty is None else self._penalty

    def __getstate__(self) -> dict[str, Any]:
        # The penalty is part of an autograd graph, which can't be copied.
        return {**self.__dict__, "_penalty": None}


class PolynomialActivation(_Ranged):
    """A learned polynomial `c + b x + a x^2 (+ ...)` that watches the range of its input.

    A polynomial grows without bound outside the range it was meant for, and CKKS cannot clip. So the layer remembers
    the greatest |x| it saw in training (`peak`), and `range_penalty` pushes inputs back into `[-radius, radius]`.

    Args:
        coefficients: Initial coefficients of 1, x, x^2, ...; the default is the least-squares fit of a ReLU on
            `[-radius, radius]`.
        channels: Learn a polynomial for each of so many channels; None: one for all.
        radius: Half-width of the intended range.
    """

    def __init__(
        self, coefficients: tuple[float, ...] | None = None, channels: int | None = None, radius: float = 3.0
    ) -> None:
        super().__init__(radius)
        row = list(coefficients) if coefficients is not None else fit_polynomial("relu", 2, radius).tolist()
        if len(row) < 2:
            raise UsageError(f"Expected at least two coefficients, got {len(row)}.")
        self.coefficients = nn.Parameter(torch.tensor([row] * (channels or 1), dtype=torch.get_default_dtype()))

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise; shape `(n, channels, ...)`."""
        self._watch(x)
        if self.training and self.coefficients.shape[1] == 3:
            result: Tensor = _Quadratic.apply(x, _columns(self.coefficients, x))  # type: ignore[no-untyped-call]
            return result
        return _evaluate(self.coefficients, x)

    def polynomial(self) -> Tensor:
        """Coefficients of 1, x, x^2, ...; shape `(channels | 1, degree + 1)`."""
        return self.coefficients.detach()

    def extra_repr(self) -> str:
        """Shown by `print(net)`."""
        rows, terms = self.coefficients.shape
        return f"degree={terms - 1}, channels={rows}, radius={self.radius:g}"


class Square(nn.Module):
    """`x * x`, the activation of CryptoNets (Gilad-Bachrach et al., ICML 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise, any shape."""
        return x * x

    def polynomial(self) -> Tensor:
        """`((0, 0, 1),)`."""
        return torch.tensor([[0.0, 0.0, 1.0]])


class ChebyshevActivation(_Ranged):
    """A fixed polynomial close to a given function on `[-radius, radius]`, by interpolation at Chebyshev nodes.

    Args:
        function: `"relu"`, `"silu"`, `"gelu"`, `"tanh"`, `"sigmoid"`, or any function of a float64 array.
        degree: Degree of the polynomial, 1 to 31.
        radius: Half-width of the range on which it is close.
    """

    scaled: Tensor

    def __init__(self, function: str | Function, degree: int, radius: float) -> None:
        super().__init__(radius)
        rows = chebyshev_polynomial(function, degree, radius) * radius ** np.arange(degree + 1)
        self.function = function if isinstance(function, str) else "custom"
        self.degree = degree
        # Coefficients of powers of x / radius: far better conditioned than those of powers of x.
        self.register_buffer("scaled", torch.tensor(rows, dtype=torch.get_default_dtype())[None])

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise; shape `(n, ...)`."""
        self._watch(x)
        return _evaluate(self.scaled, x / self.radius)

    def polynomial(self) -> Tensor:
        """Coefficients of 1, x, x^2, ...; shape `(1, degree + 1)`."""
        powers = torch.arange(self.degree + 1, dtype=torch.float64)
        rows: Tensor = self.scaled.double() / self.radius**powers
        return rows

    def extra_repr(self) -> str:
        """Shown by `print(net)`."""
        return f"{self.function}, degree={self.degree}, radius={self.radius:g}"


def range_penalty(net: nn.Module) -> Tensor:
    """Sum of the range penalties of all polynomial activations of a network, for its loss."""
    penalties = [layer.range_penalty() for layer in net.modules() if isinstance(layer, _Ranged)]
    return torch.stack(penalties).sum() if penalties else torch.zeros(())
