"""The seam of the attacks: a Target answers and counts; an Attack asks, and can't grade itself."""

from __future__ import annotations

import abc
import enum
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from secure_infer.attacks.goal import Goal
from secure_infer.errors import InvalidInput, LimitExceeded, NotApplicable, Problem

Norm = Literal["l2", "linf", "l0"]
Loss = Callable[[Tensor], Tensor]


class Access(enum.IntEnum):
    """How much of a model an adversary sees; each level includes those below."""

    LABEL = 0
    PROBABILITIES = 1
    LOGITS = 2
    WHITE_BOX = 3


@dataclass(frozen=True)
class Bounds:
    """The least and the greatest value that an input's features may take.

    Raises:
        InvalidInput: They are not finite, or leave nothing between them.
    """

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.high < math.inf:
            raise InvalidInput(
                "Such bounds hold nothing.", [Problem("bounds", f"[{self.low}, {self.high}].", "give low below high.")]
            )

    @property
    def width(self) -> float:
        """Distance between them."""
        return self.high - self.low

    def clamp(self, x: Tensor) -> Tensor:
        """`x` with each value moved into the bounds."""
        return x.clamp(self.low, self.high)


@dataclass
class Meter:
    """What an adversary has spent on a target.

    Attributes:
        queries: Inputs answered (a forward pass of one image is one query).
        gradients: Inputs through which a gradient was taken.
        seconds: Time the target took.
        sent, received: Bytes to and from it, where there is a wire.
        budget: Queries allowed; None if there is no limit.
    """

    queries: int = 0
    gradients: int = 0
    seconds: float = 0.0
    sent: int = 0
    received: int = 0
    budget: int | None = None

    def spend(self, queries: int) -> None:
        """Count queries before they are asked.

        Raises:
            LimitExceeded: They do not fit into the budget; none is counted.
        """
        if self.budget is not None and self.queries + queries > self.budget:
            raise LimitExceeded(
                f"The query budget of {self.budget} is used up.",
                [Problem("target", f"{self.queries} asked, {queries} more wanted.", "ask less, or raise the budget.")],
            )
        self.queries += queries

    @contextmanager
    def clock(self) -> Iterator[None]:
        """Count the time that passes inside."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start


@dataclass(frozen=True)
class Answer:
    """What a target says of a batch.

    Attributes:
        labels: Classes, int64, `(n,)`.
        scores: `(n, classes)`: logits, or log-probabilities, or None, by the target's access.
    """

    labels: Tensor
    scores: Tensor | None = None


class Target(abc.ABC):
    """A model as an adversary meets it.

    Args:
        name: What it is, for tables.
        access: What it lets an adversary see.
        shape: Shape of one input.
        classes: Number of its classes.
        bounds: Of its inputs.
        budget: Queries that it answers; None for no limit.
    """

    def __init__(
        self,
        name: str,
        access: Access,
        shape: tuple[int, ...],
        classes: int,
        bounds: Bounds = Bounds(),
        budget: int | None = None,
    ) -> None:
        if budget is not None and budget <= 0:
            raise InvalidInput("No query is allowed.", [Problem("budget", f"{budget}.", "allow one query or more.")])
        self.name, self.access, self.shape, self.classes, self.bounds = name, access, shape, classes, bounds
        self.meter = Meter(budget=budget)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.access.name}, {self.shape} -> {self.classes})"

    def query(self, x: Tensor) -> Answer:
        """Ask for a batch, shape `(n, *shape)`; counted.

        Raises:
            LimitExceeded: The budget does not allow it.
        """
        self.meter.spend(len(x))
        with self.meter.clock(), torch.no_grad():
            return self._answer(x)

    def differentiate(self, x: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
        """Logits of a batch and the gradient of each image's loss.

        Args:
            x: Shape `(n, *shape)`.
            loss: From logits `(n, classes)` to one value an image, `(n,)`.

        Returns:
            Logits `(n, classes)`, detached, and gradients `(n, *shape)`.

        Raises:
            NotApplicable: The target is no white box.
            LimitExceeded: The budget does not allow it.
        """
        self.require(Access.WHITE_BOX, "a gradient")
        self.meter.spend(len(x))
        self.meter.gradients += len(x)
        with self.meter.clock(), torch.enable_grad():  # type: ignore[no-untyped-call]
            x = x.detach().requires_grad_()
            logits = self._logits(x)
            (gradient,) = torch.autograd.grad(loss(logits).sum(), x)
        return logits.detach(), gradient

    def jacobian(self, x: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of a batch and the gradients of some of them; counts a gradient an image and class.

        Args:
            x: Shape `(n, *shape)`.
            classes: Which logits, int64, shape `(n, k)`.

        Returns:
            Logits `(n, classes)`, detached, and gradients `(n, k, *shape)`.

        Raises:
            NotApplicable: The target is no white box.
            LimitExceeded: The budget does not allow it.
        """
        self.require(Access.WHITE_BOX, "a gradient")
        self.meter.spend(len(x))
        self.meter.gradients += classes.numel()
        with self.meter.clock(), torch.enable_grad():  # type: ignore[no-untyped-call]
            x = x.detach().requires_grad_()
            logits = self._logits(x)
            chosen = logits.gather(1, classes).sum(0)
            rows = [torch.autograd.grad(value, x, retain_graph=True)[0] for value in chosen]
        return logits.detach(), torch.stack(rows, 1)

    def require(self, access: Access, wanted: str) -> None:
        """Refuse what this target's access does not give.

        Raises:
            NotApplicable: It gives less.
        """
        if self.access < access:
            raise NotApplicable(
                f"{wanted} needs {access.name} access.",
                [Problem(self.name, f"It gives {self.access.name}.", "attack another form, or use another attack.")],
            )

    @abc.abstractmethod
    def _answer(self, x: Tensor) -> Answer:
        """The answer, uncounted, at the level of `access`."""

    def _logits(self, x: Tensor) -> Tensor:
        """Differentiable logits; only white boxes have them."""
        raise NotImplementedError


