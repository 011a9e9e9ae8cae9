"""Best effort: per image the least distortion over attacks and settings, and what follows from it (T. Furon).

An attack's default settings say little about a model; the minimum over many says more. From the least distortions
`d_i` come the accuracy that is left at distortion `D`, `acc(D) = share of correct images with d_i > D`, the median,
and the half-distortion of RoBIC (Maho, Bonnet, Furon, Le Merrer 2021), at which half of the clean accuracy is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from secure_infer.attacks.base import Attack, Norm, Target
from secure_infer.attacks.evaluate import Outcome, evaluate, judge
from secure_infer.attacks.goal import Goal
from secure_infer.attacks.statistics import Interval, finite, median, median_interval, wilson
from secure_infer.errors import InvalidInput, NotApplicable, Problem


@dataclass(frozen=True, eq=False)
class BestEffort:
    """The least distortion found for each image.

    Attributes:
        norm: In which it is measured.
        seed: Of the attacks and of the bootstrap.
        distances: `(n,)`; 0 where the target was wrong before, infinite where nothing was found.
        winner: Which outcome holds it, int64 `(n,)`; -1 where none.
        images: The images found (originals elsewhere), `(n, *shape)`.
        outcomes: Of the attacks that ran, in their order. Under a radius, each covers the images still unbroken.
        refused: Attacks that the target gives too little access for, and why.
    """

    norm: Norm
    seed: int
    distances: Tensor = field(repr=False)
    winner: Tensor = field(repr=False)
    images: Tensor = field(repr=False)
    outcomes: tuple[Outcome, ...]
    refused: dict[str, str]

    @property
    def clean_accuracy(self) -> float:
        """Share of images that the target gets right."""
        return float((self.distances > 0).double().mean())

    def accuracy(self, radii: Tensor) -> Tensor:
        """Share of images that are right and stay so up to each distortion, shape of `radii` `(k,)`; never rises."""
        return (self.distances[:, None] > radii.to(self.distances)).double().mean(0)

    def robust_accuracy(self, radius: float) -> tuple[float, Interval]:
        """Accuracy left at one distortion, with its 95 % Wilson interval."""
        left, n = int((self.distances > radius).sum()), len(self.distances)
        return left / n, wilson(left, n)

    def median(self) -> tuple[float, Interval]:
        """Median distortion of the images that the target got right, and its 95 % bootstrap interval."""
        right = self.distances[self.distances > 0]
        return float(median(right)), median_interval(right, seed=self.seed)

    def half_distortion(self) -> float:
        """Least distortion at which no more than half of the clean accuracy is left; infinite if there is none."""
        return _half(self.distances)

    def as_dict(self, points: int = 21) -> dict[str, Any]:
        """A summary for JSON, with the accuracy at `points` distortions from 0 to the greatest one found."""
        value, interval = self.median()
        found = self.distances[self.distances.isfinite()]
        radii = torch.linspace(0, float(found.max()) if len(found) else 0.0, points, dtype=torch.float64)
        wins = [int((self.winner == i).sum()) for i in range(len(self.outcomes))]
        return {
            "norm": self.norm,
            "seed": self.seed,
            "n": len(self.distances),
            "clean_accuracy": self.clean_accuracy,
            "median": finite(value),
            "median_interval": [finite(end) for end in interval],
            "half_distortion": finite(self.half_distortion()),
            "curve": {"distortion": radii.tolist(), "accuracy": self.accuracy(radii).tolist()},
            "attacks": [o.as_dict() | {"best_on": won} for o, won in zip(self.outcomes, wins, strict=True)],
            "not_applicable": self.refused,
        }


def best_effort(
    target: Target,
    attacks: Sequence[Attack],
    images: Tensor,
    labels: Tensor | Goal,
    *,
    norm: Norm = "l2",
    seed: int = 0,
    levels: int | None = None,
    radius: float | None = None,
) -> BestEffort:
    """Run attacks one after another and keep the best for each image.

    Args:
        target: What to attack.
        attacks: With their settings; those for which the target gives too little access are listed as refused.
        images: Within the bounds, `(n, *shape)`.
        labels: True classes, int64, `(n,)`, to be missed in any way; or another goal.
        norm: What "least" means.
        seed: Of every attack.
        levels: Round images to this many steps of a pixel before judging; see `evaluate`.
        radius: Only ask which images can be broken within this distance: those broken are spared further attacks.

    Raises:
        NotApplicable: Not one of the attacks can run.
        InvalidInput: No attacks, no images, or such as do not fit.
    """
    goal = labels if isinstance(labels, Goal) else Goal(labels)
    able, refused = _able(target, attacks, images, goal)
    state = _State.start(target, images, goal, norm)
    outcomes: list[Outcome] = []
    for number, attack in enumerate(able):
        open_ = (state.distances > (0 if radius is None else radius)).nonzero().squeeze(1)
        outcomes.append(state.attack(target, attack, images, goal, open_, number, seed, levels))
    return BestEffort(norm, seed, state.distances, state.winner, state.images, tuple(outcomes), refused)


def half_distortion(
    target: Target,
    attacks: Sequence[Attack],
    images: Tensor,
    labels: Tensor,
    *,
    norm: Norm = "l2",
    seed: int = 0,
) -> tuple[float, int]:
    """The half-distortion of best effort, exactly, without running every attack on every image.

    An attack can only lessen an image's distance, so images that already lie below the half-distortion found so far
    cannot lower it: only those at or above it get the next attack, until all of these have had all attacks.

    Args:
        target: What to attack; it must give the access that all attacks need.
        attacks: From cheap to costly.
        images: Within the bounds, `(n, *shape)`.
        labels: True classes, int64, `(n,)`.
        norm: Of the distortion.
        seed: Of every attack.

    Returns:
        The half-distortion, infinite if it was not reached, and how many images the attacks got, in all; best effort
        would take `attacks x correct images`.

    Raises:
        NotApplicable: The target gives less access than one of the attacks needs.
        InvalidInput: No attacks, no images, or such as do not fit.
    """
    goal = Goal(labels)
    able, refused = _able(target, attacks, images, goal)
    if refused:
        raise NotApplicable(f"Not every attack can run on {target.name}.", _reasons(refused))
    state = _State.start(target, images, goal, norm)
    had = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    runs = 0
    while True:
        half = _half(state.distances)
        due = (state.distances >= half) & (state.distances > 0) & (had < len(able))
        if not bool(due.any()):
            return half, runs
        stage = int(had[due].min())
        chosen = (due & (had == stage)).nonzero().squeeze(1)
        state.attack(target, able[stage], images, goal, chosen, stage, seed)
        had[chosen] += 1
        runs += len(chosen)


@dataclass
class _State:
    """The best found so far for each image."""

    norm: Norm
    distances: Tensor
    winner: Tensor
    images: Tensor

    @classmethod
    def start(cls, target: Target, images: Tensor, goal: Goal, norm: Norm) -> _State:
        wrong = judge(target, images, goal)
        distances = torch.full((len(images),), torch.inf, dtype=torch.float64, device=images.device)
        return cls(norm, distances.masked_fill(wrong, 0), torch.full_like(goal.labels, -1), images.clone())

    def attack(
        self,
        target: Target,
        attack: Attack,
        images: Tensor,
        goal: Goal,
        index: Tensor,
        number: int,
        seed: int,
        levels: int | None = None,
    ) -> Outcome:
        """Attack the images `index`, none of which the target gets wrong, and take over what is better."""
        right = torch.zeros(len(index), dtype=torch.bool, device=images.device)
        outcome = evaluate(target, attack, images[index], goal.select(index), seed, levels=levels, already=right)
        found = outcome.distortion.of(self.norm)
        better = found < self.distances[index]
        chosen = index[better]
        self.distances[chosen], self.images[chosen] = found[better], outcome.images[better]
        self.winner[chosen] = number
        return outcome


def _half(distances: Tensor) -> float:
    right = distances[distances > 0].sort().values
    # With the half rounded up of the correct images broken, no more than half of them is left.
    return float(right[(len(right) + 1) // 2 - 1]) if len(right) else 0.0


def _able(target: Target, attacks: Sequence[Attack], images: Tensor, goal: Goal) -> tuple[list[Attack], dict[str, str]]:
    """The attacks that the target gives enough access for, and why the others can't run; the data is checked too."""
    if not attacks or not len(images):
        given = f"{len(attacks)} attacks and {len(images)} images."
        raise InvalidInput("There is nothing to measure.", [Problem("best effort", given, "give one of each or more.")])
    able, refused = [], {}
    for attack in attacks:
        try:
            attack.check(target, images, goal)
        except NotApplicable as error:
            refused[attack.name] = error.summary
        else:
            able.append(attack)
    if not able:
        raise NotApplicable(f"No attack can run on {target.name}.", _reasons(refused))
    return able, refused


def _reasons(refused: dict[str, str]) -> list[Problem]:
    return [Problem(name, why, "attack another form, or use another attack.") for name, why in refused.items()]
