"""The attack of Carlini and Wagner: distortion plus a weighted margin, minimized without constraints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from secure_infer.attacks.base import Access, Bounds, Norm, Target
from secure_infer.attacks.goal import Goal
from secure_infer.attacks.losses import scores_of
from secure_infer.attacks.minimal import Closest, MinimalAttack
from secure_infer.attacks.norms import per_image
from secure_infer.attacks.settings import require_settings

_EDGE = 1 - 1e-6
_PATIENCE = 0.9999


@dataclass(frozen=True)
class CarliniWagner(MinimalAttack):
    """L2 attack of Carlini and Wagner (2017): tanh space, Adam, binary search of the weight of the margin.

    Attributes:
        searches: Weights that are tried.
        steps: Gradients for each image and weight.
        rate: Learning rate of Adam.
        weight: The first weight of the margin against the squared distortion.
        surplus: Margin wanted beyond the boundary, in logits.
        abort_early: Give a weight up, image by image, when a fifth of the steps brings nothing: faster, less near.
    """

    name: ClassVar[str] = "cw"
    access: ClassVar[Access] = Access.WHITE_BOX
    norms: ClassVar[frozenset[Norm]] = frozenset({"l2"})
    goals: ClassVar[frozenset[str]] = frozenset({"untargeted", "targeted", "confidence"})

    searches: int = 9
    steps: int = 200
    rate: float = 0.01
    weight: float = 1e-3
    surplus: float = 0.0
    abort_early: bool = False

    def __post_init__(self) -> None:
        require_settings(self, "searches", "steps", "rate", "weight")

    def _search(self, target: Target, images: Tensor, goal: Goal, generator: torch.Generator) -> Tensor:
        closest = Closest(images, "l2")
        weight = images.new_full((len(images),), self.weight)
        low, high = torch.zeros_like(weight), torch.full_like(weight, torch.inf)
        for _ in range(self.searches):
            success = self._minimize(target, images, goal, weight, closest)
            low, high = torch.where(success, low, weight), torch.where(success, weight, high)
            weight = torch.where(high.isinf(), weight * 10, (low + high) / 2)
        return closest.found

    def _minimize(self, target: Target, images: Tensor, goal: Goal, weight: Tensor, closest: Closest) -> Tensor:
        """Adam for one weight an image; which of them had a success."""
        any_success = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        rows = torch.arange(len(images), device=images.device)
        state = _Adam(_to_free(images, target.bounds))
        least, since = torch.full_like(weight, torch.inf), torch.zeros_like(rows)
        for step in range(self.steps):
            x, slope = _from_free(state.values, target.bounds)
            logits, gradient = target.differentiate(x, goal.margin)
            margin = goal.margin(logits) + self.surplus
            success = goal.reached(logits) & (margin <= 0)
            distance = closest.offer(x, success, rows)
            any_success[rows] |= success
            pull = torch.addcmul(2 * (x - images), gradient, per_image(weight * (margin > 0), x))
            state.step(pull * slope, self.rate)
            if not self.abort_early:
                continue
            cost = distance**2 + weight * margin.clamp_min(0)
            since = torch.where(cost < least * _PATIENCE, 0, since + 1)
            least = torch.minimum(least, cost)
            if step % 10 == 9:
                keep, goal = since < self.steps / 5, goal.select(since < self.steps / 5)
                rows, images, weight, least, since = (each[keep] for each in (rows, images, weight, least, since))
                state.select(keep)
                if not len(rows):
                    return any_success
        x, _ = _from_free(state.values, target.bounds)
        success = goal.reached(logits := scores_of(target, x)) & (goal.margin(logits) + self.surplus <= 0)
        closest.offer(x, success, rows)
        any_success[rows] |= success
        return any_success


class _Adam:
    """Adam (Kingma and Ba 2015) on a batch from which images may leave."""

    def __init__(self, values: Tensor) -> None:
        self.values, self._steps = values, 0
        self._mean, self._square = torch.zeros_like(values), torch.zeros_like(values)

    def step(self, gradient: Tensor, rate: float) -> None:
        self._steps += 1
        self._mean.lerp_(gradient, 0.1)
        self._square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        size = self._square.sqrt().mul_((1 - 0.999**self._steps) ** -0.5).add_(1e-8)
        self.values = self.values.addcdiv(self._mean, size, value=-rate / (1 - 0.9**self._steps))

    def select(self, keep: Tensor) -> None:
        self.values, self._mean, self._square = self.values[keep], self._mean[keep], self._square[keep]


def _to_free(x: Tensor, bounds: Bounds) -> Tensor:
    """Values within the bounds as values without any."""
    return torch.atanh(_EDGE * (2 * (x - bounds.low) / bounds.width - 1))


def _from_free(values: Tensor, bounds: Bounds) -> tuple[Tensor, Tensor]:
    """The way back, and its slope."""
    half, squeezed = bounds.width / 2, values.tanh()
    return bounds.clamp(half * squeezed + (bounds.low + half)), half - half * squeezed**2
