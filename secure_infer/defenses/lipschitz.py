"""An upper bound on how fast a network's logits can change, layer by layer, and the radius that it certifies.

The exact constant is NP-hard to find; the product of the layers' spectral norms bounds it (Szegedy et al. 2014). That
of a convolution comes from Fourier transforms (Sedghi, Gupta, Long 2019): exact for circular padding, and a bound for
zero padding, since a zero-padded convolution is the circular one on the padded size between two projections.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from secure_infer.attacks.base import Access, Target
from secure_infer.attacks.goal import Goal
from secure_infer.errors import Problem, UnsupportedNetwork

_SLOPES: dict[type[nn.Module], float] = {
    nn.ReLU: 1.0,
    nn.Hardtanh: 1.0,
    nn.Tanh: 1.0,
    nn.Sigmoid: 0.25,
    nn.Softplus: 1.0,
    nn.Identity: 1.0,
    nn.Dropout: 1.0,
    nn.Flatten: 1.0,
    nn.Unflatten: 1.0,
}
"""Greatest slope of layers that act on each value alone, or only move values."""


@dataclass(frozen=True)
class LipschitzBound:
    """What no network of these weights exceeds, in L2.

    Attributes:
        layers: Name and bound of each layer that changes values.
        total: Their product: `|f(x) - f(y)| <= total |x - y|` for the logits.
    """

    layers: tuple[tuple[str, float], ...]
    total: float

    def certified_radius(self, logits: Tensor, labels: Tensor) -> Tensor:
        """L2 distance within which each label cannot change; 0 where it is wrong. `(n,)`.

        A difference of two logits changes by at most `sqrt(2) x total` a unit of distance (Tsuzuku, Sato, Sugiyama
        2018).
        """
        return Goal(labels).margin(logits).clamp_min(0) / (math.sqrt(2) * self.total)


def lipschitz_bound(net: nn.Sequential, shape: tuple[int, ...]) -> LipschitzBound:
    """Bound a sequential network.

    Args:
        net: Of linear layers, convolutions, normalization, pooling and the usual activations; in evaluation mode.
        shape: Of one input.

    Raises:
        UnsupportedNetwork: It holds other layers; all are listed.
    """
    found: list[tuple[str, float]] = []
    problems = []
    x = next(net.parameters(), torch.empty(0)).new_zeros(1, *shape)
    for name, layer in _layers(net.eval()):
        before = x
        with torch.no_grad():
            x = layer(x)
        bound = _layer_bound(layer, before)
        if bound is None:
            problems.append(Problem(name, f"No bound is known for {type(layer).__name__}.", "use another layer."))
        elif bound != 1.0:
            found.append((name, bound))
    if problems:
        raise UnsupportedNetwork("This network's Lipschitz constant can't be bounded.", problems)
    return LipschitzBound(tuple(found), math.prod(bound for _, bound in found))


def greatest_slope(target: Target, images: Tensor) -> Tensor:
    """The spectral norm of the logits' Jacobian at each image: what a bound must never be below. `(n,)`.

    Raises:
        NotApplicable: The target is no white box.
    """
    target.require(Access.WHITE_BOX, "A Jacobian")
    classes = torch.arange(target.classes, device=images.device).expand(len(images), -1)
    _, rows = target.jacobian(images, classes)
    norms: Tensor = torch.linalg.matrix_norm(rows.flatten(2).double(), ord=2)
    return norms


def _layers(net: nn.Sequential, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, layer in net._modules.items():  # unlike named_children(), with layers that are used twice
        if layer is None:
            continue
        if isinstance(layer, nn.Sequential):
            yield from _layers(layer, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", layer


def _layer_bound(layer: nn.Module, x: Tensor) -> float | None:
    """The bound of one layer whose input is shaped as `x`; None if there is none."""
    match layer:
        case nn.Linear():
            return float(torch.linalg.matrix_norm(layer.weight.detach().double(), ord=2))
        case nn.Conv2d():
            return _conv_bound(layer, x)
        case nn.BatchNorm1d() | nn.BatchNorm2d() if layer.running_var is not None:
            scale = (layer.running_var + layer.eps).rsqrt()
            return float((scale if layer.weight is None else scale * layer.weight).detach().abs().max())
        case nn.AvgPool2d() if layer.divisor_override is None and layer.count_include_pad and not layer.ceil_mode:
            # The mean of m values is at most 1 / sqrt(m) times as long as they are.
            return math.sqrt(_windows(layer) / math.prod(_pair(layer.kernel_size)))
        case nn.MaxPool2d() if _pair(layer.dilation) == (1, 1):
            return math.sqrt(_windows(layer))
        case nn.LeakyReLU():
            return max(1.0, abs(layer.negative_slope))
        case _:
            return _SLOPES.get(type(layer))


def _windows(layer: nn.AvgPool2d | nn.MaxPool2d) -> int:
    """In how many windows of a pooling layer a value can be."""
    sides, strides = _pair(layer.kernel_size), _pair(layer.stride)
    return math.prod(math.ceil(k / s) for k, s in zip(sides, strides, strict=True))


def _pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)


def _conv_bound(layer: nn.Conv2d, x: Tensor) -> float | None:
    """Norm of the circular convolution on the padded size; None for paddings of which no bound is known."""
    if isinstance(layer.padding, str) or layer.padding_mode not in ("zeros", "circular"):
        return None
    size, strides = list(x.shape[2:]), list(layer.stride)
    reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    if layer.padding_mode == "zeros":
        size = [n + 2 * p for n, p in zip(size, layer.padding, strict=True)]
    elif any(2 * p > r for p, r in zip(layer.padding, reach, strict=True)):
        return None
    elif any(n % s for n, s in zip(size, strides, strict=True)):
        strides = [1, 1]  # a stride only leaves values out
    groups = layer.weight.detach().double().chunk(layer.groups)
    return max(_circular_norm(_dilated(group, layer.dilation), size, strides) for group in groups)


def _circular_norm(spread: Tensor, size: list[int], strides: list[int]) -> float:
    """Greatest singular value over all frequencies; a stride sees its phases as channels. Kernel `(out, in, h, w)`."""
    whole = [math.ceil(max(n, k) / s) * s for n, k, s in zip(size, spread.shape[2:], strides, strict=True)]
    kernel = functional.pad(spread, (0, -spread.shape[3] % strides[1], 0, -spread.shape[2] % strides[0]))
    out, into, height, width = kernel.shape
    rows, columns = height // strides[0], width // strides[1]
    # A stride of s sees the input as s x s phases, each a channel of its own, convolved with stride 1.
    phases = kernel.view(out, into, rows, strides[0], columns, strides[1]).permute(0, 1, 3, 5, 2, 4)
    grid = (whole[0] // strides[0], whole[1] // strides[1])
    transfer = torch.fft.fft2(phases.reshape(out, -1, rows, columns), s=grid)
    return float(torch.linalg.matrix_norm(transfer.permute(2, 3, 0, 1), ord=2).max())


def _dilated(weight: Tensor, dilation: tuple[int, ...]) -> Tensor:
    vertical, horizontal = dilation
    out, into, height, width = weight.shape
    spread = weight.new_zeros(out, into, (height - 1) * vertical + 1, (width - 1) * horizontal + 1)
    spread[:, :, ::vertical, ::horizontal] = weight
    return spread
