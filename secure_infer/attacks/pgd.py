"""Projected gradient descent within a radius, and its ancestors: FGSM, BIM, iterative least-likely class."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from secure_infer.attacks.base import Access, Attack, Norm, Target
from secure_infer.attacks.goal import Goal
from secure_infer.attacks.losses import LOSSES, LossName, loss_of, scores_of
from secure_infer.attacks.norms import steepest, within
from secure_infer.attacks.restarts import Outcome, RestartedAttack, select
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
class PGD(RestartedAttack):
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

    @property
    def length(self) -> float:
        """Length of a step."""
        return self.step or 2.5 * self.radius / self.steps

    def _walk(self, target: Target, images: Tensor, x: Tensor, goal: Goal, aim: Goal, outcome: Outcome) -> None:
        walk = _Walk(torch.arange(len(x), device=x.device), images, x, goal, aim)
        for _ in range(self.steps):
            logits, gradient = target.differentiate(walk.x, loss_of(self.loss, walk.aim))
            if self.early_stop:
                keep = outcome.settle(walk.rows, walk.x, walk.goal.reached(logits))
                walk, gradient = select(walk, keep), gradient[keep]
                if not len(walk.rows):
                    return
            ahead = torch.add(walk.x, steepest(gradient, self.norm), alpha=self.length)
            walk.x = within(ahead, walk.images, self.norm, self.radius, target.bounds)
        outcome.settle(walk.rows, walk.x, walk.goal.reached(scores_of(target, walk.x)))


@dataclass
class _Walk:
    """The copies that are still walking: their numbers, originals, places and goals."""

    rows: Tensor
    images: Tensor
    x: Tensor
    goal: Goal
    aim: Goal


@dataclass(frozen=True)
class BIM(PGD):
    """Basic iterative method (Kurakin, Goodfellow, Bengio 2017): steps of radius / steps from the image itself."""

    name: ClassVar[str] = "bim"

    steps: int = 10
    random_start: bool = False

    @property
    def length(self) -> float:
        """Length of a step."""
        return self.step or self.radius / self.steps


@dataclass(frozen=True)
class LeastLikely(BIM):
    """Iterative least-likely class (Kurakin, Goodfellow, Bengio 2017): BIM towards the class deemed least likely."""

    name: ClassVar[str] = "least-likely"
    goals: ClassVar[frozenset[str]] = frozenset({"untargeted"})

    def _run(self, target: Target, images: Tensor, goal: Goal, generator: torch.Generator) -> Tensor:
        scores = scores_of(target, images).scatter(1, goal.labels[:, None], torch.inf)
        return self._attempt(target, images, goal, [replace(goal, targets=scores.argmin(1))], generator)
