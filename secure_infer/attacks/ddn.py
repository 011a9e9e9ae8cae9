"""DDN: the direction of the gradient and the length of the disturbance are adapted apart from each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from secure_infer.attacks.base import Access, Norm, Target
from secure_infer.attacks.goal import Goal
from secure_infer.attacks.losses import LOSSES, LossName, loss_of, scores_of
from secure_infer.attacks.minimal import Closest, MinimalAttack, annealed, fallback, moved
from secure_infer.attacks.norms import TINY, per_image, size
from secure_infer.attacks.settings import require_settings


@dataclass(frozen=True)
class DDN(MinimalAttack):
    """Decoupled direction and norm (Rony et al. 2019): the ball shrinks after a success and grows after a failure.

    Attributes:
        steps: Points visited for each image, itself the first; a gradient is taken at all but the last.
        start: First radius, in units of the inputs.
        factor: By which share the radius changes in a step, between 0 and 1.
        loss: "cross-entropy", "margin" or "dlr".
    """

    name: ClassVar[str] = "ddn"
    access: ClassVar[Access] = Access.WHITE_BOX
    norms: ClassVar[frozenset[Norm]] = frozenset({"l2"})
    goals: ClassVar[frozenset[str]] = frozenset({"untargeted", "targeted", "confidence"})

    steps: int = 100
    start: float = 1.0
    factor: float = 0.05
    loss: LossName = "cross-entropy"

    def __post_init__(self) -> None:
        require_settings(self, "steps", "start", "factor", loss=LOSSES)

    def _run(self, target: Target, images: Tensor, goal: Goal, generator: torch.Generator) -> Tensor:
        # The first point is the image itself: no need to ask for it before.
        return self._search(target, images, goal, generator)

    def _search(self, target: Target, images: Tensor, goal: Goal, generator: torch.Generator) -> Tensor:
        closest, otherwise, loss = Closest(images, "l2"), fallback(images, generator), loss_of(self.loss, goal)
        radius = images.new_full((len(images),), self.start)
        x, delta = images, torch.zeros_like(images)
        for step in range(self.steps - 1):
            logits, gradient = target.differentiate(x, loss)
            success = goal.reached(logits)
            closest.offer(x, success, delta=delta)
            radius = radius * torch.where(success, 1 - self.factor, 1 + self.factor)
            delta = moved(delta, gradient, otherwise, annealed(step, self.steps, 1.0, 0.01))
            scale = radius / size(delta, "l2").clamp_min(TINY)
            x = torch.addcmul(images, delta, per_image(scale, delta)).clamp_(target.bounds.low, target.bounds.high)
            delta = x - images
        closest.offer(x, goal.reached(scores_of(target, x)), delta=delta)
        return closest.found
