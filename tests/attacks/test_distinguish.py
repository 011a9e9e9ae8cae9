"""Messages told apart: a coin where nothing leaks, caught where one bit, a length or a time does."""

from __future__ import annotations

import numpy as np
import pytest

from secure_infer.attacks.distinguish import distinguish, distinguish_messages, leak_bit
from secure_infer.errors import InvalidInput

INPUTS = np.arange(120) % 2


def random_messages(seed: int, size: int = 300) -> list[bytes]:
    rng = np.random.default_rng(seed)
    return [rng.bytes(size + int(rng.integers(3))) for _ in INPUTS]


def test_random_messages_are_a_coin_and_one_bit_is_caught_anywhere() -> None:
    verdicts = [distinguish_messages(random_messages(seed), INPUTS, seed=seed) for seed in range(20)]
    # A 95 % interval lies above one half for one in forty; four of twenty would be one in two thousand.
    assert sum(verdict.caught for verdict in verdicts) <= 3
    assert 0.4 < np.mean([verdict.accuracy for verdict in verdicts]) < 0.6
    for place in (0, 150, 299):
        leaking = [leak_bit(m, bool(b), place) for m, b in zip(random_messages(place), INPUTS, strict=True)]
        assert distinguish_messages(leaking, INPUTS).caught


def test_a_bit_that_leaks_now_and_then_is_caught() -> None:
    rng = np.random.default_rng(0)
    messages = [
        leak_bit(m, bool(b), 7) if rng.random() < 0.8 else m for m, b in zip(random_messages(9), INPUTS, strict=True)
    ]
    assert distinguish_messages(messages, INPUTS).caught


def test_lengths_and_byte_shares_are_caught() -> None:
    longer = [m + bytes(3) * bit for m, bit in zip(random_messages(3), INPUTS, strict=True)]
    assert distinguish_messages(longer, INPUTS).caught
    rng = np.random.default_rng(4)
    skewed = [
        bytes(rng.choice(256, 300, p=np.where(np.arange(256) == 65, 1 + 30 * b, 1) / (256 + 30 * b))) for b in INPUTS
    ]
    assert distinguish_messages([bytes(np.array(list(m), np.uint8)) for m in skewed], INPUTS).caught


def test_times_are_told_apart_where_they_differ() -> None:
    rng = np.random.default_rng(5)
    times = rng.lognormal(0, 0.1, (120, 1))
    assert sum(distinguish(times, INPUTS, seed=seed).caught for seed in range(10)) <= 2
    assert all(distinguish(times + 0.3 * INPUTS[:, None], INPUTS, seed=seed).caught for seed in range(10))


def test_constant_features_give_a_coin() -> None:
    verdict = distinguish(np.ones((120, 4)), INPUTS)
    assert verdict.n == 60 and not verdict.caught and 10 < verdict.right < 50


def test_too_little_is_refused() -> None:
    with pytest.raises(InvalidInput, match="4 messages"):
        distinguish_messages([b"aaaa"] * 6, np.arange(6) % 2)
    with pytest.raises(InvalidInput, match="a row a message"):
        distinguish(np.ones((3, 2)), INPUTS)
