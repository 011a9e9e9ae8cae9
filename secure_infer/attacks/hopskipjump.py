"""HopSkipJump: label-only descent along gradients of the boundary that are estimated from random probes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from secure_infer.attacks.frequency import LowFrequencies
from secure_infer.attacks.line import LabelAttack, Search, straight
from secure_infer.attacks.norms import TINY, per_image, size, steepest
from secure_infer.attacks.settings import require_settings

_HALVINGS = 20
_FIRST_REACH = 0.1
"""Of the first probes, in widths of the bounds, as in the paper: far away, only a larger scale shows the slope."""


@dataclass(frozen=True)
class HopSkipJump(LabelAttack):
    """HopSkipJump (Chen, Jordan, Wainwright 2020): boundary search, gradient of the boundary, geometric step.

    Attributes:
        probes: Of the first gradient; the `t`-th takes `probes * sqrt(t)`.
        most_probes: Of any gradient.
        parallel: Points of a boundary search in each call: fewer calls for more queries, for slow or distant targets.
    """

    name: ClassVar[str] = "hopskipjump"

    probes: int = 100
    most_probes: int = 10_000
    parallel: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_settings(self, "probes", "most_probes", "parallel")

    def _improve(self, search: Search, generator: torch.Generator) -> None:
        features = search.images[0].numel()
        tolerance = features ** (-1.5 if self.norm == "l2" else -2.0)
        at, step = search.best.clone(), 0
        while len(rows := search.live()):
            step += 1
            near = straight(search, at)
            position = search.bisect(rows, near, tolerance, self.parallel)
            at[rows] = near(rows, position[:, None]).squeeze(1)
            distance = size(at[rows] - search.images[rows], self.norm)
            reach = distance * tolerance * (math.sqrt(features) if self.norm == "l2" else features)
            if step == 1:
                reach = torch.full_like(distance, _FIRST_REACH * search.target.bounds.width)
            probes = min(int(self.probes * math.sqrt(step)), self.most_probes)
            direction = steepest(boundary_gradient(search, rows, at[rows], reach, probes, generator), self.norm)
            at[rows] = _jump(search, rows, at[rows], direction, distance / math.sqrt(step))


def boundary_gradient(
    search: Search,
    rows: Tensor,
    at: Tensor,
    reach: Tensor,
    probes: int,
    generator: torch.Generator,
    space: LowFrequencies | None = None,
) -> Tensor:
    """The direction into success at points of the boundary, from the labels of random points around them.

    The mean of probes weighted by their answers less the mean answer (Chen et al. 2020, equation 16); where all answers
    agree, the mean probe.

    Args:
        search: Whose images these are.
        rows: Which, `(m,)`.
        at: Points of the boundary, `(m, *shape)`.
        reach: Euclidean distance of the probes, `(m,)`.
        probes: How many.
        generator: Of the probes.
        space: Where the probes lie; None for anywhere.

    Returns:
        Directions of any length, `(m, *shape)`.
    """
    per_call = max(1, search.at_once() // probes)
    parts = torch.split(torch.arange(len(rows), device=rows.device), per_call)
    return torch.cat([_one_gradient(search, rows[p], at[p], reach[p], probes, generator, space) for p in parts])


def _one_gradient(
    search: Search,
    rows: Tensor,
    at: Tensor,
    reach: Tensor,
    probes: int,
    generator: torch.Generator,
    space: LowFrequencies | None,
) -> Tensor:
    probes = max(1, min(probes, int((search.queries - search.spent[rows]).amax())))
    shape = at.shape[1:] if space is None else space.shape
    noise = torch.randn((len(rows) * probes, *shape), generator=generator, device=at.device, dtype=at.dtype)
    points = (noise if space is None else space.synthesize(noise)).view(len(rows), probes, -1)
    points *= (reach[:, None] / points.norm(dim=2).clamp_min(TINY))[:, :, None]
    points += at.flatten(1)[:, None]
    points.clamp_(search.target.bounds.low, search.target.bounds.high)
    reached = search.reaches(rows, points.view(len(rows), probes, *at.shape[1:]), remember=False)
    signs = 2.0 * reached.to(at.dtype) - 1
    mean = signs.mean(1, keepdim=True)
    weights = torch.where(mean.abs() == 1, mean, signs - mean)
    moved = torch.einsum("mk,mkd->md", weights, points) - weights.sum(1, keepdim=True) * at.flatten(1)
    return moved.view_as(at)


def _jump(search: Search, rows: Tensor, at: Tensor, direction: Tensor, length: Tensor) -> Tensor:
    """Points that reach the goal, as far along the direction as halving the length needs; `at` where none does."""
    found, todo = at.clone(), torch.arange(len(rows), device=rows.device)
    for _ in range(_HALVINGS):
        points = search.target.bounds.clamp(at[todo] + per_image(length[todo], at) * direction[todo])
        reached = search.reaches(rows[todo], points[:, None]).squeeze(1)
        found[todo[reached]] = points[reached]
        todo = todo[~reached]
        length = length / 2
        if not len(todo):
            break
    return found
