"""BP: cross the decision boundary once, then walk along it towards the image, on ever closer spheres."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from secure_infer.attacks.base import Access, Loss, Norm, Target
from secure_infer.attacks.goal import Goal
from secure_infer.attacks.losses import LOSSES, LossName, loss_of, scores_of
from secure_infer.attacks.minimal import Closest, MinimalAttack, direction, fallback
from secure_infer.attacks.norms import per_image, size, unit
from secure_infer.attacks.settings import require_settings

_CROSSING = 1.02
_LEAST_STEP = 1e-3
_TINY = 1e-12


@dataclass(frozen=True)
class BoundaryProjection(MinimalAttack):
    """Boundary projection (Zhang, Avrithis, Furon, Amsaleg 2020), "Walking on the Edge", without quantization.

    Until its first success a point takes Newton steps on the margin along the gradient. From then on, with `g` the
    unit gradient, `d` the distance to the image and `c` a factor that grows to 1: a success moves within the plane
    across `g` to the distance `c d`, or to the foot of the plane if that is farther; a failure moves along `g` to
    the distance `d / c`.

    Attributes:
        steps: Gradients for each image.
        factor: The first `c`, between 0 and 1.
        loss: Whose gradient is walked along: "cross-entropy", "margin" or "dlr".
    """

    name: ClassVar[str] = "bp"
    access: ClassVar[Access] = Access.WHITE_BOX
    norms: ClassVar[frozenset[Norm]] = frozenset({"l2"})
    goals: ClassVar[frozenset[str]] = frozenset({"untargeted", "targeted", "confidence"})

    steps: int = 50
    factor: float = 0.7
    loss: LossName = "cross-entropy"

    def __post_init__(self) -> None:
        require_settings(self, "steps", "factor", loss=LOSSES)

    def _search(self, target: Target, images: Tensor, goal: Goal, generator: torch.Generator) -> Tensor:
        closest, otherwise = Closest(images, "l2"), fallback(images, generator)
        walking = loss_of(self.loss, goal)
        x = images
        for step in range(self.steps):
            crossed = closest.distance.isfinite()
            logits, gradient = target.differentiate(x, _chosen(crossed, walking, goal))
            success, g = goal.reached(logits), direction(gradient, otherwise)
            distance = closest.offer(x, success)
            factor = self.factor + (1 - self.factor) * step / self.steps
            along = ((x - images) * g).flatten(1).sum(1)
            outward = ((distance / factor) ** 2 - distance**2 + along**2).clamp_min(0).sqrt() - along
            newton = _CROSSING * goal.margin(logits) / size(gradient, "l2").clamp_min(_TINY) + _LEAST_STEP
            outward = torch.where(crossed, outward, newton)
            inward = _on_sphere(x, images, g, along, factor * distance)
            x = torch.where(per_image(success, x), inward, x + per_image(outward, x) * g)
            x = target.bounds.clamp(x)
        closest.offer(x, goal.reached(scores_of(target, x)))
        return closest.found


def _chosen(crossed: Tensor, walking: Loss, goal: Goal) -> Loss:
    """The loss of the walk for images that have crossed the boundary, the margin for those that have not."""
    return lambda logits: torch.where(crossed, walking(logits), -goal.margin(logits))


def _on_sphere(x: Tensor, images: Tensor, g: Tensor, along: Tensor, radius: Tensor) -> Tensor:
    """The point in the plane through `x` across `g` that is nearest to `x` at a distance from the image."""
    foot = images + per_image(along, x) * g
    return foot + per_image((radius**2 - along**2).clamp_min(0).sqrt(), x) * unit(x - foot)
