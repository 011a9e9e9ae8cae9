"""What an attack wants of each image: a wrong class, one chosen class, or little confidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Goal:
    """What counts as success, for a batch of images.

    Attributes:
        labels: True classes, int64, shape `(n,)`.
        targets: Classes to reach instead, int64, shape `(n,)`; None if any wrong class will do.
        confidence: Reduce the probability of the true class below this, whatever the label; None for a goal on labels.
    """

    labels: Tensor
    targets: Tensor | None = None
    confidence: float | None = None

    @property
    def kind(self) -> str:
        """`"untargeted"`, `"targeted"` or `"confidence"`."""
        if self.confidence is not None:
            return "confidence"
        return "untargeted" if self.targets is None else "targeted"

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, index: Tensor) -> Goal:
        """The same goal for some of the images (a mask or indices)."""
        return Goal(self.labels[index], None if self.targets is None else self.targets[index], self.confidence)

    def repeat(self, times: int) -> Goal:
        """The same goal for `times` copies of the batch, one after the other (restarts as one batch)."""
        targets = None if self.targets is None else self.targets.repeat(times)
        return Goal(self.labels.repeat(times), targets, self.confidence)

    @staticmethod
    def joined(goals: Sequence[Goal]) -> Goal:
        """Goals of one kind as one, for copies of a batch, each with a goal of its own, one after the other."""
        targets = [goal.targets for goal in goals if goal.targets is not None]
        labels = torch.cat([goal.labels for goal in goals])
        return Goal(labels, torch.cat(targets) if targets else None, goals[0].confidence)

    def to(self, device: torch.device | str) -> Goal:
        """The same goal on another device."""
        return Goal(self.labels.to(device), None if self.targets is None else self.targets.to(device), self.confidence)

    def reached_by_labels(self, labels: Tensor) -> Tensor:
        """Which answers, given as classes, reach the goal; a goal on confidence is reached by a wrong class alone."""
        return labels != self.labels if self.targets is None else labels == self.targets

    def reached(self, logits: Tensor) -> Tensor:
        """Which answers, given as logits or log-probabilities `(n, classes)`, reach the goal. Bool, `(n,)`."""
        if self.confidence is not None:
            return logits.softmax(1).gather(1, self.labels[:, None]).squeeze(1) < self.confidence
        return self.reached_by_labels(logits.argmax(1))

    def margin(self, logits: Tensor) -> Tensor:
        """How far each answer is from success: positive before the decision boundary, negative behind it. `(n,)`.

        The true class against the best other one; under a target, the best other one against the target; under a goal
        on confidence, the log-odds of the true class above those asked for.
        """
        if self.confidence is not None:
            return _log_odds(logits, self.labels) - _log_odds_of(self.confidence)
        wanted, sign = (self.labels, 1.0) if self.targets is None else (self.targets, -1.0)
        chosen = logits.gather(1, wanted[:, None])
        others = logits.scatter(1, wanted[:, None], -torch.inf)
        return sign * (chosen.squeeze(1) - others.amax(1))


def _log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    chosen = logits.gather(1, labels[:, None])
    return chosen.squeeze(1) - logits.scatter(1, labels[:, None], -torch.inf).logsumexp(1)


def _log_odds_of(probability: float) -> float:
    return float(torch.logit(torch.tensor(probability, dtype=torch.float64)))
