"""The floor: the time that the primitives of one inference alone would take, with every usable core busy."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Floor:
    """The least time for the counted primitives.

    Attributes:
        seconds: Of wall time for one image.
        primitives_s: Measured CPU seconds of one of each counted primitive.
        skipped: Counts that have no measured cost, so that the true floor lies higher.
        cores: Cores that share the work.
    """

    seconds: float
    primitives_s: Mapping[str, float]
    skipped: tuple[str, ...]
    cores: int

    def as_dict(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return asdict(self)


def floor(counts: Mapping[str, float], primitives: Mapping[str, float], cores: int) -> Floor | None:
    """`sum over primitives of count * cost / cores`; None if nothing counted has a cost.

    Args:
        counts: Primitive operations of one image.
        primitives: CPU seconds of one of each.
        cores: Cores that may run at once.
    """
    known = {name: primitives[name] for name in counts if name in primitives}
    seconds = sum(counts[name] * cost for name, cost in known.items()) / cores
    if seconds <= 0:
        return None
    return Floor(seconds, known, tuple(sorted(counts.keys() - known.keys())), cores)


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
