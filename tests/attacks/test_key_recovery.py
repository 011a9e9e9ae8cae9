"""Keys from shared decryptions on the toy ring: lost when told exactly, kept when rounded or flooded enough."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_infer.attacks.key_recovery import Ring, ToyCkks, curve, recover
from secure_infer.errors import InvalidInput

TOY = ToyCkks(degree=32)


def slots(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(-1, 1, 16) + 1j * rng.uniform(-1, 1, 16)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(-500, 500), min_size=16, max_size=16))
def test_products_of_values_are_products_modulo_x_to_the_n_plus_one(numbers: list[int]) -> None:
    ring = Ring(8, 7681)
    a, b = (np.array(part, dtype=object) for part in (numbers[:8], numbers[8:]))
    expected = [0] * 8
    for i in range(8):
        for j in range(8):
            expected[(i + j) % 8] += (1 if i + j < 8 else -1) * a[i] * b[j]
    found = ring.coefficients(ring.values(a) * ring.values(b) % 7681)
    np.testing.assert_array_equal(found, ring.center(np.array(expected, dtype=object)))


def test_what_is_encrypted_comes_back_with_the_noise_of_the_encryption() -> None:
    rng = np.random.default_rng(0)
    secret, sent = TOY.keygen(rng), slots(rng)
    got = TOY.decrypt(*TOY.encrypt(sent, secret, rng), secret)
    assert 0 < np.abs(got - sent).max() < 1e-6
    assert set(secret) <= {-1, 0, 1}


def test_one_exact_decryption_is_the_key_and_another_ciphertext_is_read_with_it() -> None:
    rng = np.random.default_rng(1)
    secret, sent, other = TOY.keygen(rng), slots(rng), slots(rng)
    b, a = TOY.encrypt(sent, secret, rng)
    found = TOY.attack(b, a, [TOY.decrypt(b, a, secret)])
    assert found is not None and (found == secret).all()
    np.testing.assert_allclose(TOY.decrypt(*TOY.encrypt(other, secret, rng), found), other, atol=1e-6)


def test_the_plain_message_without_noise_is_not_enough() -> None:
    rng = np.random.default_rng(2)
    secret, sent = TOY.keygen(rng), slots(rng)
    b, a = TOY.encrypt(sent, secret, rng)
    assert TOY.attack(b, a, [sent]) is None
    assert recover(b, np.zeros(32, dtype=object), b, TOY.ring.modulus) is None


@pytest.mark.parametrize("countermeasure", ["rounding", "flooding"])
def test_keys_are_lost_below_the_noise_and_kept_at_a_price_of_bits(countermeasure: str) -> None:
    fine, coarse = curve(TOY, countermeasure, [-8, 4], n=6)  # type: ignore[arg-type]
    assert (fine.lost, coarse.lost) == (6, 0)
    assert fine.precision_bits - coarse.precision_bits > 3.5
    assert fine.as_dict()["interval"][0] > 0.5


def test_releases_average_flooding_out_but_not_rounding() -> None:
    (once,), (often,) = (curve(TOY, "flooding", [-2], releases=count, n=6) for count in (1, 256))
    (rounded,) = curve(TOY, "rounding", [-1], releases=256, n=6)
    assert (once.lost, often.lost, rounded.lost) == (0, 6, 0)


@pytest.mark.parametrize("settings", [{"degree": 3}, {"degree": 24}, {"scale_bits": 49}])
def test_parameters_that_make_no_sense_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(InvalidInput):
        ToyCkks(**settings)
    with pytest.raises(InvalidInput):
        curve(TOY, "rounding", [0], n=0)
