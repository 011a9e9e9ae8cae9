"""Input transformations: fewer bits, JPEG, median or blur before the network, with gradients that see through them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from secure_infer.attacks.base import Access, Bounds, Target
from secure_infer.attacks.dct import jpeg
from secure_infer.attacks.evaluate import to_pixels
from secure_infer.attacks.networks import NetworkTarget
from secure_infer.defenses.base import Data, Defense, Place
from secure_infer.errors import InvalidInput, Problem, UsageError

Kind = Literal["bits", "jpeg", "median", "blur"]
KINDS: tuple[str, ...] = get_args(Kind)


@dataclass(frozen=True)
class InputTransformation(Defense):
    """Simplify each image before the network sees it (Guo et al. 2018; Xu, Evans, Qi 2018).

    The defended white box has gradients: of median and blur their own, of bits and JPEG the identity's (backward pass
    differentiable approximation, Athalye, Carlini, Wagner 2018), so that no masked gradient passes for robustness.

    Attributes:
        kind: "bits": rounding to `2^strength` values. "jpeg": compression at quality `strength`. "median": of an odd
            window `strength` wide. "blur": Gaussian, of standard deviation `strength` / 2 pixels.
        strength: A whole number from 1 on.
    """

    kind: Kind = "bits"
    strength: int = 3

    name: ClassVar[str] = "input-transformation"
    places: ClassVar[frozenset[Place]] = frozenset({Place.CLIENT_SIDE, Place.SERVER_SIDE_PLAINTEXT})

    def __post_init__(self) -> None:
        problems = []
        if self.kind not in KINDS:
            problems.append(Problem("kind", f"{self.kind!r}.", f"use one of {', '.join(KINDS)}."))
        most = {"bits": 8, "jpeg": 100}.get(self.kind, 31)
        if not 1 <= self.strength <= most or (self.kind == "median" and self.strength % 2 == 0):
            what = f"{self.strength} for {self.kind}."
            problems.append(Problem("strength", what, f"give 1 to {most}; an odd number for a median."))
        if problems:
            raise UsageError("There is no such input transformation.", problems)

    def __call__(self, net: nn.Module, data: Data, *, access: Access = Access.WHITE_BOX, seed: int = 0) -> Target:
        """The network behind the transformation; see the base class."""
        if self.kind != "bits" and len(data.shape) != 3:
            found = f"Inputs of shape {data.shape}."
            raise InvalidInput(f"{self.kind} needs images.", [Problem("images", found, "use bits, or give images.")])
        guarded = nn.Sequential(Transformed(self.kind, self.strength, data.bounds), net)
        return NetworkTarget(
            guarded, data.shape, name=f"{self.kind} {self.strength}", access=access, bounds=data.bounds
        )


class Transformed(nn.Module):
    """A transformation as a layer, bounds to bounds.

    Args:
        kind: As in `InputTransformation`.
        strength: As there.
        bounds: Of the images.
    """

    def __init__(self, kind: Kind, strength: int, bounds: Bounds) -> None:
        super().__init__()
        self.kind, self.strength, self.bounds = kind, strength, bounds

    def forward(self, x: Tensor) -> Tensor:
        """`(n, *shape)` to the same shape."""
        low, high, strength = self.bounds.low, self.bounds.high, self.strength
        if self.kind == "bits":
            return straight_through(lambda y: to_pixels(y, 2**strength - 1, low, high), x)
        if self.kind == "jpeg":
            return straight_through(lambda y: jpeg((y - low) / (high - low), strength) * (high - low) + low, x)
        return _median(x, strength) if self.kind == "median" else _blur(x, strength / 2)


def straight_through(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The function's values with the gradient of the identity."""
    found: Tensor = _StraightThrough.apply(x, function)  # type: ignore[no-untyped-call]
    return found


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        return function(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def _median(x: Tensor, width: int) -> Tensor:
    padded = functional.pad(x, (width // 2,) * 4, mode="replicate")
    windows = padded.unfold(2, width, 1).unfold(3, width, 1)
    return windows.flatten(4).median(-1).values


def _blur(x: Tensor, deviation: float) -> Tensor:
    reach = max(1, round(3 * deviation))
    offsets = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    weights = torch.softmax(-(offsets**2) / (2 * deviation**2), 0)
    kernel = torch.outer(weights, weights).expand(x.shape[1], 1, -1, -1)
    return functional.conv2d(functional.pad(x, (reach,) * 4, mode="replicate"), kernel, groups=x.shape[1])
