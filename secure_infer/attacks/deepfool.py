"""DeepFool and SuperDeepFool: step onto the nearest of the linearized boundaries, again and again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from secure_infer.attacks.aims import aims, likeliest
from secure_infer.attacks.base import Access, Norm, Target
from secure_infer.attacks.goal import Goal
from secure_infer.attacks.losses import scores_of
from secure_infer.attacks.minimal import Closest, MinimalAttack
from secure_infer.attacks.norms import dual_size, onto_plane, per_image, towards_plane
from secure_infer.attacks.settings import require_settings

_BEYOND = 1e-4
_NORMS: frozenset[Norm] = frozenset({"l2", "linf"})
_GOALS = frozenset({"untargeted", "targeted", "confidence"})


@dataclass(frozen=True)
class DeepFool(MinimalAttack):
    """DeepFool (Moosavi-Dezfooli, Fawzi, Frossard 2016).

    A step reaches the linearized boundary but for what the bounds cut off: steps that make up for it end farther away.

    Attributes:
        norm: "l2" or "linf".
        steps: Linearizations for each image.
        candidates: Wrong classes whose boundaries are compared, the likeliest ones; one gradient each.
        overshoot: Share by which each step to the boundary is lengthened.
    """

    name: ClassVar[str] = "deepfool"
    access: ClassVar[Access] = Access.WHITE_BOX
    norms: ClassVar[frozenset[Norm]] = _NORMS
    goals: ClassVar[frozenset[str]] = _GOALS

    norm: Norm = "l2"
    steps: int = 50
    candidates: int = 9
    overshoot: float = 0.02

    def __post_init__(self) -> None:
        require_settings(self, "steps", "candidates", "overshoot")

    def _search(self, target: Target, images: Tensor, goal: Goal, generator: torch.Generator) -> Tensor:
        closest, rows, x = Closest(images, self.norm), torch.arange(len(images), device=images.device), images
        wrong = likeliest(target, images, goal, self.candidates)
        classes = torch.cat([goal.labels[:, None], wrong], 1)
        for _ in range(self.steps):
            logits, margin, normal = _nearest_boundary(target, x, goal, classes, self.norm)
            closest.offer(x, done := goal.reached(logits), rows)
            keep, goal = ~done, goal.select(~done)
            rows, x, classes, margin, normal = (each[keep] for each in (rows, x, classes, margin, normal))
            if not len(rows):
                return closest.found
            step = towards_plane(normal, margin.clamp_min(0) + _BEYOND, self.norm)
            x = target.bounds.clamp(x + (1 + self.overshoot) * step)
        closest.offer(x, goal.reached(scores_of(target, x)), rows)
        return closest.found


@dataclass(frozen=True)
class SuperDeepFool(MinimalAttack):
    """SuperDeepFool (Abdollahpour, Mahdavi, Moosavi-Dezfooli 2024): DeepFool, then the foot of its boundary's normal.

    A point before the boundary steps onto it; one behind is replaced by the point of the boundary's tangent that is
    nearest to the image. Each costs one gradient, as only the best wrong class is looked at. The ways to several
    classes run side by side.

    Attributes:
        norm: "l2" or "linf".
        steps: Gradients for each image and class.
        classes: Wrong classes, the likeliest ones, whose boundaries are followed; 1 follows the best at each point.
        overshoot: Share by which each step to the boundary is lengthened.
    """

    name: ClassVar[str] = "superdeepfool"
    access: ClassVar[Access] = Access.WHITE_BOX
    norms: ClassVar[frozenset[Norm]] = _NORMS
    goals: ClassVar[frozenset[str]] = _GOALS

    norm: Norm = "l2"
    steps: int = 10
    classes: int = 2
    overshoot: float = 0.02

    def __post_init__(self) -> None:
        require_settings(self, "steps", "classes", "overshoot")

    def _search(self, target: Target, images: Tensor, goal: Goal, generator: torch.Generator) -> Tensor:
        sides = aims(target, images, goal, self.classes)
        copies = images.repeat(len(sides), *(1,) * (images.ndim - 1))
        return self._follow(target, copies, Goal.joined(sides)).nearest(len(images))

    def _follow(self, target: Target, images: Tensor, goal: Goal) -> Closest:
        closest, x = Closest(images, self.norm), images
        for _ in range(self.steps):
            logits, normal = target.differentiate(x, goal.margin)
            success, margin = goal.reached(logits), goal.margin(logits).clamp_min(0) + _BEYOND
            closest.offer(x, success)
            # Before the boundary: onto it from here. Behind it: from the image onto the plane through here.
            origin = torch.where(per_image(success, x), images, x)
            margin = torch.where(success, (normal * (images - x)).flatten(1).sum(1), margin)
            length = torch.where(success, 1.0, 1 + self.overshoot)
            step = onto_plane(origin, normal, margin, self.norm, target.bounds)
            x = target.bounds.clamp(origin + per_image(length, x) * step)
        closest.offer(x, goal.reached(scores_of(target, x)))
        return closest


def _nearest_boundary(
    target: Target, x: Tensor, goal: Goal, classes: Tensor, norm: Norm
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, and margin and gradient of the boundary that a linear network would have nearest to `x`."""
    if goal.kind != "untargeted":
        logits, normal = target.differentiate(x, goal.margin)
        return logits, goal.margin(logits), normal
    logits, gradients = target.jacobian(x, classes)
    values = logits.gather(1, classes)
    margins, normals = values[:, :1] - values[:, 1:], gradients[:, :1] - gradients[:, 1:]
    slopes = dual_size(normals.flatten(0, 1), norm).view_as(margins)
    nearest = (margins.abs() / slopes.clamp_min(1e-12)).argmin(1)
    rows = torch.arange(len(x), device=x.device)
    return logits, margins[rows, nearest], normals[rows, nearest]
