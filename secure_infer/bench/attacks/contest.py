"""One contest: contenders attack the same images in turn; their times, success and distortion, and the ratios."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from secure_infer.bench.records import Record
from secure_infer.bench.statistics import ratio_of_medians, wilson

Contender = Callable[[], Tensor]
"""Attacks the images of a field once. Gives them disturbed, `(n, *shape)`."""
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Field:
    """What all contenders attack.

    Attributes:
        net: In evaluation mode.
        images: Rightly classified, `(n, *shape)`, within 0 and 1.
        labels: Their classes, int64, `(n,)`.
    """

    net: nn.Module
    images: Tensor
    labels: Tensor

    def head(self, n: int) -> Field:
        """The first images."""
        return Field(self.net, self.images[:n], self.labels[:n])


@dataclass(frozen=True)
class Contest:
    """Contenders with equal settings.

    Attributes:
        name: Of the attack.
        settings: What all are given.
        contenders: By library; "ours" is the one that the others are compared with.
        images: How many images of the field they attack.
        rounds: How often each has its turn.
        radius: Linf radius that a success must keep; None where the least L2 distortion is wanted.
    """

    name: str
    settings: Mapping[str, Any]
    contenders: Callable[[Field], Mapping[str, Contender]]
    images: int = 200
    rounds: int = 5
    radius: float | None = None


def hold(contest: Contest, whole: Field, progress: Progress) -> Record:
    """Let each contender have its turns, and say how each did.

    Args:
        contest: The contest.
        whole: Its first images are attacked.
        progress: Told after every round.
    """
    ground = whole.head(contest.images)
    contenders = contest.contenders(ground)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    worked: dict[str, list[float]] = {name: [] for name in contenders}  # of CPU, which other work disturbs less
    results: dict[str, Tensor] = {}
    for turn in range(contest.rounds):
        progress(contest.name, turn, contest.rounds)
        for name, attack in contenders.items():
            start, before = time.perf_counter(), time.process_time()
            results[name] = attack()
            seconds[name].append(time.perf_counter() - start)
            worked[name].append(time.process_time() - before)
    progress(contest.name, contest.rounds, contest.rounds)
    rows = {
        name: {
            **_times("seconds", "median_s", "times_ours", seconds[name], seconds["ours"]),
            **_times("cpu_seconds", "cpu_median_s", "cpu_times_ours", worked[name], worked["ours"]),
            **_judged(ground, results[name], contest.radius),
        }
        for name in contenders
    }
    settings = {"images": len(ground.labels), "rounds": contest.rounds, **contest.settings}
    return {"attack": contest.name, "settings": settings, "rows": rows}


def _times(every: str, middle: str, ratio: str, spent: Sequence[float], ours: Sequence[float]) -> Record:
    return {
        every: [round(value, 4) for value in spent],
        middle: round(median(spent), 4),
        ratio: [round(value, 3) for value in ratio_of_medians(spent, ours)],
    }


def _judged(ground: Field, found: Tensor, radius: float | None) -> Record:
    """Success by asking the network again, and L2 distortion, in which a failure counts as infinite."""
    delta = (found - ground.images).flatten(1)
    with torch.no_grad():
        fooled = ground.net(found).argmax(1) != ground.labels
    fooled &= found.amin() >= -1e-6
    fooled &= found.amax() <= 1 + 1e-6
    if radius is not None:
        fooled &= delta.abs().amax(1) <= radius * (1 + 1e-4)
    distances = torch.where(fooled, delta.norm(dim=1), torch.inf).sort().values
    middle = float(distances[(len(distances) - 1) // 2])
    successes, n = int(fooled.sum()), len(fooled)
    return {
        "success": successes / n,
        "success_interval": list(wilson(successes, n)),
        "robust_accuracy": 1 - successes / n,
        "median_l2": None if radius is not None or middle == float("inf") else middle,
        "max_linf": float(delta.abs().max()),
    }
