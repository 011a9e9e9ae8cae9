"""Which wrong classes an attack without a target tries: the likeliest ones."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from secure_infer.attacks.base import Target
from secure_infer.attacks.goal import Goal
from secure_infer.attacks.losses import scores_of


def likeliest(target: Target, images: Tensor, goal: Goal, number: int) -> Tensor:
    """The likeliest wrong classes of each image, in falling order: one query each.

    Args:
        target: Asked for scores.
        images: Shape `(n, *shape)`.
        goal: Knows the true classes.
        number: How many are wanted.

    Returns:
        Classes, int64, `(n, number)`, or fewer columns where there are not so many.
    """
    scores = scores_of(target, images).scatter(1, goal.labels[:, None], -torch.inf)
    return scores.topk(min(number, target.classes - 1), 1).indices


def aims(target: Target, images: Tensor, goal: Goal, number: int) -> list[Goal]:
    """The goals by which a goal without a target is tried, one wrong class after the other; any other goal is itself.

    Args:
        target: Asked for scores, one query an image, where there is a choice.
        images: Shape `(n, *shape)`.
        goal: What counts as success.
        number: Wrong classes wanted; 1 leaves the choice to the margin, at each place anew.
    """
    if goal.kind != "untargeted" or number == 1:
        return [goal]
    return [replace(goal, targets=classes) for classes in likeliest(target, images, goal, number).unbind(1)]
