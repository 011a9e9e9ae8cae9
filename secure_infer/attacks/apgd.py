"""APGD: projected gradient descent that sets its own step; and its variant that tries one wrong class after another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from secure_infer.attacks.aims import likeliest
from secure_infer.attacks.base import Access, Bounds, Norm, Target
from secure_infer.attacks.goal import Goal
from secure_infer.attacks.losses import LOSSES, LossName, loss_of, scores_of
from secure_infer.attacks.norms import per_image, steepest, within
from secure_infer.attacks.restarts import Outcome, RestartedAttack, select
from secure_infer.attacks.scores import parts
from secure_infer.attacks.settings import require_settings

_MOMENTUM = 0.75
_RISING = 0.75


@dataclass(frozen=True)
class APGD(RestartedAttack):
    """Auto-PGD (Croce and Hein 2020): the step is halved, at set times, where the loss does not rise enough.

    Attributes:
        radius: Of the ball, in units of the inputs.
        norm: "linf" or "l2".
        steps: Gradients for each image and restart.
        restarts: Starts of each image.
        random_start: Start inside the ball at random, not at the image.
        loss: "cross-entropy", "margin" or "dlr", which needs three classes.
    """

    name: ClassVar[str] = "apgd"
    access: ClassVar[Access] = Access.WHITE_BOX
    norms: ClassVar[frozenset[Norm]] = frozenset({"l2", "linf"})
    goals: ClassVar[frozenset[str]] = frozenset({"untargeted", "targeted", "confidence"})

    radius: float = 8 / 255
    norm: Norm = "linf"
    steps: int = 100
    restarts: int = 1
    random_start: bool = True
    loss: LossName = "cross-entropy"

    def __post_init__(self) -> None:
        require_settings(self, "radius", "steps", "restarts", loss=LOSSES)

    def _walk(self, target: Target, images: Tensor, x: Tensor, goal: Goal, aim: Goal, outcome: Outcome) -> None:
        loss, rows = loss_of(self.loss, aim), torch.arange(len(x), device=x.device)
        logits, gradient = target.differentiate(x, loss)
        walk = _Walk.at(rows, images, goal, aim, x, gradient, loss(logits), 2 * self.radius)
        keep = outcome.settle(rows, x, goal.reached(logits))
        checks = dict(_checks(self.steps))
        for step in range(1, self.steps + 1):
            walk = walk if bool(keep.all()) else select(walk, keep)
            if not len(walk.rows):
                return
            x = self._ahead(walk, target.bounds, 1.0 if step == 1 else _MOMENTUM)
            loss = loss_of(self.loss, walk.aim)
            # The last place needs no gradient.
            logits, gradient = target.differentiate(x, loss) if step < self.steps else (scores_of(target, x), x)
            walk.move(x, loss(logits), gradient)
            keep = outcome.settle(walk.rows, x, walk.goal.reached(logits))
            if step in checks:
                walk.check(_RISING * checks[step])

    def _ahead(self, walk: _Walk, bounds: Bounds, momentum: float) -> Tensor:
        """The next place: a projected step, mixed with the last move (algorithm 1 of the paper)."""
        step = per_image(walk.length, walk.x) * steepest(walk.gradient, self.norm)
        ahead = within(walk.x + step, walk.images, self.norm, self.radius, bounds)
        mixed = walk.x + momentum * (ahead - walk.x) + (1 - momentum) * (walk.x - walk.before)
        return within(mixed, walk.images, self.norm, self.radius, bounds)


@dataclass(frozen=True)
class TargetedAPGD(APGD):
    """APGD-T (Croce and Hein 2020): APGD towards each of the likeliest wrong classes; any wrong class will do.

    What withstands the walk to the likeliest class is walked to all others at once.

    Attributes:
        loss: "dlr", "cross-entropy" or "margin".
        classes: How many wrong classes are tried.
    """

    name: ClassVar[str] = "apgd-t"
    goals: ClassVar[frozenset[str]] = frozenset({"untargeted"})

    loss: LossName = "dlr"
    classes: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        require_settings(self, "classes")

    def _run(self, target: Target, images: Tensor, goal: Goal, generator: torch.Generator) -> Tensor:
        wrong = likeliest(target, images, goal, self.classes)
        result, live = images.clone(), torch.arange(len(images), device=images.device)
        for first, last in ((0, 1), (1, wrong.shape[1])):
            for rows in parts(live, last - first, images[0]):
                part = goal.select(rows)
                sides = [replace(part, targets=column) for column in wrong[rows, first:last].unbind(1)]
                result[rows] = self._attempt(target, images[rows], part, sides, generator)
            live = live[~goal.select(live).reached(scores_of(target, result[live]))]
        return result


@dataclass
class _Walk:
    """The copies that are still walking.

    Attributes:
        rows, images, goal, aim: Their numbers, originals, and what counts and what is walked towards.
        x, before, gradient, value: Their place, the one before it, gradient and value of the loss there.
        best, best_gradient, best_value: The place of the greatest loss so far.
        length: Of their step, `(n,)`.
        rises: How often the loss rose since the last check.
        halved, checked: Whether the step was halved at the last check, and the greatest loss then.
    """

    rows: Tensor
    images: Tensor
    goal: Goal
    aim: Goal
    x: Tensor
    before: Tensor
    gradient: Tensor
    value: Tensor
    best: Tensor
    best_gradient: Tensor
    best_value: Tensor
    length: Tensor
    rises: Tensor
    halved: Tensor
    checked: Tensor

    @classmethod
    def at(
        cls,
        rows: Tensor,
        images: Tensor,
        goal: Goal,
        aim: Goal,
        x: Tensor,
        gradient: Tensor,
        value: Tensor,
        length: float,
    ) -> _Walk:
        """At the start."""
        lengths, halved = torch.full_like(value, length), torch.ones_like(rows, dtype=torch.bool)
        place = (x, x, gradient, value, x, gradient, value)
        return cls(rows, images, goal, aim, *place, lengths, torch.zeros_like(rows), halved, value)

    def move(self, x: Tensor, value: Tensor, gradient: Tensor) -> None:
        """Go to `x`, where the loss and its gradient are these."""
        self.rises = self.rises + (value > self.value)
        self.before, self.x, self.value, self.gradient = self.x, x, value, gradient
        better = value > self.best_value
        self.best_value = torch.where(better, value, self.best_value)
        self.best = torch.where(per_image(better, x), x, self.best)
        self.best_gradient = torch.where(per_image(better, x), gradient, self.best_gradient)

    def check(self, least: float) -> None:
        """Halve the step and return to the best place where the loss rose too rarely, or its maximum stands still."""
        still = ~self.halved & (self.best_value <= self.checked)
        self.halved = (self.rises <= least) | still
        self.length = torch.where(self.halved, self.length / 2, self.length)
        back = per_image(self.halved, self.x)
        self.x = torch.where(back, self.best, self.x)
        self.gradient = torch.where(back, self.best_gradient, self.gradient)
        self.checked, self.rises = self.best_value, torch.zeros_like(self.rises)


def _checks(steps: int) -> Iterator[tuple[int, int]]:
    """After which steps the progress is judged, and how many steps that is after the last time."""
    at, period = 0, max(1, int(0.22 * steps))
    while at + period <= steps:
        at += period
        yield at, period
        period = max(period - max(1, int(0.03 * steps)), 1, int(0.06 * steps))
