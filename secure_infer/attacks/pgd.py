"""Projected gradient descent within a radius, and its ancestors: FGSM, BIM, iterative least-likely class."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from secure_infer.attacks.base import Access, Attack, Norm, Target
from secure_infer.attacks.goal import Goal
from secure_infer.attacks.losses import LOSSES, LossName, loss_of, scores_of
from secure_infer.attacks.norms import random_disturbance, steepest, within
from secure_infer.attacks.settings import require_settings

_GOALS = frozenset({"untargeted", "targeted", "confidence"})
_NORMS: frozenset[Norm] = frozenset({"l2", "linf"})


@dataclass(frozen=True)
class FGSM(Attack):
    """Fast gradient sign method (Goodfellow, Shlens, Szegedy 2015): one step of the full radius.

    Attributes:
        radius: Of the ball, in units of the inputs.
        norm: "linf", or "l2" for the unit gradient instead of its sign.
    """

    name: ClassVar[str] = "fgsm"
    access: ClassVar[Access] = Access.WHITE_BOX
    norms: ClassVar[frozenset[Norm]] = _NORMS
    goals: ClassVar[frozenset[str]] = _GOALS
    minimal: ClassVar[bool] = False

    radius: float = 8 / 255
    norm: Norm = "linf"

    def __post_init__(self) -> None:
        require_settings(self, "radius")

    def _run(self, target: Target, images: Tensor, goal: Goal, generator: torch.Generator) -> Tensor:
        _, gradient = target.differentiate(images, loss_of("cross-entropy", goal))
        return target.bounds.clamp(images + self.radius * steepest(gradient, self.norm))


@dataclass(frozen=True)
class PGD(Attack):
    """Projected gradient descent (Madry et al. 2018); restarts run as one batch, and a fooled image leaves it.

    Attributes:
        radius: Of the ball, in units of the inputs.
        norm: "linf" or "l2".
        steps: Gradients for each image and restart.
        step: Length of a step; None for 2.5 x radius / steps.
        restarts: Starts of each image.
        random_start: Start inside the ball at random, not at the image.
        loss: "cross-entropy", "margin" or "dlr".
        early_stop: End at the first success; otherwise walk on, for examples that transfer.
    """

    name: ClassVar[str] = "pgd"
    access: ClassVar[Access] = Access.WHITE_BOX
    norms: ClassVar[frozenset[Norm]] = _NORMS
    goals: ClassVar[frozenset[str]] = _GOALS
    minimal: ClassVar[bool] = False

    radius: float = 8 / 255
    norm: Norm = "linf"
    steps: int = 40
    step: float | None = None
    restarts: int = 1
    random_start: bool = True
    loss: LossName = "cross-entropy"
    early_stop: bool = True

    def __post_init__(self) -> None:
        require_settings(self, "radius", "steps", "step", "restarts", loss=LOSSES)

    def _run(self, target: Target, images: Tensor, goal: Goal, generator: torch.Generator) -> Tensor:
        copies = images.repeat(self.restarts, *(1,) * (images.ndim - 1))
        x = copies
        if self.random_start:
            x = target.bounds.clamp(x + random_disturbance(x, self.norm, self.radius, generator))
        found, success = self._walk(target, copies, x, goal.repeat(self.restarts))
        # The first success of each image, else its last restart.
        success = success.view(self.restarts, -1)
        chosen = torch.where(success.any(0), success.to(torch.uint8).argmax(0), self.restarts - 1)
        return found[chosen * len(images) + torch.arange(len(images), device=images.device)]

    def _walk(self, target: Target, images: Tensor, x: Tensor, goal: Goal) -> tuple[Tensor, Tensor]:
        """Where each copy ends, and whether that succeeds."""
        count = len(images) // self.restarts
        found, success = x.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
        live = torch.arange(len(x), device=x.device)
        length = self.step or 2.5 * self.radius / self.steps
        for _ in range(self.steps):
            logits, gradient = target.differentiate(x, loss_of(self.loss, goal))
            if self.early_stop:
                done = goal.reached(logits)
                found[live], success[live] = x, done
                fooled = success.view(self.restarts, count).any(0)
                keep = ~fooled[live % count]
                live, images, x, gradient = live[keep], images[keep], x[keep], gradient[keep]
                goal = goal.select(keep)
                if not len(live):
                    return found, success
            x = within(x + length * steepest(gradient, self.norm), images, self.norm, self.radius, target.bounds)
        found[live] = x
        success[live] = goal.reached(scores_of(target, x)) if self.restarts > 1 else False
        return found, success


@dataclass(frozen=True)
class BIM(PGD):
    """Basic iterative method (Kurakin, Goodfellow, Bengio 2017): steps from the image itself, radius / steps long."""

    name: ClassVar[str] = "bim"

    steps: int = 10
    random_start: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.step is None:
            object.__setattr__(self, "step", self.radius / self.steps)


@dataclass(frozen=True)
class LeastLikely(BIM):
    """Iterative least-likely class (Kurakin, Goodfellow, Bengio 2017): BIM towards the class deemed least likely."""

    name: ClassVar[str] = "least-likely"
    goals: ClassVar[frozenset[str]] = frozenset({"untargeted"})

    def _run(self, target: Target, images: Tensor, goal: Goal, generator: torch.Generator) -> Tensor:
        scores = scores_of(target, images).scatter(1, goal.labels[:, None], torch.inf)
        return super()._run(target, images, replace(goal, targets=scores.argmin(1)), generator)
