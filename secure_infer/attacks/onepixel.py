"""One pixel: differential evolution of places and colors, score-based; the populations of all images move as one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from secure_infer.attacks.base import Access, Attack, Norm, Target
from secure_infer.attacks.goal import Goal
from secure_infer.attacks.scores import affordable, margins, points_at_once
from secure_infer.attacks.settings import require_settings


@dataclass(frozen=True)
class OnePixel(Attack):
    """One-pixel attack (Su, Vargas, Sakurai 2019): DE/rand/1 without crossover; a fooled image leaves the batch.

    A pixel is one value of each channel; of a flat input, one feature. Each of the population changes as many pixels,
    whose values never equal the image's own, so that what comes back always differs in that many (places may coincide
    if there are several).

    Attributes:
        radius: Pixels to change.
        queries: Allowed for each image.
        population: Candidates of each image.
        weight: Of the difference of two candidates that is added to a third one.
    """

    name: ClassVar[str] = "one-pixel"
    access: ClassVar[Access] = Access.PROBABILITIES
    norms: ClassVar[frozenset[Norm]] = frozenset({"l0"})
    goals: ClassVar[frozenset[str]] = frozenset({"untargeted", "targeted", "confidence"})
    minimal: ClassVar[bool] = False

    radius: int = 1
    queries: int = 2000
    population: int = 100
    weight: float = 0.5

    def __post_init__(self) -> None:
        require_settings(self, "radius", "queries", "population", "weight")

    def _run(self, target: Target, images: Tensor, goal: Goal, generator: torch.Generator) -> Tensor:
        queries = affordable(target, len(images), self.queries)
        size = min(self.population, queries)
        genes = self.radius * (2 + _planes(images)[1])
        pool = torch.rand((len(images), size, genes), generator=generator, device=images.device).to(images.dtype)
        worth = self._worth(target, images, pool, goal)
        live = torch.arange(len(images), device=images.device)
        for _ in range(queries // size - 1):
            live = live[worth[live].amin(1) >= 0]
            if not len(live) or size < 4:
                break
            children = self._children(pool[live], generator)
            found = self._worth(target, images[live], children, goal.select(live))
            better = found < worth[live]
            pool[live] = torch.where(better[:, :, None], children, pool[live])
            worth[live] = torch.minimum(found, worth[live])
        best = pool[torch.arange(len(images), device=images.device), worth.argmin(1)]
        return self._painted(target, images, best[:, None]).squeeze(1)

    def _children(self, pool: Tensor, generator: torch.Generator) -> Tensor:
        """One for each candidate, from three others of its image; genes that leave [0, 1] are drawn anew."""
        order = torch.rand(pool.shape[:2], generator=generator, device=pool.device).argsort(1)
        shifts = (order.roll(shift, 1)[:, :, None].expand(pool.shape) for shift in (1, 2, 3))
        first, second, third = (pool.gather(1, index) for index in shifts)
        children = torch.empty_like(pool).scatter(
            1, order[:, :, None].expand(pool.shape), first + self.weight * (second - third)
        )
        fresh = torch.rand(pool.shape, generator=generator, device=pool.device).to(pool.dtype)
        return torch.where((children < 0) | (children > 1), fresh, children)

    def _worth(self, target: Target, images: Tensor, pool: Tensor, goal: Goal) -> Tensor:
        """Margins of candidates, `(m, k)`."""
        rows = torch.arange(len(images), device=images.device)
        parts = torch.split(rows, max(1, points_at_once(images[0]) // pool.shape[1]))
        return torch.cat([margins(target, self._painted(target, images[p], pool[p]), goal.select(p)) for p in parts])

    def _painted(self, target: Target, images: Tensor, pool: Tensor) -> Tensor:
        """The images `(m, k, *shape)` that candidates `(m, k, genes)` stand for."""
        n, channels, height, width = _planes(images)
        spots = pool.view(*pool.shape[:2], self.radius, -1)
        row = (spots[..., 0] * height).long().clamp_max(height - 1)
        column = (spots[..., 1] * width).long().clamp_max(width - 1)
        place = (row * width + column)[:, :, None].expand(-1, -1, channels, -1)
        canvas = images.reshape(n, 1, channels, height * width).expand(-1, pool.shape[1], -1, -1)
        bounds = target.bounds
        color = bounds.low + bounds.width * spots[..., 2:].transpose(2, 3)
        # The image's own value is replaced by the bound that is farther off: a candidate that changes nothing is none.
        own = canvas.gather(3, place)
        middle = (bounds.low + bounds.high) / 2
        color = torch.where(color == own, torch.where(own < middle, bounds.high, bounds.low).to(color), color)
        return canvas.scatter(3, place, color).reshape(n, pool.shape[1], *images.shape[1:])


def _planes(images: Tensor) -> tuple[int, int, int, int]:
    """Images, channels, height and width of a batch; a flat input is one row."""
    height, width = (1, *images.shape[1:])[-2:]
    return len(images), math.prod(images.shape[1:-2]), height, width
