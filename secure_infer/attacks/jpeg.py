"""JPEG compression as a baseline: what a model loses to a disturbance that every image meets on its way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from secure_infer.attacks.base import Access, Attack, Norm, Target
from secure_infer.attacks.dct import jpeg
from secure_infer.attacks.goal import Goal
from secure_infer.attacks.noise import unreached
from secure_infer.attacks.settings import require_settings
from secure_infer.errors import NotApplicable, Problem, UsageError


@dataclass(frozen=True)
class Jpeg(Attack):
    """The mildest JPEG compression that changes the answer: qualities are tried from the highest to the lowest.

    Attributes:
        qualities: To try, falling, each 1 to 100.
        subsample: Halve both sides of the chrominances (4:2:0).
    """

    qualities: tuple[int, ...] = (95, 90, 85, 80, 75, 70, 65, 60, 55, 50, 45, 40, 35, 30, 25, 20, 15, 10, 7, 5, 3, 1)
    subsample: bool = True

    name: ClassVar[str] = "jpeg"
    access: ClassVar[Access] = Access.LABEL
    norms: ClassVar[frozenset[Norm]] = frozenset({"l2"})
    goals: ClassVar[frozenset[str]] = frozenset({"untargeted", "targeted"})
    minimal: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_settings(self)
        given = list(self.qualities) if isinstance(self.qualities, Sequence) else []
        whole = given and all(isinstance(quality, int) for quality in given)
        if not whole or given != sorted(given, reverse=True) or not (given[-1] >= 1 and given[0] <= 100):
            raise UsageError(
                "The attack jpeg can't be made so.",
                [Problem("qualities", f"{self.qualities}.", "give falling numbers from 100 to 1.")],
            )

    def check(self, target: Target, images: Tensor, goal: Goal) -> None:
        """Refuse also what is no image; see the base class."""
        super().check(target, images, goal)
        if len(target.shape) != 3 or target.shape[0] not in (1, 3):
            raise NotApplicable(
                "JPEG compresses gray or color images alone.",
                [Problem(target.name, f"Inputs of shape {target.shape}.", "use noise as the baseline.")],
            )

    def _run(self, target: Target, images: Tensor, goal: Goal, generator: torch.Generator) -> Tensor:
        low, width = target.bounds.low, target.bounds.width
        found, open_ = images.clone(), unreached(target, images, goal)
        for quality in self.qualities:
            if not len(open_):
                break
            compressed = jpeg((images[open_] - low) / width, quality, subsample=self.subsample) * width + low
            compressed = target.bounds.clamp(compressed)
            hit = goal.select(open_).reached_by_labels(target.query(compressed).labels)
            found[open_[hit]], open_ = compressed[hit], open_[~hit]
        return found
