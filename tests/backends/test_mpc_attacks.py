"""A passive client predicts masks and so steals weights: that succeeds on stock CrypTen and fails here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from secure_infer.graph.types import Integers
from tests.backends.mersenne import WORDS_TO_KNOW, Twister, forecast

pytest.importorskip("crypten")

from secure_infer.backends.mpc.correlations import Correlations, LocalDealer
from secure_infer.backends.mpc.dealer import Dealer
from secure_infer.backends.mpc.protocols import Protocols
from secure_infer.backends.parties.streams import Stream

RNG = np.random.default_rng(3)
STOCK = Path(__file__).with_name("crypten_stock_view.py")


def drawn(seed: int, count: int) -> Integers:
    """Masks as CrypTen draws them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**63), (2**64 - 1) // 2, (count,), generator=generator, dtype=torch.long).numpy()


def test_the_twister_forecasts_torch() -> None:
    words = drawn(5, WORDS_TO_KNOW + 1000)
    assert forecast(words) == 1000
    words[0] ^= 1
    assert forecast(words) < 1000


@pytest.mark.parametrize("provider", ["TFP", "TTP"])
def test_the_attack_succeeds_on_stock_crypten(provider: str) -> None:
    """From its own input and what was opened the client has the mask of its input; the mask of the weights comes next.

    Under the third party the client has one share of each mask itself, and forecasts the other.
    """
    view = run_stock(provider)
    weight = np.array(view.pop("weight"), dtype=np.int64)
    assert np.array_equal(steal(view, len(weight)), weight)


def run_stock(provider: str, attempts: int = 3) -> dict[str, Any]:
    """What party 1 saw, and the weight; a run of stock CrypTen, whose forked processes hang at times."""
    command = [sys.executable, STOCK, provider]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except subprocess.TimeoutExpired:
        if attempts == 1:
            raise
        return run_stock(provider, attempts - 1)
    return dict(json.loads(done.stdout))


def steal(view: dict[str, Any], count: int) -> Integers:
    """The weights, from what party 1 saw alone."""
    x = np.array(view["x"], dtype=np.int64)
    opened_input, opened_weight = (np.array(part, dtype=np.int64) for part in view["opened"])
    own_input, own_weight = (np.array(part, dtype=np.int64) for part in view["own"])
    masks = x - opened_input - own_input
    twister = Twister.from_masks(map(int, masks[:WORDS_TO_KNOW]))
    rest = masks[WORDS_TO_KNOW:]
    assert np.array_equal(twister.masks(len(rest)), rest), "the forecast itself failed"
    mask = twister.masks(count) + (own_weight if own_weight.size else 0)
    return np.asarray(opened_weight + mask)


class Twisted:
    """A stream such as CrypTen's, to show that the tests below can fail."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def words(self, size: tuple[int, ...]) -> Integers:
        drawn = torch.randint(-(2**63), (2**64 - 1) // 2, size, generator=self._generator, dtype=torch.long)
        return drawn.numpy()


class Wire:
    """Keeps what party 0 sends."""

    def __init__(self) -> None:
        self.sent: list[Integers] = []

    def send_words(self, values: Integers) -> None:
        self.sent.append(values.copy())


def masked_weights(first: Any, weight: Integers) -> Integers:
    """What party 1 is sent when a model is loaded, if party 0 and the dealer draw from `first`."""
    wire, other = Wire(), Stream(b"1" * 32)
    party = Protocols(0, [wire], Correlations(first, LocalDealer(Dealer([Stream(b"0" * 32), other]))))
    party.share_weight("w", weight.shape, weight)
    return wire.sent[0]


@pytest.mark.parametrize("kind", ["aes", "mersenne"])
def test_known_weights_do_not_tell_the_others(kind: str) -> None:
    """Party 1 knows the first `WORDS_TO_KNOW` weights and asks for the rest: more than the attacks above start from."""
    weight = RNG.integers(-9, 10, (WORDS_TO_KNOW + 500,))
    first = Stream(b"0" * 32) if kind == "aes" else Twisted(1)
    sent = masked_weights(first, weight)
    masks = weight - sent
    twister = Twister.from_masks(map(int, masks[:WORDS_TO_KNOW]))
    stolen = sent[WORDS_TO_KNOW:] + twister.masks(500)
    assert int((stolen == weight[WORDS_TO_KNOW:]).sum()) == (500 if kind == "mersenne" else 0)
