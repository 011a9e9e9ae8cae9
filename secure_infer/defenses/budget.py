"""Query budgets: the one server-side defense that needs to read nothing but who asks, and how often.

Detectors that read the queries, such as PRADA in the file beside this one, are blind once these are ciphertexts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from secure_infer.attacks.base import Access, Target
from secure_infer.attacks.networks import NetworkTarget
from secure_infer.defenses.base import Data, Defense, Place
from secure_infer.errors import LimitExceeded, Problem, UsageError


class TokenBucket:
    """A bucket of tokens for each key: full at first, refilled steadily, a token a query.

    Args:
        capacity: Tokens of a full bucket.
        per_second: Tokens added a second.
        clock: Seconds that never run back.
    """

    def __init__(self, capacity: int, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        _require(capacity, per_second)
        self.capacity, self.per_second, self._clock = capacity, per_second, clock
        self._left: dict[str, tuple[float, float]] = {}

    def take(self, key: str, queries: int = 1) -> None:
        """Take tokens, all or none.

        Raises:
            LimitExceeded: Too few are left; it says when there will be enough, if ever.
        """
        now = self._clock()
        left, at = self._left.get(key, (float(self.capacity), now))
        left = min(self.capacity, left + (now - at) * self.per_second)
        # A billionth of a token covers the rounding of the clock's differences.
        if left + 1e-9 < queries:
            wait = (queries - left) / self.per_second if queries <= self.capacity and self.per_second else None
            later = f"wait {wait:.3g} s" if wait is not None else f"ask for at most {self.capacity} at once"
            raise LimitExceeded(
                "The query budget is used up.",
                [Problem("queries", f"{queries} wanted, {left:.0f} left.", f"{later}.")],
                retry_after=wait,
            )
        self._left[key] = (max(0.0, left - queries), now)
        if self.per_second:
            self._forget(now)

    def _forget(self, now: float) -> None:
        """Drop the keys whose buckets are full again, so that memory is bounded by those who ask."""
        full = [k for k, (left, at) in self._left.items() if left + (now - at) * self.per_second >= self.capacity]
        for key in full:
            del self._left[key]


@dataclass(frozen=True)
class QueryBudget(Defense):
    """Limit how often a key may ask; who holds several keys has several budgets.

    Attributes:
        capacity: Queries that a key may ask at once.
        per_second: Queries that it regains a second.
        keys: Keys that the adversary holds.
        seconds: How long the adversary goes on.
    """

    capacity: int = 1000
    per_second: float = 0.0
    keys: int = 1
    seconds: float = 0.0

    name: ClassVar[str] = "query-budget"
    places: ClassVar[frozenset[Place]] = frozenset({Place.SERVER_SIDE_COUNT})

    def __post_init__(self) -> None:
        _require(self.capacity, self.per_second)
        if self.keys < 1 or not 0 <= self.seconds < math.inf:
            what = f"{self.keys} keys for {self.seconds} s."
            raise UsageError("There is no such adversary.", [Problem("keys", what, "give one key or more.")])

    @property
    def queries(self) -> int:
        """All that the adversary may ask in its time."""
        return self.keys * (self.capacity + math.floor(self.per_second * self.seconds))

    def __call__(self, net: nn.Module, data: Data, *, access: Access = Access.LABEL, seed: int = 0) -> Target:
        """The network behind the budget; see the base class.

        Raises:
            UsageError: A white box, which nobody needs to query.
        """
        if access is Access.WHITE_BOX:
            what = "A white box is held by the adversary, who asks as often as it likes."
            raise UsageError("A budget can't guard a white box.", [Problem("access", what, "give LOGITS or less.")])
        return NetworkTarget(
            net, data.shape, name=f"budget {self.queries}", access=access, bounds=data.bounds, budget=self.queries
        )


def _require(capacity: int, per_second: float) -> None:
    if capacity < 1 or not 0 <= per_second < math.inf:
        what = f"{capacity}, {per_second} a second."
        raise UsageError("There is no such budget.", [Problem("capacity", what, "give one query or more.")])
