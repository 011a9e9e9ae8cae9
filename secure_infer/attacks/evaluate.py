"""The judge of attacks: asks the target again about what an attack returns, and measures the distortion itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from secure_infer.attacks.base import Attack, Meter, Norm, Target
from secure_infer.attacks.goal import Goal
from secure_infer.attacks.statistics import finite, median, wilson
from secure_infer.errors import InvalidInput, Problem

# How much farther than returned an image may be pushed from the original, to survive its rounding to pixels.
_PUSHES = (1.0, 1.01, 1.02, 1.05, 1.1, 1.2, 1.5)


@dataclass(frozen=True, eq=False)
class Distortion:
    """How far images lie from their originals; each of shape `(n,)`, in units of the inputs.

    Attributes:
        l0: Pixels changed (all channels of one place count once), or features where inputs are no images.
        l2: Euclidean distance.
        linf: Greatest change.
        rmse: `l2 / sqrt(features)`.
    """

    l0: Tensor
    l2: Tensor
    linf: Tensor
    rmse: Tensor

    @classmethod
    def between(cls, images: Tensor, originals: Tensor) -> Distortion:
        """Distances of `images` from `originals`, both `(n, *shape)`."""
        delta = (images - originals).double()
        changed = delta != 0
        if delta.ndim == 4:
            changed = changed.any(1)
        flat = delta.flatten(1)
        l2 = flat.norm(dim=1)
        return cls(changed.flatten(1).sum(1).double(), l2, flat.abs().amax(1), l2 / flat.shape[1] ** 0.5)

    def where(self, reached: Tensor, already: Tensor) -> Distortion:
        """The same with 0 where nothing had to be done and infinity where nothing was found."""
        kept = (torch.where(reached, d, torch.inf).masked_fill(already, 0) for d in vars(self).values())
        return Distortion(*kept)

    def of(self, norm: Norm) -> Tensor:
        """Distances in one norm, `(n,)`."""
        found: Tensor = getattr(self, norm)
        return found


@dataclass(frozen=True, eq=False)
class Outcome:
    """What an attack achieved, as the judge found it.

    Attributes:
        attack, settings: Its name and those of its fields that are plain values.
        target, access: What it attacked.
        goal, seed: What it was to reach, and the seed it got.
        levels: Steps of the pixels that images were rounded to; None if they were not.
        images: What it returned (the original where that reached the goal already), `(n, *shape)`.
        reached: Whether the target, asked again, answers as the goal wants, bool `(n,)`.
        already: Whether it did so before the attack, bool `(n,)`; these images were not attacked.
        distortion: Of each image: 0 where `already`, infinite where not `reached`.
        spent: What the attack took from the target; the judge's own questions are not in it.
    """

    attack: str
    settings: dict[str, Any]
    target: str
    access: str
    goal: str
    seed: int
    levels: int | None
    images: Tensor = field(repr=False)
    reached: Tensor = field(repr=False)
    already: Tensor = field(repr=False)
    distortion: Distortion = field(repr=False)
    spent: Meter

    @property
    def attacked(self) -> int:
        """Images that the attack got."""
        return int((~self.already).sum())

    @property
    def success(self) -> float:
        """Share of the attacked images on which it succeeded; 0 if it got none."""
        return self._succeeded / self.attacked if self.attacked else 0.0

    @property
    def robust_accuracy(self) -> float:
        """Share of all images that do not reach the goal even after the attack."""
        return float((~self.reached).double().mean()) if len(self.reached) else 0.0

    @property
    def _succeeded(self) -> int:
        return int((self.reached & ~self.already).sum())

    def median(self, norm: Norm = "l2") -> float:
        """Median distortion of the attacked images; a failure counts as infinite."""
        return float(median(self.distortion.of(norm)[~self.already]))

    def as_dict(self) -> dict[str, Any]:
        """A summary for JSON; None stands for an infinite median, and for one of no images."""
        n, attacked = len(self.reached), self.attacked
        return {
            "attack": self.attack,
            "settings": self.settings,
            "target": self.target,
            "access": self.access,
            "goal": self.goal,
            "seed": self.seed,
            "levels": self.levels,
            "n": n,
            "n_attacked": attacked,
            "success": self.success,
            "success_interval": list(wilson(self._succeeded, attacked)),
            "robust_accuracy": self.robust_accuracy,
            "robust_accuracy_interval": list(wilson(n - int(self.reached.sum()), n)),
            "median": {name: finite(float(median(d[~self.already]))) for name, d in vars(self.distortion).items()},
            "queries": self.spent.queries,
            "gradients": self.spent.gradients,
            "queries_per_image": self.spent.queries / attacked if attacked else 0.0,
            "gradients_per_image": self.spent.gradients / attacked if attacked else 0.0,
            "seconds": self.spent.seconds,
            "bytes": {"sent": self.spent.sent, "received": self.spent.received},
        }


def evaluate(
    target: Target,
    attack: Attack,
    images: Tensor,
    goal: Goal,
    seed: int = 0,
    *,
    levels: int | None = None,
    already: Tensor | None = None,
) -> Outcome:
    """Run an attack and judge what it returns.

    An image that leaves the bounds or holds no numbers is no success. Images that reach the goal before the attack are
    not attacked. The judge asks outside the target's meter and budget.

    Args:
        target: What to attack.
        attack: With its settings.
        images: Within the bounds, `(n, *shape)`.
        goal: What to reach.
        seed: Of the attack.
        levels: Round to this many steps of a pixel before judging (255 for 8-bit images): to the nearest, pushed
            slightly outward where that is needed, for a minimal attack; toward the original for one within a radius.
        already: Which images reach the goal as they are, bool `(n,)`, if that is known; asked otherwise.

    Raises:
        NotApplicable: The target gives less access than the attack needs.
        LimitExceeded: The target's budget ended before the attack did.
        InvalidInput: Images, labels, goal or levels do not fit, or the attack returned something of another shape.
    """
    if levels is not None and levels < 1:
        raise InvalidInput("There are no such pixels.", [Problem("levels", f"{levels}.", "give 1 or more.")])
    attack.check(target, images, goal)
    already = judge(target, images, goal) if already is None else already
    rest, wanted = images[~already], goal.select(~already)
    before = replace(target.meter)
    returned = attack(target, rest, wanted, seed=seed)
    spent = _difference(target.meter, before)
    good = _acceptable(attack, target, rest, returned)
    returned = torch.where(_spread(good, rest), returned, rest)
    if levels is not None:
        returned = _to_pixels(target, attack, rest, returned, wanted, levels)
    result, reached = images.clone(), already.clone()
    result[~already] = returned
    reached[~already] = judge(target, returned, wanted) & good
    return Outcome(
        attack.name,
        _settings(attack),
        target.name,
        target.access.name,
        goal.kind,
        seed,
        levels,
        result,
        reached,
        already,
        Distortion.between(result, images).where(reached, already),
        spent,
    )


def judge(target: Target, images: Tensor, goal: Goal) -> Tensor:
    """Which images reach the goal, asked outside the target's meter and budget. Bool, `(n,)`."""
    if not len(images):
        return torch.zeros(0, dtype=torch.bool, device=images.device)
    with _aside(target):
        answer = target.query(images)
    if goal.confidence is not None and answer.scores is not None:
        return goal.reached(answer.scores)
    return goal.reached_by_labels(answer.labels)


