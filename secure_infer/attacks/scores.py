"""What score-based attacks share: the margins of many points of each image, asked in calls of bounded size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from secure_infer.attacks.base import Target
from secure_infer.attacks.goal import Goal
from secure_infer.attacks.losses import scores_of
from secure_infer.errors import LimitExceeded, Problem

_AT_ONCE = 1 << 20
"""Most values in the points of one call, so that they stay in a processor's cache."""


def margins(target: Target, points: Tensor, goal: Goal) -> Tensor:
    """How far points are from success: negative ones reach the goal.

    Args:
        target: What is asked, a query a point.
        points: `k` for each image, `(m, k, *shape)`.
        goal: Of the `m` images.

    Returns:
        Shape `(m, k)`.
    """
    flat = points.flatten(0, 1)
    scores = [scores_of(target, part) for part in torch.split(flat, points_at_once(points[0, 0]))]
    rows = torch.arange(len(points), device=points.device).repeat_interleave(points.shape[1])
    return goal.select(rows).margin(torch.cat(scores)).view(points.shape[:2])


def points_at_once(image: Tensor) -> int:
    """Points of this size that one call may hold."""
    return max(1, _AT_ONCE // image.numel())


def parts(rows: Tensor, copies: int, image: Tensor) -> Sequence[Tensor]:
    """Rows cut so that one call holds `copies` of the images of a part, which are of this size; none of no copies."""
    return torch.split(rows, max(1, points_at_once(image) // copies)) if copies and len(rows) else ()


def affordable(target: Target, images: int, queries: int) -> int:
    """The budget of each image: a budget of the target itself is divided among them.

    Raises:
        LimitExceeded: It does not allow one query an image.
    """
    if target.meter.budget is None:
        return queries
    left = target.meter.budget - target.meter.queries
    if left < images:
        raise LimitExceeded(
            "The target's query budget does not allow one query an image.",
            [Problem("target", f"{left} left for {images} images.", "attack fewer images, or raise the budget.")],
        )
    return min(queries, left // images)
