"""CKKS: residues outside SEAL: the dense form on the wire, and sums of many ciphertexts at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_infer.backends.ckks import residues
from secure_infer.backends.ckks.parameters import choose, primes
from secure_infer.backends.ckks.seal import Ring, SealEngine, Unreadable, decode
from secure_infer.backends.ckks.sums import grouped, weighted_sums

_DEGREE = 4096


def _drawn(rng: np.random.Generator, chain: list[int], degree: int, polynomials: int = 2) -> residues.Residues:
    rows = [[rng.integers(0, prime, degree, dtype=np.uint64) for prime in chain] for _ in range(polynomials)]
    return np.array(rows)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(17, 60), min_size=1, max_size=4), st.booleans(), st.integers(0, 99))
def test_the_dense_form_says_the_same(bits: list[int], seeded: bool, seed: int) -> None:
    chain, rng = primes(64, bits), np.random.default_rng(seed)
    numbers, grown = _drawn(rng, chain, 64, 2 - seeded), rng.bytes(64 * seeded)
    data = residues.pack(numbers, grown, chain, 2.0**30)
    read, told, scale = residues.unpack(data, chain, 64)
    assert np.array_equal(read, numbers) and told == grown and scale == 2.0**30
    assert len(data) == 8 + len(grown) + numbers.shape[0] * 64 * sum(-(-b // 8) for b in bits)
    for other in (data[:-1], data + b"0", data + data):
        with pytest.raises(ValueError, match="another length"):
            residues.unpack(other, chain, 64)
    numbers[-1, -1, -1] = chain[-1]
    with pytest.raises(ValueError, match="no residues"):
        residues.unpack(residues.pack(numbers, grown, chain, 1.0), chain, 64)


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 700),
    st.integers(1, 45),
    st.lists(st.integers(17, 60), min_size=1, max_size=3),
    st.integers(0, 999),
)
def test_sums_are_exact(count: int, bits: int, sizes: list[int], seed: int) -> None:
    chain, rng = primes(8, sizes), np.random.default_rng(seed)
    sources = [_drawn(rng, chain, 8) for _ in range(count)]
    chosen = [np.arange(count), np.sort(rng.permutation(count)[: count // 2 + 1]), np.arange(count)]
    rows = [(some, rng.integers(-(1 << bits), 1 << bits, len(some), endpoint=True)) for some in chosen]
    made = weighted_sums(sources, grouped(rows), chain)
    for (some, weights), result in zip(rows, made, strict=True):
        exact = sum(int(w) * sources[i].astype(object) for i, w in zip(some, weights, strict=True))
        assert (result == exact % np.array(chain, dtype=object)[:, None]).all()


@pytest.fixture(scope="module")
def ring() -> Ring:
    return Ring(choose(2, True, {}))


@pytest.mark.parametrize("expanded", [False, True])
def test_what_is_sent_is_what_arrives(ring: Ring, expanded: bool) -> None:
    lib, parameters = ring.lib, ring.parameters
    secret = lib.KeyGenerator(ring.context).secret_key()
    values = np.linspace(-1, 1, parameters.slots)
    plaintext = ring.encode(values, 2, parameters.scale)
    data = ring.encrypt(lib.Encryptor(ring.context, secret), plaintext, 2, parameters.scale, expanded)
    opened = lib.Plaintext()
    lib.Decryptor(ring.context, secret).decrypt(ring.received(data, 2, parameters.scale), opened)
    assert np.abs(decode(ring, opened) - values).max() < 1e-3
    for bad in (data[:-1], b"", b"\xff" * len(data)):
        with pytest.raises(Unreadable):
            ring.received(bad, 2, parameters.scale)
    zeros = data[:8] + bytes(len(data) - 8)
    if expanded:
        for frozen in (False, True):
            with pytest.raises(Unreadable):
                ring.received(zeros, 2, parameters.scale, frozen)


def test_sums_equal_what_seal_makes_one_by_one(ring: Ring) -> None:
    engine, lib, parameters = SealEngine(ring), ring.lib, ring.parameters
    encryptor = lib.Encryptor(ring.context, lib.KeyGenerator(ring.context).secret_key())
    level, scale, weights = 1, float(1 << 20), np.array([[3.5, -2.25, 0.125], [1.0, 0.5, -7.75]])
    fresh = [lib.Ciphertext() for _ in range(3)]
    for number, c in enumerate(fresh):
        encryptor.encrypt_symmetric(ring.encode(np.full(parameters.slots, 0.1 * number), 2, parameters.scale), c)
    rows = [(np.arange(3), np.rint(row * scale).astype(np.int64)) for row in weights]
    frozen = [engine.freeze(c) for c in fresh]
    assert engine.is_frozen(frozen[0]) and engine.freeze(frozen[0]) is frozen[0] and engine.thaw(fresh[0]) is fresh[0]
    made = engine.sums(frozen, grouped(rows), level, parameters.scale * scale)
    for row, result in zip(weights, made, strict=True):
        lowered = [engine.lower(c, level) for c in fresh]
        products = [
            engine.multiply_plain(c, engine.constant(w, level, scale)) for c, w in zip(lowered, row, strict=True)
        ]
        total = engine.add(engine.add(products[0], products[1]), products[2])
        assert np.array_equal(engine.freeze(total).numbers, engine.freeze(result).numbers)
        assert total.scale == result.scale
