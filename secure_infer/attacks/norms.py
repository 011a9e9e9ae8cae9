"""Sizes, balls and steepest directions in L2, Linf and L0, image by image: the geometry that the attacks share."""

from __future__ import annotations

import torch
from torch import Tensor

from secure_infer.attacks.base import Bounds, Norm

TINY = 1e-12
"""What a size is divided by at least."""
_PROJECTION_ROUNDS = 5


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """One value an image, `(n,)`, in a shape that broadcasts over images like `like`, `(n, *shape)`."""
    return values.view(-1, *(1,) * (like.ndim - 1))


def size(delta: Tensor, norm: Norm) -> Tensor:
    """Size of each disturbance: Euclidean, greatest, or number of changed features. `(n, *shape)` to `(n,)`."""
    flat = delta.flatten(1)
    if norm == "l0":
        return flat.ne(0).sum(1).to(delta.dtype)
    sizes: Tensor = flat.norm(dim=1) if norm == "l2" else flat.abs().amax(1)
    return sizes


def unit(delta: Tensor) -> Tensor:
    """Each disturbance divided by its Euclidean size; a zero one stays zero."""
    return delta / per_image(size(delta, "l2").clamp_min(TINY), delta)


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """The direction of size 1 along which a loss with this gradient grows fastest: its sign, or its unit vector."""
    return gradient.sign() if norm == "linf" else unit(gradient)


def dual_size(gradient: Tensor, norm: Norm) -> Tensor:
    """How fast a loss with this gradient grows at most along a direction of size 1: the dual norm, `(n,)`."""
    sizes: Tensor = gradient.flatten(1).norm(p=1 if norm == "linf" else 2, dim=1)
    return sizes


def project(delta: Tensor, norm: Norm, radius: float | Tensor) -> Tensor:
    """The nearest disturbances of at most a radius.

    Args:
        delta: Shape `(n, *shape)`.
        norm: L2 or Linf.
        radius: One for all, or one each, `(n,)`.
    """
    if norm == "linf":
        if isinstance(radius, Tensor):
            return delta.clamp(-per_image(radius, delta), per_image(radius, delta))
        return delta.clamp(-radius, radius)
    return delta * per_image((radius / size(delta, norm).clamp_min(TINY)).clamp_max(1.0), delta)


def within(x: Tensor, images: Tensor, norm: Norm, radius: float | Tensor, bounds: Bounds) -> Tensor:
    """`x` moved into the ball around each image, then into the bounds, which never leaves the ball."""
    return project(x - images, norm, radius).add_(images).clamp_(bounds.low, bounds.high)


def random_disturbance(images: Tensor, norm: Norm, radius: float, generator: torch.Generator) -> Tensor:
    """One disturbance an image from inside the ball: uniform in Linf; in L2 of a uniform direction and size."""
    if norm == "linf":
        return torch.empty_like(images).uniform_(-radius, radius, generator=generator)
    sizes = images.new_empty(len(images)).uniform_(0, radius, generator=generator)
    return unit(torch.empty_like(images).normal_(generator=generator)) * per_image(sizes, images)


def towards_plane(normal: Tensor, distance: Tensor, norm: Norm) -> Tensor:
    """The least step that reaches a half-space, whatever the bounds: `onto_plane` for features without any."""
    return per_image(-distance / dual_size(normal, norm).clamp_min(TINY), normal) * steepest(normal, norm)


def onto_plane(x: Tensor, normal: Tensor, distance: Tensor, norm: Norm, bounds: Bounds) -> Tensor:
    """The least step from each `x` that reaches a half-space and stays within the bounds.

    The step moves against `normal` (by its sign in Linf) and each feature stops at its bound; the value that is won
    is concave in the length of the step, so that Newton's method from 0 approaches the length from below.

    Args:
        x: Points within the bounds, `(n, *shape)`.
        normal: Normals `w` of the planes, same shape.
        distance: By how much `w . x` must sink, `(n,)`; negative ones move along the normal instead.
        norm: In which the step is least: L2 or Linf.
        bounds: Of the features.

    Returns:
        Steps `(n, *shape)`; where the bounds forbid to reach the plane, one as far as they permit.
    """
    down = torch.where(per_image(distance < 0, x), normal, -normal)
    room = torch.where(down > 0, bounds.high - x, x - bounds.low).flatten(1)
    weight, wanted = normal.abs().flatten(1), distance.abs()
    speed = weight if norm == "l2" else (weight > 0).to(x.dtype)
    length, gain = torch.zeros_like(distance), weight * speed
    for _ in range(_PROJECTION_ROUNDS):
        moved = length[:, None] * speed
        slope = _dot(gain, (moved < room).to(x.dtype)).clamp_min(TINY)
        length = length + ((wanted - _dot(weight, moved.clamp(max=room))) / slope).clamp_min(0)
    return down.sign() * (length[:, None] * speed).clamp(max=room).view_as(x)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of the rows of two matrices."""
    return (a * b).sum(1)
