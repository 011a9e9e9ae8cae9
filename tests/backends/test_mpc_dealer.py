"""Randomness, correlations and the products of the ring, without processes."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_infer.backends.mpc.backend import unpack_halves
from secure_infer.backends.mpc.plan import FIRST_PARTY, Plan
from secure_infer.errors import (
    BundleError,
)
from secure_infer.graph import (
    Conv2d,
)
from secure_infer.graph.types import Integers

pytest.importorskip("crypten")

from secure_infer.backends.mpc.dealer import Dealer
from secure_infer.backends.mpc.kernels import bilinear, matmul
from secure_infer.backends.parties.streams import Stream
from tests.backends.mpc_networks import CASES, IMAGE, RNG, TINY, compiled


def test_crypten_draws_from_aes_only() -> None:
    """Seeding torch changes nothing, torch's generators raise, and equal keys give equal sharings of zero."""
    script = """
import warnings; warnings.simplefilter("ignore")
import crypten, torch
from crypten.mpc.primitives import arithmetic, binary
from crypten.mpc.provider import tfp_provider, ttp_provider
from secure_infer.backends.mpc import randomness
randomness.install(crypten.generators, b"a" * 32, b"b" * 32)
drawn = []
for module in (arithmetic, binary, tfp_provider, ttp_provider, crypten.common.rng):
    for name in ("generate_random_ring_element", "generate_kbit_random_tensor"):
        if hasattr(module, name):
            torch.manual_seed(1)
            drawn.append(tuple(getattr(module, name)((4,)).tolist()))
assert len(drawn) == len(set(drawn)) == 8, drawn
bits = binary.generate_kbit_random_tensor((1000,), bitlength=1)
assert 400 < int(bits.sum()) < 600
zero = arithmetic.ArithmeticSharedTensor.PRZS((3,)).share
previous, following = randomness.Stream(b"a" * 32), randomness.Stream(b"b" * 32)
assert zero.tolist() == (previous.words((3,)) - following.words((3,))).tolist()
for draw in (lambda: torch.randint(0, 2, (3,)), lambda: torch.rand(3), lambda: torch.empty(3).random_()):
    try:
        draw()
    except RuntimeError as error:
        assert "AES" in str(error)
    else:
        raise SystemExit("torch still draws")
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=200)


def test_a_stream_depends_on_its_key_alone() -> None:
    same, also, other = Stream(b"k" * 32), Stream(b"k" * 32), Stream(b"l" * 32)
    words = same.words((1000, 3))
    assert np.array_equal(words, also.words((1000, 3)))
    assert not np.any(words == other.words((1000, 3)))
    assert abs(np.unpackbits(words.view(np.uint8)).mean() - 0.5) < 0.01
    assert same.words(()).shape == ()
    assert same.words((0, 4)).shape == (0, 4)
    assert set(same.bits((50,))) == {0, 1}


@pytest.fixture
def dealt() -> tuple[Dealer, Stream, Stream]:
    keys = (b"0" * 32, b"1" * 32)
    return Dealer([Stream(key) for key in keys]), Stream(keys[0]), Stream(keys[1])


@pytest.mark.parametrize("sizes", [[[3], [3]], [[4], [2, 4]], [[2, 1, 3], [5, 3]]])
@pytest.mark.parametrize("kind", ["and", "mul"])
def test_triples_multiply(dealt: tuple[Dealer, Stream, Stream], kind: str, sizes: list[list[int]]) -> None:
    dealer, first, second = dealt
    c0 = dealer.answer({"kind": kind, "sizes": sizes})
    (a0, b0), (a1, b1) = ([stream.words(size) for size in sizes] for stream in (first, second))
    c1 = second.words(c0.shape)
    if kind == "and":
        assert np.array_equal((a0 ^ a1) & (b0 ^ b1), c0 ^ c1)
    else:
        assert np.array_equal((a0 + a1) * (b0 + b1), c0 + c1)


def test_each_party_knows_its_own_factor_alone(dealt: tuple[Dealer, Stream, Stream]) -> None:
    dealer, first, second = dealt
    c0 = dealer.answer({"kind": "own and", "size": [4, 3]})
    assert np.array_equal(first.words((4, 3)) & second.words((4, 3)), c0 ^ second.words((4, 3)))


def test_bits_and_products_fit(dealt: tuple[Dealer, Stream, Stream]) -> None:
    dealer, first, second = dealt
    c0 = dealer.answer({"kind": "bit", "size": [9, 5]})
    bits = first.bits((9, 5)) ^ second.bits((9, 5))
    assert np.array_equal(bits, c0 + second.words((9, 5)))
    assert dealer.answer({"kind": "mask", "name": "w", "size": [4, 6]}) is None
    mask = first.words((4, 6))
    for _ in range(2):
        c0 = dealer.answer({"kind": "product", "name": "w", "spec": {"map": "linear"}, "size": [3, 6]})
        a = second.words((3, 6))
        assert np.array_equal(c0 + second.words((3, 4)), a @ mask.T)
    dealer.answer({"kind": "forget"})
    with pytest.raises(KeyError):
        dealer.answer({"kind": "product", "name": "w", "spec": {"map": "linear"}, "size": [3, 6]})


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32), st.integers(8, 12), st.sampled_from([1, 7, 512, 513, 1100]), st.booleans())
def test_products_of_matrices_are_exact(seed: int, rows: int, depth: int, small: bool) -> None:
    rng = np.random.default_rng(seed)
    a = rng.integers(-(2**63), 2**63 - 1, (rows, depth), endpoint=True)
    bound = 2**21 if small else 2**63
    b = rng.integers(-bound, bound - 1, (depth, 9), endpoint=True)
    assert np.array_equal(matmul(a, b), a @ b)


def test_convolutions_wrap_around() -> None:
    op = CASES["conv, all parameters"].nodes[0].op
    spec = {"map": "conv", "stride": op.stride, "padding": op.padding, "dilation": op.dilation, "groups": op.groups}
    low, high = np.iinfo(np.int64).min, np.iinfo(np.int64).max
    x, w = RNG.integers(low, high, (3, *IMAGE.shape)), RNG.integers(low, high, op.weight.shape)
    wide = Conv2d(w.astype(object), np.zeros(6, dtype=object), (1.0,), op.stride, op.padding, op.dilation, op.groups)
    expected = _convolve_slowly(wide, x.astype(object))
    assert np.array_equal(bilinear(spec, x, w), expected)


def _convolve_slowly(op: Conv2d, x: np.ndarray) -> Integers:
    """Straight from the definition, in Python integers, reduced modulo 2^64 at the end."""
    outputs, inputs, height, width = op.weight.shape
    padded = np.pad(x, ((0, 0), (0, 0), (op.padding[0],) * 2, (op.padding[1],) * 2), constant_values=0)
    rows = (padded.shape[2] - op.dilation[0] * (height - 1) - 1) // op.stride[0] + 1
    columns = (padded.shape[3] - op.dilation[1] * (width - 1) - 1) // op.stride[1] + 1
    result = np.zeros((len(x), outputs, rows, columns), dtype=np.int64)
    for n, o, i, j in np.ndindex(result.shape):
        start = o // (outputs // op.groups) * inputs
        window = padded[n, start : start + inputs, i * op.stride[0] :, j * op.stride[1] :]
        window = window[:, :: op.dilation[0], :: op.dilation[1]][:, :height, :width]
        total = int((window * op.weight[o]).sum())
        result[n, o, i, j] = (total + 2**63) % 2**64 - 2**63
    return result


def test_a_session_needs_a_provider_we_know() -> None:
    plan = json.loads(unpack_halves(compiled(TINY).servers)[1].to_bytes())
    assert plan["provider"] != FIRST_PARTY
    with pytest.raises(BundleError):
        Plan.from_bytes(json.dumps({**plan, "provider": "TFP"}).encode())
