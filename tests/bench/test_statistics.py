from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_infer.bench.floor import floor
from secure_infer.bench.statistics import median_or_none, ratio_of_medians, wilson


@pytest.mark.parametrize(  # values as in Newcombe, Statistics in Medicine 1998, table I
    ("successes", "n", "low", "high"), [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)]
)
def test_wilson_interval_equals_published_values(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500), st.data())
def test_wilson_interval_holds_the_share(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    low, high = wilson(successes, n)
    assert 0 <= low <= successes / n + 1e-12 and successes / n <= high + 1e-12 and high <= 1


def test_floor_divides_the_counted_cost_among_cores_and_names_what_it_skips() -> None:
    found = floor({"bootstraps": 64, "additions": 1000, "rounds": 3}, {"bootstraps": 0.02, "rounds": 0.001}, 2)
    assert found is not None
    assert found.seconds == pytest.approx(64 * 0.02 / 2 + 3 * 0.001), "rounds follow one another"
    assert found.skipped == ("additions",)
    assert found.cpu_ratio(5.0) is None, "a round waits, it does not compute"


def test_floor_in_cpu_time() -> None:
    found = floor({"bootstraps": 64}, {"bootstraps": 0.02}, 2)
    assert found is not None
    assert found.cpu_ratio(2.56) == pytest.approx(2.0)
    assert found.cpu_ratio(None) is None


@pytest.mark.parametrize("counts", [{}, {"additions": 5}, {"bootstraps": 0}])
def test_no_floor_without_a_cost(counts: dict[str, float]) -> None:
    assert floor(counts, {"bootstraps": 0.02}, 2) is None


def test_ratio_of_medians_ignores_outliers_and_brackets_the_ratio() -> None:
    rng = np.random.default_rng(0)
    slow, fast = rng.normal(3.0, 0.1, 50).tolist(), rng.normal(1.0, 0.05, 50).tolist()
    ratio, low, high = ratio_of_medians([*slow, 1000.0], fast)
    assert low < ratio < high
    assert low < 3 < high and high - low < 0.3


def test_median_of_what_is_there() -> None:
    assert median_or_none([None, 3, 1, None, 2]) == 2
    assert median_or_none([None]) is None
