"""GeoDA: label-only steps from the image itself along the normals of its boundary, for boundaries of low curvature."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from secure_infer.attacks.frequency import LowFrequencies
from secure_infer.attacks.hopskipjump import boundary_gradient
from secure_infer.attacks.line import LabelAttack, Search, straight
from secure_infer.attacks.norms import per_image, size, steepest
from secure_infer.attacks.settings import require_settings

_TOLERANCE = 1 / 256
_LENGTHS = (1.0, 1.3, 1.7)
"""Tried along a normal, in distances of the nearest success; the bounds may take away more than the rest."""


@dataclass(frozen=True)
class GeoDA(LabelAttack):
    """GeoDA (Rahmati, Moosavi-Dezfooli, Frossard, Dai 2020).

    Attributes:
        probes: Of the first normal.
        growth: By which factor each normal takes more; the paper's best split is `0.6 ** (-2 / 3)`.
        reach: Distance of the probes from the boundary, in distances of the nearest success.
        frequencies: Share of the spatial frequencies, along each side of an image, that probes are made of at most;
            no more than there are probes, as a normal in more dimensions is mostly guessed.
    """

    name: ClassVar[str] = "geoda"

    probes: int = 60
    growth: float = 0.6 ** (-2 / 3)
    reach: float = 0.1
    frequencies: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require_settings(self, "probes", "growth", "reach", "frequencies")

    def _improve(self, search: Search, generator: torch.Generator) -> None:
        probes, features = float(self.probes), search.images[0].numel()
        _approach(search, search.live(), search.best.clone())
        while len(rows := search.live()):
            reach = self.reach * size(search.best[rows] - search.images[rows], "l2")
            at = search.best[rows]
            space = LowFrequencies(search.images, min(self.frequencies, math.sqrt(probes / features)))
            normal = boundary_gradient(search, rows, at, reach, int(probes), generator, space)
            self._follow(search, rows, steepest(normal, self.norm))
            probes *= self.growth

    def _follow(self, search: Search, rows: Tensor, direction: Tensor) -> None:
        """Seek the boundary from the images along directions of size 1, `(m, *shape)`."""
        far = search.images.clone()
        for length in _LENGTHS:
            step = per_image(length * search.distance[rows], direction) * direction
            points = search.target.bounds.clamp(search.images[rows] + step)
            reached = search.reaches(rows, points[:, None]).squeeze(1)
            far[rows[reached]] = points[reached]
            _approach(search, rows[reached], far)
            rows, direction = rows[~reached], direction[~reached]
            if not len(rows):
                break


def _approach(search: Search, rows: Tensor, far: Tensor) -> None:
    search.bisect(rows, straight(search, far), _TOLERANCE)
