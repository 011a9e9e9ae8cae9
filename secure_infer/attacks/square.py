"""Square: random search with square-shaped changes, score-based and without any gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from secure_infer.attacks.base import Access, Attack, Bounds, Norm, Target
from secure_infer.attacks.goal import Goal
from secure_infer.attacks.losses import scores_of
from secure_infer.attacks.norms import per_image, project, unit
from secure_infer.attacks.restarts import select
from secure_infer.attacks.scores import affordable
from secure_infer.attacks.settings import require_settings

_HALVED_AT = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Iterations of 10,000 after which the share of an image that is changed at once is halved."""
_TINY = 1e-12


@dataclass(frozen=True)
class Square(Attack):
    """Square attack (Andriushchenko, Croce, Flammarion, Hein 2020); an image that is fooled leaves the batch.

    Attributes:
        radius: Of the ball, in units of the inputs.
        norm: "linf" or "l2".
        queries: Allowed for each image.
        share: Of the image that the first squares cover; None for 0.8 in Linf and 0.1 in L2.
    """

    name: ClassVar[str] = "square"
    access: ClassVar[Access] = Access.PROBABILITIES
    norms: ClassVar[frozenset[Norm]] = frozenset({"l2", "linf"})
    goals: ClassVar[frozenset[str]] = frozenset({"untargeted", "targeted", "confidence"})
    minimal: ClassVar[bool] = False

    radius: float = 8 / 255
    norm: Norm = "linf"
    queries: int = 1000
    share: float | None = None

    def __post_init__(self) -> None:
        require_settings(self, "radius", "queries", "share")

    def _run(self, target: Target, images: Tensor, goal: Goal, generator: torch.Generator) -> Tensor:
        queries = affordable(target, len(images), self.queries)
        planes = images.reshape(len(images), *_planes(images.shape[1:]))
        draw = _Draw(planes, generator)
        stir, first = (_stir_signs, _stripes) if self.norm == "linf" else (_stir_mass, _tiles)
        x = self._near(planes, first(draw, len(planes), self.radius), target.bounds)
        rows = torch.arange(len(x), device=x.device)
        search = _Search(rows, planes, goal, x, _margin(target, x, goal))
        result = x.clone()
        for turn in range(1, queries):
            fooled = search.least < 0
            if bool(fooled.any()):
                result[search.rows[fooled]] = search.x[fooled]
                search = select(search, ~fooled)
            if not len(search.rows):
                break
            changed = stir(draw, search.x - search.planes, self._covered(turn, queries), self.radius)
            x = self._near(search.planes, changed, target.bounds)
            search.keep(x, _margin(target, x, search.goal))
        result[search.rows] = search.x
        return result.view_as(images)

    def _near(self, planes: Tensor, delta: Tensor, bounds: Bounds) -> Tensor:
        """Disturbed images within radius and bounds."""
        return bounds.clamp(planes + project(delta, self.norm, self.radius))

    def _covered(self, turn: int, queries: int) -> float:
        first = self.share or (0.8 if self.norm == "linf" else 0.1)
        return first * 0.5 ** sum(10_000 * turn / queries > limit for limit in _HALVED_AT)


@dataclass
class _Search:
    """The images that are not fooled yet: their numbers, planes and goals, the best places so far and margins there."""

    rows: Tensor
    planes: Tensor
    goal: Goal
    x: Tensor
    least: Tensor

    def keep(self, x: Tensor, margin: Tensor) -> None:
        """Move to where the margin is less."""
        better = margin < self.least
        self.x, self.least = torch.where(per_image(better, x), x, self.x), torch.minimum(margin, self.least)


def _margin(target: Target, x: Tensor, goal: Goal) -> Tensor:
    return goal.margin(scores_of(target, x.reshape(-1, *target.shape)))


