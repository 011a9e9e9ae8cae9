"""Random noise as a baseline: what a model loses to disturbances that nobody aimed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from secure_infer.attacks.base import Access, Attack, Norm, Target
from secure_infer.attacks.goal import Goal
from secure_infer.attacks.norms import per_image, size
from secure_infer.attacks.settings import require_settings

_DOUBLINGS = 14
"""From a 64th of the width to 128 times it, where nearly all features are at a bound."""


@dataclass(frozen=True)
class Noise(Attack):
    """The least random noise that changes the answer: a line search along random directions.

    A direction is drawn for each image; its scale doubles from `width / 64` until the answer changes, then the step
    before is halved `bisections` times. The best of `draws` directions counts.

    Attributes:
        kind: `"gaussian"` or `"uniform"`.
        draws: Directions an image.
        bisections: Halvings of the last step.
    """

    kind: Literal["gaussian", "uniform"] = "gaussian"
    draws: int = 1
    bisections: int = 10

    name: ClassVar[str] = "noise"
    access: ClassVar[Access] = Access.LABEL
    norms: ClassVar[frozenset[Norm]] = frozenset({"l2", "linf"})
    goals: ClassVar[frozenset[str]] = frozenset({"untargeted", "targeted"})
    minimal: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_settings(self, "draws", "bisections", kind=("gaussian", "uniform"))

    def _run(self, target: Target, images: Tensor, goal: Goal, generator: torch.Generator) -> Tensor:
        result, open_ = images.clone(), unreached(target, images, goal)
        result[open_] = self._best(target, images[open_], goal.select(open_), generator)
        return result

    def _best(self, target: Target, images: Tensor, goal: Goal, generator: torch.Generator) -> Tensor:
        best, least = images.clone(), torch.full((len(images),), torch.inf, device=images.device)
        for _ in range(self.draws):
            noise = torch.empty_like(images)
            noise = noise.normal_(generator=generator) if self.kind == "gaussian" else _uniform(noise, generator)
            scale = self._least_scale(target, images, goal, noise)
            found = scale.isfinite()
            moved = _moved(target, images, noise, torch.where(found, scale, 0))
            distance = torch.where(found, size(moved - images, "l2"), torch.inf)
            better = distance < least
            best[better], least[better] = moved[better], distance[better]
        return best

    def _least_scale(self, target: Target, images: Tensor, goal: Goal, noise: Tensor) -> Tensor:
        """The least scale found for each image, infinite if none changes the answer. Shape `(n,)`."""
        low = torch.zeros(len(images), device=images.device)
        high = torch.full_like(low, torch.inf)
        for doublings in range(_DOUBLINGS):
            open_ = high.isinf().nonzero().squeeze(1)
            if not len(open_):
                break
            scale = torch.full_like(high[open_], target.bounds.width / 64 * 2**doublings)
            hit = _reached(target, images[open_], goal.select(open_), noise[open_], scale)
            low[open_], high[open_] = torch.where(hit, low[open_], scale), torch.where(hit, scale, high[open_])
        known = high.isfinite().nonzero().squeeze(1)
        images, goal, noise = images[known], goal.select(known), noise[known]
        for _ in range(self.bisections if len(known) else 0):
            middle = (low[known] + high[known]) / 2
            hit = _reached(target, images, goal, noise, middle)
            low[known], high[known] = torch.where(hit, low[known], middle), torch.where(hit, middle, high[known])
        return high


def unreached(target: Target, images: Tensor, goal: Goal) -> Tensor:
    """Which images do not reach a goal by themselves, as indices: one query an image."""
    return (~goal.reached_by_labels(target.query(images).labels)).nonzero().squeeze(1)


def _uniform(empty: Tensor, generator: torch.Generator) -> Tensor:
    return empty.uniform_(-1, 1, generator=generator)


def _reached(target: Target, images: Tensor, goal: Goal, noise: Tensor, scale: Tensor) -> Tensor:
    return goal.reached_by_labels(target.query(_moved(target, images, noise, scale)).labels)


def _moved(target: Target, images: Tensor, noise: Tensor, scale: Tensor) -> Tensor:
    return target.bounds.clamp(images + per_image(scale, images) * noise)
