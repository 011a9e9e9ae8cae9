"""Projected gradient descent on gradients that are estimated from scores: NES and SPSA."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from secure_infer.attacks.base import Access, Attack, Norm, Target
from secure_infer.attacks.goal import Goal
from secure_infer.attacks.norms import steepest, within
from secure_infer.attacks.scores import affordable, margins, points_at_once
from secure_infer.attacks.settings import require_settings

Noise = Literal["normal", "signs"]


@dataclass(frozen=True)
class EstimatedPGD(Attack):
    """Descent along finite differences of the margin: NES (Ilyas et al. 2018) or SPSA (Uesato et al. 2018).

    Attributes:
        radius: Of the ball, in units of the inputs.
        norm: "linf" or "l2".
        queries: Allowed for each image.
        pairs: Opposite probes of each gradient.
        reach: Standard deviation of a probe in each feature, in widths of the bounds.
        noise: "normal" probes (NES), or those of random "signs" (SPSA).
        step: Length of a step, in radii.
        momentum: Share of the last direction that is kept.
    """

    name: ClassVar[str] = "estimated-pgd"
    access: ClassVar[Access] = Access.PROBABILITIES
    norms: ClassVar[frozenset[Norm]] = frozenset({"l2", "linf"})
    goals: ClassVar[frozenset[str]] = frozenset({"untargeted", "targeted", "confidence"})
    minimal: ClassVar[bool] = False

    radius: float = 8 / 255
    norm: Norm = "linf"
    queries: int = 1000
    pairs: int = 25
    reach: float = 0.01
    noise: Noise = "normal"
    step: float = 0.2
    momentum: float = 0.5

    def __post_init__(self) -> None:
        require_settings(self, "radius", "queries", "pairs", "reach", "step", noise=get_args(Noise))

    def _run(self, target: Target, images: Tensor, goal: Goal, generator: torch.Generator) -> Tensor:
        left = affordable(target, len(images), self.queries)
        found, last = images.clone(), torch.zeros_like(images)
        live = torch.arange(len(images), device=images.device)
        while left > 0:
            live = live[margins(target, found[live, None], goal.select(live)).squeeze(1) >= 0]
            left, pairs = left - 1, min(self.pairs, (left - 2) // 2)
            if not len(live) or pairs < 1:
                break
            gradient = self._gradient(target, found[live], goal.select(live), pairs, generator)
            last[live] = self.momentum * last[live] + steepest(gradient, "l2")
            moved = found[live] - self.step * self.radius * steepest(last[live], self.norm)
            found[live] = within(moved, images[live], self.norm, self.radius, target.bounds)
            left -= 2 * pairs
        return found

    def _gradient(self, target: Target, x: Tensor, goal: Goal, pairs: int, generator: torch.Generator) -> Tensor:
        """Of the margin, up to a factor, `(m, *shape)`."""
        per_call = max(1, points_at_once(x[0]) // (2 * pairs))
        parts = torch.split(torch.arange(len(x), device=x.device), per_call)
        return torch.cat([self._part(target, x[part], goal.select(part), pairs, generator) for part in parts])

    def _part(self, target: Target, x: Tensor, goal: Goal, pairs: int, generator: torch.Generator) -> Tensor:
        noise = torch.randn((len(x), pairs, *x.shape[1:]), generator=generator, device=x.device, dtype=x.dtype)
        noise = noise.sign() if self.noise == "signs" else noise
        reach = self.reach * target.bounds.width
        points = target.bounds.clamp(torch.cat([x[:, None] + reach * noise, x[:, None] - reach * noise], 1))
        plus, minus = margins(target, points, goal).chunk(2, 1)
        return torch.einsum("mk,mk...->m...", plus - minus, noise) / math.sqrt(pairs)