def to_pixels(images: Tensor, levels: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """The nearest images of `levels + 1` values a feature; bit-exact, as `k / levels` in the type of `images`."""
    return low + (images.sub(low).div(high - low).mul(levels).round() / levels) * (high - low)


@contextmanager
def _aside(target: Target) -> Iterator[None]:
    """Ask a target without the questions being counted or refused."""
    meter, target.meter = target.meter, Meter()
    try:
        yield
    finally:
        target.meter = meter


def _settings(attack: Attack) -> dict[str, Any]:
    """The fields of an attack that can be written down: no tensors, and nothing that it records into."""
    names: list[str] = [each.name for each in fields(attack)] if is_dataclass(attack) else []
    found = {name: getattr(attack, name) for name in names}
    return {name: value for name, value in found.items() if isinstance(value, str | int | float | tuple | None)}


def _difference(now: Meter, before: Meter) -> Meter:
    counted = ("queries", "gradients", "seconds", "sent", "received")
    return Meter(**{name: getattr(now, name) - getattr(before, name) for name in counted}, budget=now.budget)


def _acceptable(attack: Attack, target: Target, images: Tensor, returned: Tensor) -> Tensor:
    if returned.shape != images.shape:
        raise InvalidInput(
            f"The attack {attack.name} returned something else than images.",
            [Problem(attack.name, f"Shape {tuple(returned.shape)}.", f"return {tuple(images.shape)}.")],
        )
    inside = (returned >= target.bounds.low) & (returned <= target.bounds.high)  # false for NaN
    return inside.flatten(1).all(1)


def _to_pixels(target: Target, attack: Attack, images: Tensor, returned: Tensor, goal: Goal, levels: int) -> Tensor:
    low, high = target.bounds.low, target.bounds.high
    delta = returned - images
    if not attack.minimal:
        step = target.bounds.width / levels
        # A thousandth of a step covers the rounding of floats: a change of exactly k steps stays one.
        whole = (delta / step + delta.sign() * 1e-3).trunc() * step
        return to_pixels(target.bounds.clamp(images + whole), levels, low, high)
    best, open_ = to_pixels(returned, levels, low, high), torch.arange(len(images), device=images.device)
    for push in _PUSHES:
        tried = to_pixels(target.bounds.clamp(images[open_] + push * delta[open_]), levels, low, high)
        hit = judge(target, tried, goal.select(open_))
        best[open_[hit]], open_ = tried[hit], open_[~hit]
    return best


def _spread(mask: Tensor, like: Tensor) -> Tensor:
    """A mask `(n,)` in a shape that selects whole images of `like`."""
    return mask.view(-1, *[1] * (like.ndim - 1))
