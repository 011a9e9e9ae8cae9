"""What label-only attacks share: asking under a budget an image, a first success, and the search for the boundary."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from secure_infer.attacks.base import Access, Attack, Norm, Target
from secure_infer.attacks.curve import Curve
from secure_infer.attacks.goal import Goal
from secure_infer.attacks.norms import size
from secure_infer.attacks.scores import affordable, points_at_once
from secure_infer.attacks.settings import require_settings
from secure_infer.errors import InvalidInput, Problem

_NOISES = (None, None, None, None, 1.0, 0.0, 0.75, 0.25, 0.5)
"""Tried as first successes: uniform noise, then pixels that are at the upper bound with a chance, else at the lower."""

Path = Callable[[Tensor, Tensor], Tensor]
"""From rows `(m,)` and positions `(m, k)` in [0, 1] to points `(m, k, *shape)`; position 1 reaches the goal."""


class Search:
    """A batch of images under attack: what each has asked, and the nearest success of each.

    Args:
        target: What is asked.
        images: `(n, *shape)`.
        goal: What counts as success.
        norm: In which distances are measured.
        queries: Budget of each image; a budget of the target itself is divided among the images.
        curve: Told of every query, if there is one.

    Attributes:
        best: The nearest success, or the image itself, `(n, *shape)`.
        distance: Its distance, infinite where there is none, `(n,)`.
        spent: Queries asked, int64 `(n,)`.
    """

    def __init__(
        self, target: Target, images: Tensor, goal: Goal, norm: Norm, queries: int, curve: Curve | None = None
    ) -> None:
        self.target, self.images, self.goal, self.norm, self.curve = target, images, goal, norm, curve
        self.queries = affordable(target, len(images), queries)
        self.best = images.clone()
        self.distance = torch.full((len(images),), torch.inf, device=images.device, dtype=images.dtype)
        self.spent = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        if curve is not None:
            curve.begin(images)

    def live(self) -> Tensor:
        """Rows of the images that have a success to improve and queries left."""
        return ((self.spent < self.queries) & self.distance.isfinite() & (self.distance > 0)).nonzero().squeeze(1)

    def reaches(self, rows: Tensor, points: Tensor, *, remember: bool = True) -> Tensor:
        """Ask whether points reach the goal, and keep the nearest that do.

        Args:
            rows: Of which images, each at most once, `(m,)`.
            points: Within the bounds, `(m, k, *shape)`.
            remember: Whether they may be kept; probes around a success need not be looked at.

        Returns:
            Bool `(m, k)`; False for points that the budget did not allow to ask.
        """
        left = self.queries - self.spent[rows]
        asked: Tensor = torch.arange(points.shape[1], device=rows.device) < left[:, None]
        count = int(asked.sum())
        if not count:
            return asked
        flat = points.flatten(0, 1) if count == asked.numel() else points[asked]
        labels = torch.full(asked.shape, -1, dtype=torch.int64, device=rows.device)
        labels[asked] = torch.cat([self.target.query(part).labels for part in torch.split(flat, self.at_once())])
        reached: Tensor = self._reached(rows, labels) & asked
        least = self._keep(rows, points, reached) if remember else self.distance[rows, None]
        if self.curve is not None:
            self.curve.note(rows, self.spent[rows], least)
        self.spent[rows] += asked.sum(1)
        return reached

    def at_once(self) -> int:
        """Points that one call may hold."""
        return points_at_once(self.images[0])

    def start(self, generator: torch.Generator, starts: Tensor | None = None) -> None:
        """Ask for the images themselves, then find a first success of each: as given, noise, or another image.

        Other images of the batch help where noise is never of a wanted class, as under a targeted goal.

        Args:
            generator: Of the noise.
            starts: Points to try first, `(n, *shape)`.
        """
        labels, bounds = self._own_labels(), self.target.bounds
        if starts is not None:
            rows = self._lost()
            self.reaches(rows, starts[rows, None].to(self.images))
        for chance in _NOISES:
            rows = self._lost()
            noise = torch.rand((len(rows), 1, *self.images.shape[1:]), generator=generator, device=self.images.device)
            share = noise if chance is None else (noise < chance).to(noise)
            self.reaches(rows, (bounds.low + bounds.width * share).to(self.images))
        for row in self._lost().tolist():
            self._borrow(row, labels)

    def bisect(self, rows: Tensor, path: Path, tolerance: float, parallel: int = 1) -> Tensor:
        """The least position on each path that is known to reach the goal.

        Args:
            rows: Which images, `(m,)`.
            path: Where the points lie; position 0 does not reach the goal, 1 does.
            tolerance: Length of the interval that may be left.
            parallel: Points asked in each call; more calls are saved, more queries are spent.

        Returns:
            Positions `(m,)`.
        """
        low = torch.zeros(len(rows), device=rows.device, dtype=self.images.dtype)
        high = torch.ones_like(low)
        inner = (torch.arange(1, parallel + 1, device=rows.device) / (parallel + 1)).to(low)
        for _ in range(math.ceil(math.log(1 / tolerance) / math.log(parallel + 1))):
            positions = low[:, None] + (high - low)[:, None] * inner
            reached = self.reaches(rows, path(rows, positions))
            edges = torch.cat([low[:, None], positions, high[:, None]], 1)
            # Up to the first success: what lies beyond it is of no interest.
            first = torch.cat([reached, torch.ones_like(reached[:, :1])], 1).to(torch.uint8).argmax(1, keepdim=True) + 1
            low, high = edges.gather(1, first - 1).squeeze(1), edges.gather(1, first).squeeze(1)
        return high

    def _reached(self, rows: Tensor, labels: Tensor) -> Tensor:
        goal = self.goal.select(rows.repeat_interleave(labels.shape[1]))
        return goal.reached_by_labels(labels.flatten()).view_as(labels)

    def _keep(self, rows: Tensor, points: Tensor, reached: Tensor) -> Tensor:
        """Keep the nearest successes; the least distance before and after each point, `(m, k + 1)`."""
        deltas = (points - self.images[rows, None]).flatten(0, 1)
        distances = size(deltas, self.norm).view(reached.shape).masked_fill(~reached, torch.inf)
        near, which = distances.min(1)
        better = near < self.distance[rows]
        self.best[rows[better]] = points[better, which[better]]
        least = torch.cat([self.distance[rows, None], distances], 1).cummin(1).values
        self.distance[rows] = least[:, -1]
        return least

    def _lost(self) -> Tensor:
        return self.distance.isinf().nonzero().squeeze(1)

    def _own_labels(self) -> Tensor:
        rows = torch.arange(len(self.images), device=self.images.device)
        labels = torch.cat([self.target.query(part).labels for part in torch.split(self.images, self.at_once())])
        least = self.distance[:, None].masked_fill(self.goal.reached_by_labels(labels)[:, None], 0.0)
        if self.curve is not None:
            self.curve.note(rows, self.spent, torch.cat([self.distance[:, None], least], 1))
        self.distance = least[:, 0]
        self.spent += 1
        return labels

    def _borrow(self, row: int, labels: Tensor) -> None:
        """The nearest other image that the target puts into a class that is wanted: its label is known already."""
        wanted = self.goal.select(torch.full_like(labels, row)).reached_by_labels(labels)
        if bool(wanted.any()):
            distances = size(self.images - self.images[row], self.norm).masked_fill(~wanted, torch.inf)
            self.distance[row], which = distances.min(0)
            self.best[row] = self.images[which]


@dataclass(frozen=True)
class LabelAttack(Attack):
    """What label-only attacks have in common: they search for the least disturbance under a budget an image.

    Attributes:
        norm: "l2" or "linf".
        queries: Allowed for each image, all included.
        starts: A success for each image to start from, `(n, *shape)`; None to search for one. Those that turn out
            to be none are replaced.
        curve: Records the distortion against the queries.
    """

    access: ClassVar[Access] = Access.LABEL
    norms: ClassVar[frozenset[Norm]] = frozenset({"l2", "linf"})
    goals: ClassVar[frozenset[str]] = frozenset({"untargeted", "targeted"})
    minimal: ClassVar[bool] = True

    norm: Norm = "l2"
    queries: int = 1000
    starts: Tensor | None = field(default=None, repr=False, compare=False)
    curve: Curve | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        require_settings(self, "queries")

    def _run(self, target: Target, images: Tensor, goal: Goal, generator: torch.Generator) -> Tensor:
        if self.starts is not None and self.starts.shape != images.shape:
            found = f"Shape {tuple(self.starts.shape)}."
            problem = Problem("starts", found, f"give one for each image: {tuple(images.shape)}.")
            raise InvalidInput(f"The attack {self.name} can't start.", [problem])
        search = Search(target, images, goal, self.norm, self.queries, self.curve)
        search.start(generator, self.starts)
        self._improve(search, generator)
        return search.best

    @abc.abstractmethod
    def _improve(self, search: Search, generator: torch.Generator) -> None:
        """Spend the queries that are left on nearer successes."""


def straight(search: Search, far: Tensor) -> Path:
    """The way from each image to a success `far` `(n, *shape)`: a line, or in Linf the nearest point of each cube."""

    def path(rows: Tensor, positions: Tensor) -> Tensor:
        delta = (far[rows] - search.images[rows])[:, None]
        if search.norm == "linf":
            reach = positions * size(delta.squeeze(1), "linf")[:, None]
            moved = delta.clamp(-_wide(reach, delta), _wide(reach, delta))
        else:
            moved = _wide(positions, delta) * delta
        return search.images[rows, None] + moved

    return path


def _wide(values: Tensor, points: Tensor) -> Tensor:
    """Values `(m, k)` in a shape that broadcasts over points `(m, k, *shape)`."""
    return values.view(*values.shape, *(1,) * (points.ndim - 2))
