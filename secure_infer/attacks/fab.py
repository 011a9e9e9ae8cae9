"""FAB: steps onto the linearized boundary that stay close to the image, between the point and the image itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from secure_infer.attacks.aims import aims
from secure_infer.attacks.base import Access, Norm, Target
from secure_infer.attacks.goal import Goal
from secure_infer.attacks.losses import scores_of
from secure_infer.attacks.minimal import Closest, MinimalAttack
from secure_infer.attacks.norms import onto_plane, per_image, size
from secure_infer.attacks.scores import parts
from secure_infer.attacks.settings import require_settings

_TINY = 1e-12


@dataclass(frozen=True)
class FAB(MinimalAttack):
    """Fast adaptive boundary attack (Croce and Hein 2020), towards each of the likeliest wrong classes (FAB-T).

    Attributes:
        norm: "linf" or "l2".
        steps: Gradients for each image, class and restart.
        classes: Wrong classes that are tried, all at once, each from the image.
        bias: Greatest weight of the image in a step, between 0 and 1.
        overshoot: Share by which each step to the boundary is lengthened.
        backward: Share of the disturbance that is kept after a success, between 0 and 1.
    """

    name: ClassVar[str] = "fab"
    access: ClassVar[Access] = Access.WHITE_BOX
    norms: ClassVar[frozenset[Norm]] = frozenset({"l2", "linf"})
    goals: ClassVar[frozenset[str]] = frozenset({"untargeted", "targeted", "confidence"})

    norm: Norm = "linf"
    steps: int = 100
    classes: int = 9
    bias: float = 0.1
    overshoot: float = 0.05
    backward: float = 0.9

    def __post_init__(self) -> None:
        require_settings(self, "steps", "classes", "bias", "overshoot", "backward")

    def _search(self, target: Target, images: Tensor, goal: Goal, generator: torch.Generator) -> Tensor:
        result = images.clone()
        for rows in parts(torch.arange(len(images), device=images.device), self.classes, images[0]):
            part, some = goal.select(rows), images[rows]
            sides = aims(target, some, part, self.classes)
            copies = some.repeat(len(sides), *(1,) * (images.ndim - 1))
            closest = self._follow(target, copies, part.repeat(len(sides)), Goal.joined(sides))
            result[rows] = closest.nearest(len(rows))
        return result

    def _follow(self, target: Target, images: Tensor, goal: Goal, aim: Goal) -> Closest:
        closest, x, bounds = Closest(images, self.norm), images, target.bounds
        for _ in range(self.steps):
            logits, normal = target.differentiate(x, aim.margin)
            success = goal.reached(logits)
            closest.offer(x, success)
            back = torch.lerp(images, x, self.backward)
            margin = aim.margin(logits)
            start = torch.where(per_image(success, x), back, x)
            to_plane = margin + (normal * (start - x)).flatten(1).sum(1)
            from_image = margin + (normal * (images - x)).flatten(1).sum(1)
            near = onto_plane(start, normal, to_plane, self.norm, bounds)
            far = onto_plane(images, normal, from_image, self.norm, bounds)
            sizes = size(near, self.norm), size(far, self.norm)
            weight = per_image((sizes[0] / (sizes[0] + sizes[1]).clamp_min(_TINY)).clamp_max(self.bias), x)
            longer = 1 + self.overshoot
            x = bounds.clamp((1 - weight) * (start + longer * near) + weight * (images + longer * far))
        closest.offer(x, goal.reached(scores_of(target, x)))
        return closest