class _Draw:
    """Windows and signs at random for planes `(n, channels, height, width)`."""

    def __init__(self, planes: Tensor, generator: torch.Generator) -> None:
        self.channels, self.height, self.width = planes.shape[1:]
        self._generator, self._planes = generator, planes

    def signs(self, *shape: int) -> Tensor:
        """1 or -1, with equal chance."""
        return 2.0 * self._below(2, *shape).to(self._planes.dtype) - 1

    def _below(self, limit: int, *shape: int) -> Tensor:
        return torch.randint(limit, shape, generator=self._generator, device=self._planes.device)

    def like(self, values: Tensor) -> Tensor:
        """Values of the type and on the device of the planes."""
        return values.to(self._planes)

    def sides(self, share: float, least: int) -> tuple[int, int]:
        """Height and width of a square that covers this share of an image, as far as it fits in."""
        area = share * self.height * self.width
        height = min(self.height, max(least, round(math.sqrt(area))))
        return height, min(self.width, max(least, round(area / height)))

    def windows(self, n: int, sides: tuple[int, int]) -> Tensor:
        """Positions of the pixels of one window for each of `n` images, int64 `(n, 1, height * width)`."""
        top = self._below(self.height - sides[0] + 1, n, 1, 1)
        left = self._below(self.width - sides[1] + 1, n, 1, 1)
        rows = torch.arange(sides[0], device=top.device)[:, None] + top
        return ((rows * self.width) + torch.arange(sides[1], device=top.device) + left).flatten(1)[:, None]


def _planes(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """An input's shape as channels, height and width."""
    height, width = (1, *shape)[-2:]
    return math.prod(shape[:-2]), height, width


def _stripes(draw: _Draw, n: int, radius: float) -> Tensor:
    return radius * draw.signs(n, draw.channels, 1, draw.width)


def _stir_signs(draw: _Draw, delta: Tensor, share: float, radius: float) -> Tensor:
    """One square of each disturbance is set to the radius, with one random sign a channel."""
    window = draw.windows(len(delta), draw.sides(share, 1)).expand(-1, draw.channels, -1)
    values = radius * draw.signs(len(delta), draw.channels, 1).expand(window.shape)
    return delta.flatten(2).scatter(2, window, values).view_as(delta)


def _tiles(draw: _Draw, n: int, radius: float) -> Tensor:
    """Bumps of random signs all over the image, about five a side."""
    side = max(1, min(draw.height, draw.width) // 5)
    rows, columns = math.ceil(draw.height / side), math.ceil(draw.width / side)
    bump = _bump(side, side, draw)
    tiles = draw.signs(n, draw.channels, rows, 1, columns, 1) * bump[:, None]
    whole = tiles.reshape(n, draw.channels, rows * side, columns * side)
    return radius * unit(whole[:, :, : draw.height, : draw.width])


def _stir_mass(draw: _Draw, delta: Tensor, share: float, radius: float) -> Tensor:
    """Move the disturbance of one window into another one, as a bump, with what the radius has left."""
    sides = draw.sides(share, 3)
    windows = [draw.windows(len(delta), sides).expand(-1, draw.channels, -1) for _ in range(2)]
    flat = delta.flatten(2)
    kept = flat
    for window in windows:
        kept = kept.scatter(2, window, 0.0)
    freed = (flat.square().sum(2) - kept.square().sum(2)).clamp_min(0)
    unused = (radius**2 - flat.square().sum((1, 2))).clamp_min(0)
    room = (freed + unused[:, None] / draw.channels).sqrt()[:, :, None]
    old = flat.gather(2, windows[0])
    bump = _bump(*sides, draw).flatten() * draw.signs(len(delta), draw.channels, 1)
    new = bump + old / torch.linalg.vector_norm(old, dim=2, keepdim=True).clamp_min(_TINY)
    new = room * new / torch.linalg.vector_norm(new, dim=2, keepdim=True).clamp_min(_TINY)
    return radius * unit(kept.scatter(2, windows[0], new)).view_as(delta)


def _bump(height: int, width: int, draw: _Draw) -> Tensor:
    """Two opposite pyramids side by side, of Euclidean size 1, laid along the longer side, or at random."""
    if height > width:
        return _bump(width, height, draw).T
    half = _pyramid(height, (width + 1) // 2)
    both = torch.cat([half, -half[:, : width // 2]], 1)
    bump = draw.like(both / torch.linalg.vector_norm(both))
    return bump if height < width else torch.where(draw.signs(1, 1) > 0, bump, bump.T)


def _pyramid(height: int, width: int) -> Tensor:
    """Sums of `1 / (n + 1 - k)**2` that grow from the border to the middle."""
    depths = [torch.minimum(torch.arange(side), torch.arange(side).flip(0)) for side in (height, width)]
    depth = torch.minimum(depths[0][:, None], depths[1])
    squares = torch.arange(int(depth.max()) + 1, 0, -1, dtype=torch.float64).square()
    return torch.cumsum(1 / squares, 0)[depth]
