"""Distortion against queries: the least distortion that a label-only attack has found once it has asked so often."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from secure_infer.attacks.statistics import median
from secure_infer.errors import InvalidInput, Problem


class Curve:
    """Records one run of an attack; give it to the attack's setting `curve` and read it afterwards.

    Args:
        at: Query counts per image, above 0.

    Attributes:
        at: Those counts, ascending.
        distances: The least distortion found within each count, in the attack's norm, `(n, len(at))`; infinite where
            nothing was found yet. Each query counts, also those for the image itself and for a start.

    Raises:
        InvalidInput: No counts, or some below 1.
    """

    def __init__(self, at: Sequence[int]) -> None:
        if not at or min(at) < 1:
            raise InvalidInput(
                "There is no such curve.", [Problem("at", f"{list(at)}.", "give query counts of 1 or more.")]
            )
        self.at = tuple(sorted(at))
        self.distances = torch.empty(0, len(self.at))

    def __repr__(self) -> str:
        return f"Curve({list(self.at)}, {len(self.distances)} images)"

    def medians(self) -> list[float]:
        """The median over images at each count."""
        return [float(value) for value in median(self.distances.T)]

    def begin(self, images: Tensor) -> None:
        """Forget what was recorded and await a run on these images."""
        self.distances = torch.full((len(images), len(self.at)), torch.inf, device=images.device)

    def note(self, rows: Tensor, spent: Tensor, least: Tensor) -> None:
        """Record some queries.

        Args:
            rows: Of which images, int64 `(m,)`.
            spent: Queries that each had asked before, int64 `(m,)`.
            least: The least distortion before them and after each of them, `(m, k + 1)`.
        """
        ahead = torch.tensor(self.at, device=rows.device) - spent[:, None]
        after = least.gather(1, ahead.clamp(0, least.shape[1] - 1))
        self.distances[rows] = torch.where(ahead < 0, self.distances[rows], after.to(self.distances))
