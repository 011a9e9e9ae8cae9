"""What is suspicious about a calibration set: noise instead of data, values that hardly move, sums that it misses.

Ranges come from the calibration set, and a sum outside its range gives a wrong result without notice; so what does not
look like data is said in the log and in the program's parameters.
"""

from __future__ import annotations

import logging

import numpy as np

from secure_infer.backends.tfhe import ranges
from secure_infer.graph.graph import Graph
from secure_infer.graph.interpret import trace
from secure_infer.graph.types import Integers

_LOG = logging.getLogger(__name__)
_FEATURES = 256
_MOST = 512
_CLIPPED = 1e-4
"""Share of sums outside the range of the other half of the set that is worth a word: 5 standard deviations hold all but
6e-7 of a normal distribution."""


def review(graph: Graph, x: Integers) -> tuple[str, ...]:
    """Sentences about what is wrong with a calibration set, logged as warnings; none if it looks like data.

    Args:
        graph: The network.
        x: Integers, shape `(n, *input shape)`.
    """
    checks = (_few(x), _narrow(graph, x), _noise(x), _clipped(graph, x))
    found = tuple(text for text in checks if text)
    for text in found:
        _LOG.warning("calibration: %s", text)
    return found


def _few(x: Integers) -> str:
    if len(x) >= ranges.FEWEST_SAMPLES:
        return ""
    return (
        f"{len(x)} inputs say too little about rare sums, so worst-case ranges are used, which cost more; "
        f"pass {ranges.FEWEST_SAMPLES} or more."
    )


def _narrow(graph: Graph, x: Integers) -> str:
    kind, used = graph.input, int(x.max() - x.min())
    if 2 * used >= kind.high - kind.low:
        return ""
    return (
        f"its values lie in [{x.min()}, {x.max()}], less than half of the input's range [{kind.low}, {kind.high}]; "
        "pass inputs like those to come."
    )


def _noise(x: Integers) -> str:
    """Real features have means of their own, or go together; those of noise do neither."""
    rows = x.reshape(len(x), -1)[:, :_FEATURES].astype(np.float64)
    rows = rows[:, rows.std(axis=0) > 0]
    n, features = rows.shape
    if n < 32 or features < 16:
        return ""
    spread = float(rows.mean(axis=0).var() / (rows.var(axis=0).mean() / n))
    squares = np.square(np.corrcoef(rows, rowvar=False))
    together = float((squares.sum() - features) / (features * (features - 1)) * n)
    if spread > 2 or together > 1.5:
        return ""
    return (
        "it looks like random noise: its features share one mean and are independent of one another. Ranges measured "
        "on it do not fit real inputs; pass some of those."
    )


def _clipped(graph: Graph, x: Integers) -> str:
    """How many sums of one half leave the range that the other half alone would set."""
    x = x[: 2 * _MOST]
    half = len(x) // 2
    if half < ranges.FEWEST_SAMPLES:
        return ""
    reach = ranges.calibrated(graph, x[:half], ranges.worst_case(graph))
    values = trace(graph, x[half:])
    shares = {name: float(np.mean((values[name] < r.low) | (values[name] > r.high))) for name, r in reach.items()}
    name, share = max(shares.items(), key=lambda item: item[1])
    if share <= _CLIPPED:
        return ""
    return (
        f"too narrow: {share:.2%} of the values of {name} in its second half leave the range that its first half sets. "
        'Pass more inputs, shuffled, or compile with ranges="worst_case".'
    )
