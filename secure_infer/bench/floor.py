"""The floor: the time that the primitives of one inference alone would take, with every usable core busy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from secure_infer.backends.parties.network import NETWORKS

if TYPE_CHECKING:
    from secure_infer.bench.cases import Entry
    from secure_infer.bench.contender import Sample

SEQUENTIAL = frozenset({"rounds", "requests"})
"""Primitives that wait for one another, whatever the number of cores."""
ALIKE = frozenset({"comparisons", "nodes", "multiplications"})
"""Primitives that each of two servers, on a core of its own, has to do all of."""


@dataclass(frozen=True)
class Floor:
    """The least time for the counted primitives.

    Attributes:
        seconds: Of wall time for one image.
        cpu_seconds: Of CPU time for one image: the same on one core.
        primitives_s: Measured CPU seconds of one of each counted primitive.
        skipped: Counts that have no measured cost, so that the true floor lies higher.
        network_s: Seconds of it that messages of one image take over a network between hosts.
        cores: Cores that share the work.
    """

    seconds: float
    cpu_seconds: float
    primitives_s: Mapping[str, float]
    skipped: tuple[str, ...]
    cores: int
    network_s: float = 0.0

    def cpu_ratio(self, cpu_s: float | None) -> float | None:
        """CPU seconds of a run over those of its primitives: on a busy machine fairer than wall time.

        None where primitives are counted that wait rather than compute.
        """
        return None if not cpu_s or SEQUENTIAL & self.primitives_s.keys() else cpu_s / self.cpu_seconds

    def as_dict(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return asdict(self)


def floor(
    counts: Mapping[str, float], primitives: Mapping[str, float], cores: int, network_s: float = 0.0
) -> Floor | None:
    """`sum over primitives of count * cost / cores`, undivided if `SEQUENTIAL` or `ALIKE`; None if nothing has a cost.

    Args:
        counts: Primitive operations of one image.
        primitives: CPU seconds of one of each.
        cores: Cores that may run at once.
        network_s: Seconds that messages take over a network between hosts; they come on top.
    """
    known = {name: primitives[name] for name in counts if name in primitives}
    costs = {name: counts[name] * cost for name, cost in known.items()}
    seconds = sum(cost / (1 if name in SEQUENTIAL | ALIKE else cores) for name, cost in costs.items())
    if seconds <= 0:
        return None
    skipped = tuple(sorted(counts.keys() - known.keys()))
    return Floor(seconds + network_s, sum(costs.values()), known, skipped, cores, network_s)


def waiting(entry: Entry, samples: Sequence[Sample]) -> float:
    """Least seconds that the messages of a request take over the entry's network; zero without one.

    One way from party to party for each round, and from the client and back; both directions have the bandwidth.
    """
    network = NETWORKS[entry.network]
    if network is None or not samples:
        return 0.0
    statistics, sizes = samples[-1].statistics, samples[-1].bytes
    between = network.seconds(statistics.get("rounds", 0), statistics.get("bytes_between_parties", 0) / 2)
    return between + network.seconds(2, sum(sizes.values()))
