"""SurFree: label-only descent without any estimate of a gradient, by circles in random planes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from secure_infer.attacks.base import Norm
from secure_infer.attacks.frequency import LowFrequencies
from secure_infer.attacks.line import LabelAttack, Search, straight
from secure_infer.attacks.norms import per_image, unit
from secure_infer.attacks.settings import require_settings

_TOLERANCE = 1 / 128
_FLOOR = 0.1
"""Least weight of a frequency that the image itself lacks: the last descent needs these too."""


@dataclass(frozen=True)
class SurFree(LabelAttack):
    """SurFree (Maho, Furon, Le Merrer 2021), written from the paper.

    In the plane of the image, its nearest success and a random direction, every point of the circle through both whose
    diameter joins them is nearer to the image. Angles on both sides of the diameter are tried, then the last one that
    succeeds is sought by bisection. All images ask at the same time, each in its own phase.

    Not from the paper: directions begin with the lowest frequencies and reach higher ones as these are used up, so that
    what can be tried follows the queries rather than the size of an image.

    Attributes:
        angles: Angles tried on each side, the widest first.
        widest: First widest angle, in degrees; it grows where directions succeed and shrinks where they fail.
        change: By which share it grows or shrinks.
        halvings: Of the bisection.
        frequencies: Share of the spatial frequencies, along each side of an image, that directions are made of at last.
        lowest: How many of them, the lowest, the first direction is made of.
        growth: How many are added with each direction.
        shaped: Weigh the frequencies of a direction by those of the image.
        memory: Earlier directions that a fresh one is orthogonal to, as they have given what they had to give.
    """

    name: ClassVar[str] = "surfree"
    norms: ClassVar[frozenset[Norm]] = frozenset({"l2"})

    angles: int = 1
    widest: float = 30.0
    change: float = 0.05
    halvings: int = 1
    frequencies: float = 0.5
    lowest: int = 60
    growth: float = 2.0
    shaped: bool = True
    memory: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        require_settings(self, "angles", "widest", "change", "halvings", "frequencies", "lowest", "growth", "memory")

    def _improve(self, search: Search, generator: torch.Generator) -> None:
        rows = search.live()
        line = straight(search, search.best.clone())
        search.bisect(rows, line, _TOLERANCE)
        walk = _Walk(self, search, rows, generator)
        while len(search.live()):
            walk.step()


class _Walk:
    """Where each image is in its search; every step asks one query for each.

    `turn` counts the angles tried in the plane, then, from `2 * angles` on, the halvings.
    """

    def __init__(self, attack: SurFree, search: Search, rows: Tensor, generator: torch.Generator) -> None:
        self.attack, self.search, self.rows, self.generator = attack, search, rows, generator
        images = search.images[rows]
        # A direction takes two queries or more: higher frequencies than so many would never be reached.
        most = attack.lowest + attack.growth * search.queries / 2
        self.space = LowFrequencies(images, min(attack.frequencies, math.sqrt(most / search.images[0].numel())))
        weight = (self.space.analyse(images) / search.target.bounds.width).abs().tanh().clamp_min(_FLOOR)
        self.weight = weight if attack.shaped else torch.ones_like(weight)
        self.widest = torch.full((len(rows),), math.radians(attack.widest), device=images.device, dtype=images.dtype)
        self.lower = self.space.lower()
        kept = min(attack.memory, math.prod(self.space.shape) - 1)
        self.past = images.new_zeros(len(rows), kept, math.prod(self.space.shape))
        self.planes, self.turn = torch.zeros_like(rows), torch.zeros_like(rows)
        self.good, self.bad = torch.zeros_like(self.widest), torch.zeros_like(self.widest)
        self.radial, self.across = torch.zeros_like(images), torch.zeros_like(images)
        self.diameter = torch.zeros_like(self.widest)
        self._turn_planes(torch.ones_like(rows, dtype=torch.bool))
        sizes = torch.arange(attack.angles, 0, -1, device=images.device) / attack.angles
        self.tries = torch.stack([sizes, -sizes], 1).flatten().to(images.dtype)

    def step(self) -> None:
        """Ask one query for each image and move on by the answer."""
        tries = len(self.tries)
        trying = self.turn < tries
        wide = self.widest * self.tries[self.turn.clamp_max(tries - 1)]
        angle = torch.where(trying, wide, (self.good + self.bad) / 2)
        reached = self.search.reaches(self.rows, self._points(angle)[:, None]).squeeze(1)
        self.good = torch.where(reached, angle, self.good)
        beyond = (2 * angle).clamp(-math.pi / 2, math.pi / 2)
        self.bad = torch.where(trying, beyond, torch.where(reached, self.bad, angle))
        self.turn = torch.where(trying & reached, tries, self.turn + 1)
        failed = self.turn.eq(tries) & trying & ~reached
        done = self.turn.eq(tries + self.attack.halvings)
        grown = torch.where(done, 1 + self.attack.change, torch.where(failed, 1 - self.attack.change, 1.0))
        self.widest = (self.widest * grown).clamp_max(math.pi / 4)
        self._turn_planes(failed | done)

    def _points(self, angle: Tensor) -> Tensor:
        reach = per_image(self.diameter * angle.cos(), self.radial)
        cos, sin = per_image(angle.cos(), self.radial), per_image(angle.sin(), self.radial)
        points = self.search.images[self.rows] + reach * (cos * self.radial + sin * self.across)
        return self.search.target.bounds.clamp(points)

    def _turn_planes(self, chosen: Tensor) -> None:
        """Start some images anew in a plane of their nearest success and a fresh direction."""
        which = chosen.nonzero().squeeze(1)
        if not len(which):
            return
        delta = self.search.best[self.rows[which]] - self.search.images[self.rows[which]]
        self.diameter[which] = self.search.distance[self.rows[which]]
        self.radial[which] = unit(delta)
        self.across[which] = self._directions(which)
        self.turn[which] = 0

    def _directions(self, which: Tensor) -> Tensor:
        """Random unit vectors orthogonal to the radial ones, `(m, *shape)`, each unlike the last ones of its image."""
        radial, shape = self.radial[which], (len(which), *self.space.shape)
        noise = torch.randn(shape, generator=self.generator, device=radial.device, dtype=radial.dtype)
        used = self.lower < per_image(self.attack.lowest + self.attack.growth * self.planes[which], noise)
        fresh = self.space.synthesize(self._unlike_past(which, noise * self.weight[which] * used))
        return unit(fresh - per_image((fresh * radial).flatten(1).sum(1), fresh) * radial)

    def _unlike_past(self, which: Tensor, drawn: Tensor) -> Tensor:
        """What coefficients `(m, *space.shape)` hold beside those of the last planes, of size 1; remembered."""
        if not self.past.shape[1]:
            return drawn
        past, flat = self.past[which], drawn.flatten(1)
        flat = unit(flat - torch.einsum("ml,mld->md", torch.einsum("mld,md->ml", past, flat), past))
        self.past[which, self.planes[which] % self.past.shape[1]] = flat
        self.planes[which] += 1
        return flat.view_as(drawn)
