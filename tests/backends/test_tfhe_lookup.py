"""Planned look-ups against the functions that they stand for."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_infer.backends.tfhe.evaluate import look_up
from secure_infer.backends.tfhe.lookup import LookUp, function, steps
from secure_infer.backends.tfhe.ranges import Range


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 400), st.integers(0, 6), st.booleans())
@settings(max_examples=300, deadline=None)
def test_planned_steps_count_thresholds(seed, levels, width, spacing, approximate):
    rng = np.random.default_rng(seed)
    low = rng.integers(-200, 200, 3)
    reach = Range(low, low + rng.integers(0, width + 1, 3))
    gaps = (rng.integers(0, 9, (levels, 3)) if spacing == 0 else np.ones((levels, 3), dtype=int)) << spacing
    thresholds = np.cumsum(gaps, axis=0) + low + rng.integers(-20, width, 3)
    plan = steps(thresholds, reach, 4 if approximate else None)
    assert plan is not None
    for t in np.linspace(reach.low, reach.high, 60).astype(np.int64):
        np.testing.assert_array_equal(look_up(plan, t[None])[0], (t >= thresholds).sum(axis=0))


@given(st.integers(0, 2**32 - 1), st.integers(1, 200))
@settings(max_examples=100, deadline=None)
def test_planned_functions_are_their_tables(seed, entries):
    rng = np.random.default_rng(seed)
    start = int(rng.integers(-300, 300))
    values = rng.integers(0, 9, (entries, 2))
    plan = function(values, Range(np.full(2, start), np.full(2, start + entries - 1)))
    assert isinstance(plan, LookUp)
    for i in range(entries):
        np.testing.assert_array_equal(look_up(plan, np.full((1, 2), start + i))[0], values[i])