class Attack(abc.ABC):
    """A way to disturb images; its settings are the fields of a frozen dataclass.

    Attributes:
        name: As the command line and the tables call it.
        access: The least that it needs of a target.
        norms: In which it measures its disturbances.
        goals: What it can aim at: "untargeted", "targeted", "confidence".
        minimal: Whether it looks for the least disturbance; otherwise it stays within a radius.
    """

    name: ClassVar[str]
    access: ClassVar[Access]
    norms: ClassVar[frozenset[Norm]]
    goals: ClassVar[frozenset[str]] = frozenset({"untargeted"})
    minimal: ClassVar[bool]

    def __call__(self, target: Target, images: Tensor, goal: Goal, *, seed: int = 0) -> Tensor:
        """Disturb images.

        Args:
            target: What to attack.
            images: Within the target's bounds, `(n, *shape)`.
            goal: What to reach.
            seed: Of the attack's own randomness.

        Returns:
            One image for each, `(n, *shape)`, within the bounds: the best found where it succeeded; where it did not,
            the image itself from a minimal attack, the last attempt from one within a radius.

        Raises:
            NotApplicable: The target gives less access than needed.
            InvalidInput: Images, labels or goal do not fit.
        """
        self.check(target, images, goal)
        if not len(images):
            return images.clone()
        generator = torch.Generator(images.device).manual_seed(seed)
        return self._run(target, images.detach(), goal, generator)

    def check(self, target: Target, images: Tensor, goal: Goal) -> None:
        """Refuse, before anything is asked, what this attack can't do.

        Raises:
            NotApplicable: The target gives less access than needed.
            InvalidInput: Images, labels or goal do not fit; all that is wrong is listed.
        """
        target.require(self.access, f"The attack {self.name}")
        _require_fit(self, target, images, goal)

    @abc.abstractmethod
    def _run(self, target: Target, images: Tensor, goal: Goal, generator: torch.Generator) -> Tensor:
        """The attack itself; its arguments are checked."""


def _require_fit(attack: Attack, target: Target, images: Tensor, goal: Goal) -> None:
    problems = []
    if tuple(images.shape[1:]) != target.shape:
        problems.append(Problem("images", f"Shape {tuple(images.shape)}.", f"give (n, {target.shape}) as a batch."))
    if not images.is_floating_point():
        problems.append(Problem("images", f"Type {images.dtype}.", "give floating-point images."))
    elif len(images) and not (images.amin() >= target.bounds.low and images.amax() <= target.bounds.high):
        held = f"[{target.bounds.low:g}, {target.bounds.high:g}]"
        problems.append(Problem("images", f"Values outside the bounds {held}, or not numbers.", "scale the images."))
    for where, labels in (("labels", goal.labels), ("targets", goal.targets)):
        if labels is not None:
            problems += _label_problems(where, labels, len(images), target.classes)
    if goal.confidence is not None and not 0 < goal.confidence < 1:
        problems.append(Problem("confidence", f"{goal.confidence}.", "give a probability between 0 and 1."))
    if goal.kind not in attack.goals:
        problems.append(Problem("goal", f"{attack.name} can't aim at {goal.kind}.", f"use {sorted(attack.goals)}."))
    if problems:
        raise InvalidInput(f"The attack {attack.name} can't start.", problems)


def _label_problems(where: str, labels: Tensor, count: int, classes: int) -> list[Problem]:
    if labels.dtype != torch.int64 or tuple(labels.shape) != (count,):
        found = f"{labels.dtype} of shape {tuple(labels.shape)}."
        return [Problem(where, found, f"give int64 of shape ({count},), one for each image.")]
    if count and not (labels.amin() >= 0 and labels.amax() < classes):
        return [Problem(where, f"Classes outside 0 to {classes - 1}.", "check the labels, or the model's outputs.")]
    return []
