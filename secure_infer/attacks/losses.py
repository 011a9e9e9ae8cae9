"""Losses that an attack maximizes to reach a goal: cross-entropy, margin, difference of logits ratio."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from secure_infer.attacks.base import Access, Loss, Target
from secure_infer.attacks.goal import Goal
from secure_infer.errors import InvalidInput, Problem

LossName = Literal["cross-entropy", "margin", "dlr"]
LOSSES: tuple[str, ...] = get_args(LossName)


def scores_of(target: Target, x: Tensor) -> Tensor:
    """The target's logits, or log-probabilities, of a batch: one query an image, no gradient. `(n, classes)`.

    Raises:
        NotApplicable: The target gives labels alone.
    """
    scores = target.query(x).scores
    if scores is None:
        target.require(Access.PROBABILITIES, "a score")
        raise TypeError(f"The target {target.name} gives {target.access.name} access and answers without scores.")
    return scores


def loss_of(name: LossName, goal: Goal) -> Loss:
    """The loss that grows towards a goal, from logits `(n, classes)` to `(n,)`.

    Args:
        name: "cross-entropy"; "margin", the negative of the goal's; "dlr" (Croce and Hein 2020, equations 6 and 7),
            which does not change when the logits are shifted or scaled, and needs three classes.
        goal: What is aimed at.

    Raises (the loss):
        InvalidInput: "dlr" of fewer than three classes.
    """
    if name == "cross-entropy":
        return lambda logits: _cross_entropy(logits, goal)
    if name == "margin":
        return lambda logits: -goal.margin(logits)
    return lambda logits: _logit_ratio(logits, goal)


def _cross_entropy(logits: Tensor, goal: Goal) -> Tensor:
    if goal.targets is not None:
        return -torch.nn.functional.cross_entropy(logits, goal.targets, reduction="none")
    return torch.nn.functional.cross_entropy(logits, goal.labels, reduction="none")


def _logit_ratio(logits: Tensor, goal: Goal) -> Tensor:
    if logits.shape[1] < 3:
        raise InvalidInput(
            "The loss dlr compares three classes.",
            [Problem("loss", f"The model has {logits.shape[1]} classes.", 'use "margin" or "cross-entropy".')],
        )
    ordered = logits.sort(dim=1, descending=True).values
    true = logits.gather(1, goal.labels[:, None]).squeeze(1)
    if goal.targets is None:
        wrong = torch.where(true == ordered[:, 0], ordered[:, 1], ordered[:, 0])
        return (wrong - true) / (ordered[:, 0] - ordered[:, 2]).clamp_min(1e-12)
    target = logits.gather(1, goal.targets[:, None]).squeeze(1)
    return (target - true) / (ordered[:, 0] - ordered[:, 2:4].mean(1)).clamp_min(1e-12)
