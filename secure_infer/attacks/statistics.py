"""Intervals of what attacks and defenses measure: shares (Wilson, Clopper-Pearson) and medians (bootstrap)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from secure_infer.errors import InvalidInput, Problem

Interval = tuple[float, float]


def quantile_of_normal(probability: float) -> float:
    """The value that a standard normal variable stays below with this probability."""
    return float(torch.special.ndtri(torch.tensor(probability, dtype=torch.float64)))


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Score interval of a share (E. B. Wilson, JASA 1927): sound at small `n` and near 0 and 1."""
    if n == 0:
        return 0.0, 1.0
    z = quantile_of_normal((1 + level) / 2)
    share, spread = successes / n, z * z / n
    center = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return max(0.0, center - half), min(1.0, center + half)


def clopper_pearson_lower(successes: int, n: int, alpha: float = 0.001) -> float:
    """A probability that is no more than the true one, with confidence `1 - alpha` (Clopper, Pearson, Biometrika 1934).

    The exact binomial tail `P(X >= successes)` is solved for `alpha` by bisection; no beta quantile is needed.

    Raises:
        InvalidInput: Counts that do not fit each other, or no level between 0 and 1.
    """
    if not 0 <= successes <= n or n < 1 or not 0 < alpha < 1:
        raise InvalidInput(
            "There is no such binomial bound.",
            [Problem("counts", f"{successes} of {n} at {alpha}.", "give 0 <= successes <= n and 0 < alpha < 1.")],
        )
    if successes == 0:
        return 0.0
    counts = torch.arange(successes, n + 1, dtype=torch.float64)
    ways = math.lgamma(n + 1) - torch.lgamma(counts + 1) - torch.lgamma(n - counts + 1)
    low, high = 0.0, successes / n
    for _ in range(60):
        middle = (low + high) / 2
        tail = torch.logsumexp(ways + counts * math.log(middle) + (n - counts) * math.log1p(-middle), 0)
        low, high = (low, middle) if float(tail) > math.log(alpha) else (middle, high)
    return low


def median(values: Tensor) -> Tensor:
    """Median along the last axis, the mean of the two middle values; infinite ones sort last. Shape `(...)`."""
    ordered, n = values.sort(-1).values, values.shape[-1]
    if n == 0:
        return values.new_full(values.shape[:-1], torch.nan)
    return (ordered[..., (n - 1) // 2] + ordered[..., n // 2]) / 2


def median_interval(values: Tensor, *, level: float = 0.95, draws: int = 1000, seed: int = 0) -> Interval:
    """Percentile-bootstrap interval of a median.

    Args:
        values: Shape `(n,)`; infinite ones are allowed.
        level: Its confidence.
        draws: Resamples.
        seed: Of the resampling.
    """
    if not len(values):
        return math.nan, math.nan
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(len(values), (draws, len(values)), generator=generator)
    ordered = median(values.detach().cpu()[index]).sort().values
    low, high = int(draws * (1 - level) / 2), math.ceil(draws * (1 + level) / 2) - 1
    return float(ordered[low]), float(ordered[high])


def finite(value: float) -> float | None:
    """None for what is infinite or no number: JSON has neither."""
    return value if math.isfinite(value) else None
