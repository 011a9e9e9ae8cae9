"""FMN: a ball whose radius is first set by a linear estimate of the boundary, then follows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from secure_infer.attacks.base import Access, Norm, Target
from secure_infer.attacks.goal import Goal
from secure_infer.attacks.losses import scores_of
from secure_infer.attacks.minimal import Closest, MinimalAttack, annealed, fallback, moved
from secure_infer.attacks.norms import dual_size, within
from secure_infer.attacks.settings import require_settings


@dataclass(frozen=True)
class FMN(MinimalAttack):
    """Fast minimum-norm attack (Pintor et al. 2021): margin loss, steps and radius annealed along half a cosine.

    Attributes:
        norm: "l2" or "linf".
        steps: Gradients for each image.
        step: First length of a step, Euclidean, in units of the inputs; None for 1 in L2 and 10 in Linf.
        factor: By which share the radius changes in the first step, between 0 and 1.
    """

    name: ClassVar[str] = "fmn"
    access: ClassVar[Access] = Access.WHITE_BOX
    norms: ClassVar[frozenset[Norm]] = frozenset({"l2", "linf"})
    goals: ClassVar[frozenset[str]] = frozenset({"untargeted", "targeted", "confidence"})

    norm: Norm = "l2"
    steps: int = 100
    step: float | None = None
    factor: float = 0.05

    def __post_init__(self) -> None:
        require_settings(self, "steps", "step", "factor")

    def _search(self, target: Target, images: Tensor, goal: Goal, generator: torch.Generator) -> Tensor:
        closest, otherwise = Closest(images, self.norm), fallback(images, generator)
        first = self.step or (1.0 if self.norm == "l2" else 10.0)
        radius = images.new_full((len(images),), torch.inf)
        x = images
        for step in range(self.steps):
            logits, gradient = target.differentiate(x, lambda logits: -goal.margin(logits))
            success, margin = goal.reached(logits), goal.margin(logits)
            distance = closest.offer(x, success)
            radius = self._resized(radius, closest.distance, distance, success, margin, gradient, step)
            length = annealed(step, self.steps, first, 0.0)
            ahead = moved(x, gradient, otherwise, length)
            x = within(ahead, images, self.norm, radius, target.bounds)
        closest.offer(x, goal.reached(scores_of(target, x)))
        return closest.found

    def _resized(
        self,
        radius: Tensor,
        best: Tensor,
        distance: Tensor,
        success: Tensor,
        margin: Tensor,
        gradient: Tensor,
        step: int,
    ) -> Tensor:
        """The next radius: the estimated boundary until a first success, then a little less or more than the last."""
        factor = annealed(step, self.steps, self.factor, 0.0)
        estimate = distance + margin.abs() / dual_size(gradient, self.norm).clamp_min(1e-12)
        outside = torch.where(best.isinf(), estimate * 1.01, radius * (1 + factor))
        return torch.where(success, torch.minimum(radius * (1 - factor), best), outside)
