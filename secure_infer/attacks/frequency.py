"""Random directions of low spatial frequency: where boundaries of image classifiers lie nearest to the images."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def cosine_basis(length: int, like: Tensor) -> Tensor:
    """The orthonormal cosine transform (DCT-II), `(frequency, sample)`, of the type and device of `like`."""
    sample = torch.arange(length, dtype=torch.float64)
    basis = torch.cos(math.pi / length * (sample + 0.5) * sample[:, None]) * math.sqrt(2 / length)
    basis[0] /= math.sqrt(2)
    return basis.to(like)


class LowFrequencies:
    """A subspace of images: the lowest spatial frequencies of each channel.

    Args:
        images: Whose two last axes are the sides, `(n, ..., height, width)`; inputs `(n, features)` keep all
            frequencies, as they are no images.
        share: Of the frequencies along each side that are kept, in (0, 1].
    """

    def __init__(self, images: Tensor, share: float) -> None:
        sides = images.shape[1:][-2:]
        kept = [math.ceil(share * side) if len(sides) == 2 else side for side in sides]
        self._bases = [cosine_basis(side, images)[:count] for side, count in zip(sides, kept, strict=True)]
        self._lead = images.shape[1 : images.ndim - len(sides)]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the coefficients of one image."""
        return (*self._lead, *(len(basis) for basis in self._bases))

    def lower(self) -> Tensor:
        """How many coefficients are lower than each along both sides, in blocks like the whole; `self.shape`."""
        if len(self._bases) == 1:
            return torch.zeros(self.shape).to(self._bases[0])
        rows, columns = (torch.arange(len(basis)).to(basis) / len(basis) for basis in self._bases)
        share = torch.maximum(rows[:, None], columns)
        return (math.prod(self.shape) * share * share).expand(self.shape)

    def analyse(self, images: Tensor) -> Tensor:
        """Coefficients `(n, *self.shape)` of images `(n, *shape)`."""
        found = images @ self._bases[-1].T
        return self._bases[0] @ found if len(self._bases) == 2 else found

    def synthesize(self, coefficients: Tensor) -> Tensor:
        """The images `(n, *shape)` of coefficients; as long as these are, since the basis is orthonormal."""
        found = coefficients @ self._bases[-1]
        return self._bases[0].T @ found if len(self._bases) == 2 else found
