"""What gradient attacks within a radius share: random starts as one batch, which a fooled image leaves."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from secure_infer.attacks.base import Attack, Norm, Target
from secure_infer.attacks.goal import Goal
from secure_infer.attacks.norms import random_disturbance

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

State = TypeVar("State", bound="DataclassInstance")


def select(state: State, keep: Tensor) -> State:
    """A dataclass of tensors and goals, one entry an image, for the images kept (a mask)."""
    values = {field.name: getattr(state, field.name) for field in fields(state)}
    kept = {name: old.select(keep) if isinstance(old, Goal) else old[keep] for name, old in values.items()}
    return replace(state, **kept)


class Outcome:
    """Where the copies of each image end; the first success of an image ends all its copies.

    Args:
        x: The starts, `(restarts * n, *shape)`: all images, then all again.
        count: How many images there are, `n`.
    """

    def __init__(self, x: Tensor, count: int) -> None:
        self._found, self._count = x.clone(), count
        self._success = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    def settle(self, rows: Tensor, x: Tensor, success: Tensor) -> Tensor:
        """Note where some copies stand and which succeed; the mask of those whose image is not fooled yet."""
        self._found[rows], self._success[rows] = x, success
        fooled = self._success.view(-1, self._count).any(0)
        return ~fooled[rows % self._count]

    def best(self) -> Tensor:
        """For each image its first success, else its last copy. `(n, *shape)`."""
        success = self._success.view(-1, self._count)
        last = torch.full_like(success[0], len(success) - 1, dtype=torch.int64)
        chosen = torch.where(success.any(0), success.to(torch.uint8).argmax(0), last)
        return self._found[chosen * self._count + torch.arange(self._count, device=chosen.device)]


class RestartedAttack(Attack):
    """An attack within a radius that walks from one start or several.

    Attributes:
        radius: Of the ball, in units of the inputs.
        norm: Of the ball.
        restarts: Starts of each image.
        random_start: Start inside the ball at random, not at the image.
    """

    minimal = False
    radius: float
    norm: Norm
    restarts: int
    random_start: bool

    def _run(self, target: Target, images: Tensor, goal: Goal, generator: torch.Generator) -> Tensor:
        return self._attempt(target, images, goal, [goal], generator)

    def _attempt(
        self, target: Target, images: Tensor, goal: Goal, aims: Sequence[Goal], generator: torch.Generator
    ) -> Tensor:
        """Disturb images until `goal` is reached; for each aim, as often as there are restarts, a copy walks there."""
        times = self.restarts * len(aims)
        copies = images.repeat(times, *(1,) * (images.ndim - 1))
        x = copies
        if self.random_start:
            x = target.bounds.clamp(x + random_disturbance(x, self.norm, self.radius, generator))
        outcome = Outcome(x, len(images))
        self._walk(target, copies, x, goal.repeat(times), Goal.joined(aims).repeat(self.restarts), outcome)
        return outcome.best()

    @abc.abstractmethod
    def _walk(self, target: Target, images: Tensor, x: Tensor, goal: Goal, aim: Goal, outcome: Outcome) -> None:
        """Walk from `x`, and settle every copy."""
