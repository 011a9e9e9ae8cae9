"""What searches for the least disturbance share: fooled images stay as they are, the closest success is kept."""

from __future__ import annotations

import abc
import math
from typing import ClassVar

import torch
from torch import Tensor

from secure_infer.attacks.base import Attack, Norm, Target
from secure_infer.attacks.goal import Goal
from secure_infer.attacks.losses import scores_of
from secure_infer.attacks.norms import TINY, per_image, size, unit


class MinimalAttack(Attack):
    """An attack with scores that searches only for the images that do not reach the goal by themselves."""

    minimal: ClassVar[bool] = True

    def _run(self, target: Target, images: Tensor, goal: Goal, generator: torch.Generator) -> Tensor:
        todo = ~goal.reached(scores_of(target, images))
        result = images.clone()
        if bool(todo.any()):
            result[todo] = self._search(target, images[todo], goal.select(todo), generator)
        return result

    @abc.abstractmethod
    def _search(self, target: Target, images: Tensor, goal: Goal, generator: torch.Generator) -> Tensor:
        """The closest success for each of images that are no success; the image itself where none is found."""


class Closest:
    """The smallest successful disturbance of each image so far.

    Args:
        images: The originals, `(n, *shape)`.
        norm: In which they are compared.

    Attributes:
        found: The images themselves until a success is offered, `(n, *shape)`.
        distance: Sizes of the disturbances; infinite without a success, `(n,)`.
    """

    def __init__(self, images: Tensor, norm: Norm) -> None:
        self._images, self._norm = images, norm
        self.found = images.clone()
        self.distance = torch.full((len(images),), torch.inf, device=images.device, dtype=images.dtype)

    def offer(self, x: Tensor, success: Tensor, rows: Tensor | None = None, *, delta: Tensor | None = None) -> Tensor:
        """Keep those of `x` that succeed and are closer than what is known.

        Args:
            x: Shape `(m, *shape)`.
            success: Which of them reach the goal, `(m,)`.
            rows: Which images they belong to, each at most once, `(m,)`; None for all in order.
            delta: Their differences from the images, where they are known already.

        Returns:
            Their distances, `(m,)`.
        """
        images, known = (self._images, self.distance) if rows is None else (self._images[rows], self.distance[rows])
        distance = size(x - images if delta is None else delta, self._norm)
        better = (success & (distance < known)).nonzero().squeeze(1)
        kept = better if rows is None else rows[better]
        self.found.index_copy_(0, kept, x.index_select(0, better))
        self.distance[kept] = distance[better]
        return distance

    def nearest(self, count: int) -> Tensor:
        """Of the copies of `count` images, one batch after the other, the closest success of each image."""
        best = self.distance.view(-1, count).argmin(0) * count
        return self.found[best + torch.arange(count, device=best.device)]


def fallback(images: Tensor, generator: torch.Generator) -> Tensor:
    """A random direction of length 1 for each image, for where a gradient vanishes."""
    return unit(torch.empty_like(images).normal_(generator=generator))


def direction(gradient: Tensor, otherwise: Tensor) -> Tensor:
    """The gradient divided by its Euclidean size, or `otherwise` where it is zero."""
    sizes = size(gradient, "l2")
    vanished = sizes == 0
    found = gradient / per_image(sizes.clamp_min(TINY), gradient)
    return torch.where(per_image(vanished, found), otherwise, found) if bool(vanished.any()) else found


def moved(x: Tensor, gradient: Tensor, otherwise: Tensor, length: float) -> Tensor:
    """`x` moved by a length along `direction`, in one pass over the images where no gradient vanishes."""
    sizes = size(gradient, "l2")
    if bool((sizes == 0).any()):
        return torch.add(x, direction(gradient, otherwise), alpha=length)
    return torch.addcmul(x, gradient, per_image(length / sizes, gradient))


def annealed(step: int, steps: int, first: float, last: float) -> float:
    """A setting that falls along half a cosine from its first to its last value."""
    return last + (first - last) * (1 + math.cos(math.pi * step / steps)) / 2
