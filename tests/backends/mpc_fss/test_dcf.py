"""Comparison keys add up to beta below alpha and to zero elsewhere, and equal a slow evaluation written on its own."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest

from secure_infer.backends.mpc_fss.dcf import Corrections, evaluate, foresee, generate
from secure_infer.backends.mpc_fss.generator import Form, Generator, clear_roots
from tests.backends.mpc_fss.reference import Slow

KINDS = {16: np.dtype(np.uint16), 32: np.dtype(np.uint32), 64: np.dtype(np.uint64)}
FORMS = [(bits, payload, word) for word in KINDS for payload in (1, 2) for bits in (1, 2, 3, 4, 7, 15, 31, 63)]
FORMS += [(bits, payload, word) for word in KINDS for payload in (5, 11, 40) for bits in (1, 2, 12)]


def uniform(*shape: int) -> np.ndarray:
    return np.frombuffer(os.urandom(8 * int(np.prod(shape))), dtype=np.uint64).reshape(shape)


def drawn(form: Form, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Thresholds, values and points; a quarter of the points are at the threshold or beside it."""
    mask = np.uint64((1 << form.bits) - 1)
    alpha, x = uniform(count) & mask, uniform(count) & mask
    near = count // 4
    x[:near] = (alpha[:near] + uniform(near) % np.uint64(3) - np.uint64(1)) & mask
    return alpha, uniform(count, form.payload).astype(form.kind), x


def keys(form: Form, alpha: np.ndarray, beta: np.ndarray) -> tuple[bytes, list[np.ndarray], Corrections]:
    key = os.urandom(16)
    roots = [clear_roots(uniform(len(alpha), 2)) for _ in (0, 1)]
    return key, roots, generate(form, Generator(key), alpha, beta, (roots[0], roots[1]))


def check(form: Form, count: int, slow: int) -> None:
    alpha, beta, x = drawn(form, count)
    key, roots, common = keys(form, alpha, beta)
    shares = [evaluate(form, Generator(key), party, roots[party], common, x) for party in (0, 1)]
    assert np.array_equal(shares[0] + shares[1], np.where((x < alpha)[:, None], beta, 0))
    few, generator = slice(100), Generator(key)
    part = Corrections(common.seeds[:, few], common.values[:, few], common.leaves[few])
    for party in (0, 1):
        upper = foresee(form, generator, party, roots[party][few], part)
        assert upper.level > 0 or form.levels == 0
        found = evaluate(form, generator, party, roots[party][few], part, x[few], upper)
        assert np.array_equal(found, shares[party][few])
    reference = Slow(key, form.bits, form.payload, 8 * form.kind.itemsize)
    for at in range(slow):
        seeds = [int(low) | int(high) << 64 for low, high in common.seeds[:, at]]
        corrections = (seeds, common.values[:, at].tolist(), common.leaves[at].tolist())
        for party in (0, 1):
            root = int(roots[party][at, 0]) | int(roots[party][at, 1]) << 64
            assert reference.value(party, root, *corrections, int(x[at])) == shares[party][at].tolist()


@pytest.mark.parametrize(("bits", "payload", "word"), FORMS)
def test_keys_compare(bits: int, payload: int, word: int) -> None:
    check(Form(bits, payload, KINDS[word]), count=300, slow=12)


@pytest.mark.full
@pytest.mark.parametrize(("bits", "payload", "word"), FORMS)
def test_keys_compare_on_very_many_points(bits: int, payload: int, word: int) -> None:
    check(Form(bits, payload, KINDS[word]), count=20_000, slow=20_000)


def test_every_point_of_a_small_domain() -> None:
    form = Form(6, 1, KINDS[16])
    alpha, x = (part.reshape(-1).astype(np.uint64) for part in np.meshgrid(np.arange(64), np.arange(64)))
    beta = np.ones((len(alpha), 1), dtype=np.uint16)
    key, roots, common = keys(form, alpha, beta)
    total = sum(evaluate(form, Generator(key), party, roots[party], common, x) for party in (0, 1))
    assert np.array_equal(total[:, 0], (x < alpha).astype(np.uint16))


def test_a_key_says_nothing_about_its_threshold() -> None:
    """Corrections for the least and the greatest threshold have bytes of the same, even, frequencies."""
    form = Form(20, 1, KINDS[32])
    for alpha in (0, (1 << 20) - 1):
        _, _, common = keys(form, np.full(4000, alpha, dtype=np.uint64), np.ones((4000, 1), dtype=np.uint32))
        for part in (common.seeds[..., 1], common.values, common.leaves):
            data = np.frombuffer(np.ascontiguousarray(part).tobytes(), dtype=np.uint8)
            expected = data.size / 256
            statistic = ((np.bincount(data, minlength=256) - expected) ** 2 / expected).sum()
            assert abs(statistic - 255) < 6 * np.sqrt(2 * 255)


if __name__ == "__main__":
    for n_bits in (10, 15, 25):
        shape = Form(n_bits, 1, KINDS[16])
        thresholds, numbers, points = drawn(shape, 20_000)
        started = time.process_time()
        aes, seeds, parts = keys(shape, thresholds, numbers)
        made = time.process_time()
        evaluate(shape, Generator(aes), 0, seeds[0], parts, points)
        print(n_bits, (made - started) / 20_000 * 1e6, (time.process_time() - made) / 20_000 * 1e6)
