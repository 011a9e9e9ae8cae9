"""The Mersenne Twister from its outputs: 624 words of 32 bits give its whole state (Matsumoto and Nishimura, 1998)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from secure_infer.graph.types import Integers

_N, _M = 624, 397
_WORD = 0xFFFFFFFF
WORDS_TO_KNOW = _N // 2
"""Masks of 64 bits that give the state: each is two outputs."""


class Twister:
    """MT19937 from its state: the last 624 outputs, untempered."""

    def __init__(self, state: list[int]) -> None:
        self._state, self._at = state, _N

    @classmethod
    def from_masks(cls, masks: Iterable[int]) -> Twister:
        """The generator that drew these `WORDS_TO_KNOW` masks of 64 bits, ready to draw the next one."""
        outputs = [half for mask in masks for half in ((mask + (1 << 63)) >> 32, (mask + (1 << 63)) & _WORD)]
        assert len(outputs) == _N
        return cls([untempered(output) for output in outputs])

    def mask(self) -> int:
        """What CrypTen's `torch.randint(-2**63, 2**63 - 1)` draws next."""
        return ((self.output() << 32) | self.output()) % ((1 << 64) - 1) - (1 << 63)

    def masks(self, count: int) -> Integers:
        """The next masks."""
        return np.array([self.mask() for _ in range(count)], dtype=np.int64)

    def output(self) -> int:
        """The next output of 32 bits."""
        if self._at == _N:
            self._twist()
        y = self._state[self._at]
        self._at += 1
        y ^= y >> 11
        y ^= (y << 7) & 0x9D2C5680
        y ^= (y << 15) & 0xEFC60000
        return y ^ (y >> 18)

    def _twist(self) -> None:
        state = self._state
        for k in range(_N):
            y = (state[k] & 0x80000000) | (state[(k + 1) % _N] & 0x7FFFFFFF)
            state[k] = state[(k + _M) % _N] ^ (y >> 1) ^ (0x9908B0DF if y & 1 else 0)
        self._at = 0


def untempered(output: int) -> int:
    """The word of state behind an output: tempering is linear over the bits, so each of its four steps is undone."""
    y = output ^ (output >> 18)
    y ^= (y << 15) & 0xEFC60000
    bits = y
    for _ in range(4):
        bits = y ^ ((bits << 7) & 0x9D2C5680)
    y = bits & _WORD
    bits = y
    for _ in range(2):
        bits = y ^ (bits >> 11)
    return bits & _WORD


def forecast(words: Integers) -> int:
    """How many words after the first `WORDS_TO_KNOW` a Mersenne Twister that drew those would draw as well."""
    rest = words[WORDS_TO_KNOW:]
    return int((Twister.from_masks(map(int, words[:WORDS_TO_KNOW])).masks(len(rest)) == rest).sum())
