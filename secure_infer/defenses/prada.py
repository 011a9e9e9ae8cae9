"""PRADA: notice the theft of a model by how far a client's queries lie apart. Only who reads the queries can."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from secure_infer.attacks.base import Access, Answer
from secure_infer.attacks.networks import NetworkTarget
from secure_infer.defenses.base import Data, Defense, Place
from secure_infer.errors import LimitExceeded, Problem, UsageError

_OUTLIER = 3.0


class Watch:
    """What is known of one client's queries: distances between them, which are near to normal in honest ones.

    A query's distance is that to the nearest of its class's earlier queries, of which only those are kept that lie
    farther from the rest than a threshold that grows with them (algorithm 3 of the paper).

    Args:
        threshold: Of the Shapiro-Wilk statistic of these distances, below which they are deemed an attack's.
        least: Distances that must be known before anybody is suspected.
    """

    def __init__(self, threshold: float = 0.95, least: int = 100) -> None:
        self.threshold, self.least = threshold, least
        self.distances: list[float] = []
        self._kept: dict[int, Tensor] = {}
        self._apart: dict[int, list[float]] = {}
        self._limit: dict[int, float] = {}

    def sees(self, x: Tensor, label: int) -> bool:
        """Take note of a query, one image of any shape, and of its class; whether it raises an alarm."""
        row = x.reshape(1, -1)
        if label not in self._kept:
            self._kept[label], self._apart[label], self._limit[label] = row, [0.0], 0.0
        else:
            distance = float(torch.linalg.vector_norm(self._kept[label] - row, dim=1).amin())
            self.distances.append(distance)
            if distance > self._limit[label]:
                self._kept[label] = torch.cat([self._kept[label], row])
                self._apart[label].append(distance)
                apart = torch.tensor(self._apart[label])
                self._limit[label] = max(self._limit[label], float(apart.mean() - apart.std(correction=0)))
        return len(self.distances) > self.least and self.normality < self.threshold

    @property
    def normality(self) -> float:
        """The Shapiro-Wilk statistic of the distances, outliers left out."""
        found = torch.tensor(self.distances, dtype=torch.float64)
        middle, spread = found.mean(), found.std(correction=0)
        return shapiro_wilk(found[(found - middle).abs() <= _OUTLIER * spread])


def shapiro_wilk(values: Tensor) -> float:
    """How normal values look: 1 for a normal sample, less for others (Shapiro and Wilk 1965, weights by Royston 1995).

    Args:
        values: 12 or more, `(n,)`. If all are equal, they are as far from normal as can be: 0.
    """
    n, ordered = len(values), values.double().sort().values
    spread = (ordered - ordered.mean()).square().sum()
    if not spread > 0:
        return 0.0
    ranks = torch.arange(1, n + 1, dtype=torch.float64, device=values.device)
    scores = torch.special.ndtri((ranks - 0.375) / (n + 0.25))
    square, u = scores.square().sum(), n**-0.5
    last = -2.706056 * u**5 + 4.434685 * u**4 - 2.071190 * u**3 - 0.147981 * u**2 + 0.221157 * u
    next_to_last = -3.582633 * u**5 + 5.682633 * u**4 - 1.752461 * u**3 - 0.293762 * u**2 + 0.042981 * u
    ends = torch.stack([next_to_last + scores[-2] / square.sqrt(), last + scores[-1] / square.sqrt()])
    inner = (square - 2 * scores[-2:].square().sum()) / (1 - 2 * ends.square().sum())
    weights = torch.cat([-ends.flip(0), scores[2:-2] / inner.sqrt(), ends])
    return float((weights @ ordered) ** 2 / spread)


class Watched(NetworkTarget):
    """A network behind a watch, which sees every query and its class.

    Attributes:
        alarm_at: Number of the query that first raised the alarm, from 1; None while there is none.
    """

    def __init__(self, net: nn.Module, data: Data, access: Access, watch: Watch, block: bool) -> None:
        super().__init__(net, data.shape, name="PRADA", access=access, bounds=data.bounds)
        self.alarm_at: int | None = None
        self._watch, self._block, self._seen = watch, block, 0

    def _answer(self, x: Tensor) -> Answer:
        found = super()._answer(x)
        for image, label in zip(x.cpu(), found.labels.tolist(), strict=True):
            self._seen += 1
            if self._watch.sees(image, label) and self.alarm_at is None:
                self.alarm_at = self._seen
        if self._block and self.alarm_at is not None:
            raise LimitExceeded(
                "This client is deemed to steal the model.",
                [Problem("queries", f"The alarm was raised at query {self.alarm_at}.", "ask the model's owner.")],
            )
        return found


@dataclass(frozen=True)
class Prada(Defense):
    """PRADA (Juuti, Szyller, Marchal, Asokan 2019): a client whose queries lie strangely far apart is refused.

    It reads each query and its class, so a server of ciphertexts can't run it: `query-budget` is what is left.

    Attributes:
        threshold: Of the Shapiro-Wilk statistic, below which the distances are deemed an attack's.
        least: Distances that must be known before anybody is suspected.
        block: Refuse the client's queries from the alarm on; otherwise only note the alarm.
    """

    threshold: float = 0.95
    least: int = 100
    block: bool = True

    name: ClassVar[str] = "prada"
    places: ClassVar[frozenset[Place]] = frozenset({Place.SERVER_SIDE_PLAINTEXT})

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1 or self.least < 12:
            what = f"Threshold {self.threshold}, {self.least} distances."
            raise UsageError(
                "There is no such watch.", [Problem("prada", what, "give 0 < threshold < 1, and 12 distances or more.")]
            )

    def __call__(self, net: nn.Module, data: Data, *, access: Access = Access.LABEL, seed: int = 0) -> Watched:
        """The network behind the watch, for one client; see the base class.

        Raises:
            UsageError: A white box, which nobody needs to query.
        """
        if access is Access.WHITE_BOX:
            what = "A white box is held by the adversary, whose queries nobody sees."
            raise UsageError("Nobody can watch a white box.", [Problem("access", what, "give LOGITS or less.")])
        return Watched(net, data, access, Watch(self.threshold, self.least), self.block)
