"""AutoAttack: four attacks of different kinds in turn, each on what the others left standing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from secure_infer.attacks.apgd import APGD, TargetedAPGD
from secure_infer.attacks.base import Access, Attack, Norm, Target
from secure_infer.attacks.fab import FAB
from secure_infer.attacks.goal import Goal
from secure_infer.attacks.losses import scores_of
from secure_infer.attacks.norms import size
from secure_infer.attacks.settings import require_settings
from secure_infer.attacks.square import Square

_ROUNDING = 1e-6


@dataclass(frozen=True)
class AutoAttack(Attack):
    """The standard ensemble of Croce and Hein (2020): APGD with cross-entropy, APGD-T, FAB-T and Square.

    Attributes:
        radius: Of the ball, in units of the inputs.
        norm: "linf" or "l2".
        steps: Gradients for each image in each run of the first three.
        classes: Wrong classes that APGD-T and FAB-T try.
        queries: For each image in Square.
    """

    name: ClassVar[str] = "autoattack"
    access: ClassVar[Access] = Access.WHITE_BOX
    norms: ClassVar[frozenset[Norm]] = frozenset({"l2", "linf"})
    goals: ClassVar[frozenset[str]] = frozenset({"untargeted"})
    minimal: ClassVar[bool] = False

    radius: float = 8 / 255
    norm: Norm = "linf"
    steps: int = 100
    classes: int = 9
    queries: int = 5000

    def __post_init__(self) -> None:
        require_settings(self, "radius", "steps", "classes", "queries")

    def _run(self, target: Target, images: Tensor, goal: Goal, generator: torch.Generator) -> Tensor:
        result = images.clone()
        live = (~goal.reached(scores_of(target, images))).nonzero().squeeze(1)
        for attack in self._turns(target.classes):
            if not len(live):
                break
            seed = int(torch.randint(2**31, (1,), generator=generator, device=images.device))
            found = attack(target, images[live], goal.select(live), seed=seed)
            near = size(found - images[live], self.norm) <= self.radius * (1 + _ROUNDING)
            result[live[near]] = found[near]
            live = live[~(near & goal.select(live).reached(scores_of(target, found)))]
        return result

    def _turns(self, classes: int) -> Iterator[Attack]:
        """The attacks in order; a later one is made only when it is needed."""
        yield APGD(self.radius, self.norm, self.steps)
        if classes > 2:
            yield TargetedAPGD(self.radius, self.norm, self.steps, classes=self.classes)
        yield FAB(self.norm, self.steps, classes=self.classes)
        yield Square(self.radius, self.norm, self.queries)
