"""The run `post-training`: the drop in accuracy between pairs, and a small run whose record is whole."""

import json

import numpy as np
import pytest

from secure_infer.bench import post_training


def test_a_drop_counts_images_that_changed_sides():
    before = np.arange(100) < 90
    after = before ^ (np.arange(100) < 3) ^ (np.arange(100) == 99)  # three lost, one won
    row = post_training.compared(before, after)
    assert (row["accuracy_float"], row["accuracy"], row["drop"]) == (0.9, 0.88, pytest.approx(0.02))
    low, high = row["drop_interval"]
    assert low == pytest.approx(0.02 - 1.96 * np.sqrt(0.04 - 0.02**2) / 10, abs=1e-4)
    assert high == pytest.approx(0.04 - low)
    assert post_training.compared(before, before)["drop_interval"] == [0, 0]


def test_digits_lose_at_most_a_point_from_four_bits_on(monkeypatch):
    monkeypatch.setattr(post_training, "MODELS", post_training.MODELS[:1])
    record = post_training.run()
    assert json.loads(json.dumps(record)) == record
    rows = {row["bits"]: row for row in record["rows"]}
    assert tuple(rows) == post_training.BITS and {row["n"] for row in rows.values()} == {445}
    assert max(rows[bits]["drop"] for bits in (4, 5, 6)) <= 0.01
    assert rows[8]["agreement"] >= 0.99
