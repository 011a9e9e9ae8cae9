"""The few statistics that records and reports need: medians, Wilson intervals, bootstrap ratios of medians."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

import numpy as np

Z_95 = 1.959963984540054


def wilson(successes: int, n: int, z: float = Z_95) -> tuple[float, float]:
    """Score interval of a proportion (E. B. Wilson, JASA 1927): sound at small n and near 0 and 1.

    Args:
        successes: Trials that succeeded.
        n: Trials.
        z: Normal quantile; the default gives 95 %.
    """
    if n == 0:
        return 0.0, 1.0
    share, spread = successes / n, z * z / n
    center = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return max(0.0, center - half), min(1.0, center + half)


def median_or_none(values: Sequence[float | None]) -> float | None:
    """The median of the values that are there."""
    present = [value for value in values if value is not None]
    return float(median(present)) if present else None


def ratio_of_medians(
    numerator: Sequence[float], denominator: Sequence[float], *, draws: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """`median(numerator) / median(denominator)` and its 95 % percentile-bootstrap interval.

    Args:
        numerator: Times of one contender, seconds.
        denominator: Times of the other.
        draws: Bootstrap resamples.
        seed: Of the resampling.

    Returns:
        The ratio, its lower and its upper bound.
    """
    rng = np.random.default_rng(seed)
    top, bottom = (
        np.median(rng.choice(np.asarray(values), (draws, len(values))), axis=1) for values in (numerator, denominator)
    )
    low, high = np.percentile(top / bottom, [2.5, 97.5])
    return float(median(numerator) / median(denominator)), float(low), float(high)
