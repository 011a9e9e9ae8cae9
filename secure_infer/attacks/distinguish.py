"""Can messages of two inputs be told apart? A classifier on bytes, sizes or times, judged on messages held back.

Under encryption that holds, no classifier does better than a coin, and the interval of its accuracy contains one half.
That proves nothing by itself, as another classifier might do better; so the same classifier has to catch a copy of the
same messages into which one bit of the plaintext was leaked (`leak_bit`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from secure_infer.attacks.statistics import Interval, wilson
from secure_infer.errors import InvalidInput, Problem

_BLOCK = 4096
_KEPT = 8
"""Features that the classifier looks at: those that differ most between the two inputs on the training half."""


@dataclass(frozen=True)
class Verdict:
    """How well two inputs were told apart on messages that the classifier was not trained on.

    Attributes:
        n: Messages judged.
        right: Guesses that were right.
        interval: 95 % interval (Wilson) of the share of these.
        features: Features that it could choose from.
    """

    n: int
    right: int
    interval: Interval
    features: int

    @property
    def accuracy(self) -> float:
        """Share of right guesses; a coin has one half."""
        return self.right / self.n

    @property
    def caught(self) -> bool:
        """Whether the whole interval lies above one half."""
        return self.interval[0] > 0.5

    def as_dict(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        own = {"accuracy": self.accuracy, "caught": self.caught}
        return {**asdict(self), "interval": list(self.interval), **own}


def distinguish(features: npt.NDArray[Any], inputs: npt.NDArray[Any], *, seed: int = 0) -> Verdict:
    """Train on one half, guess on the other.

    The classifier votes with the features whose means differ most, in units of their spread (Welch's t), each on the
    side of the nearer mean: strong where a size or a time differs, or a bit leaks at a fixed place.

    Args:
        features: One row a message, `(n, k)`.
        inputs: Which of two inputs each message holds, 0 or 1, `(n,)`.
        seed: Of the split.

    Raises:
        InvalidInput: Fewer than four messages of an input, or shapes that do not fit.
    """
    train, test, inputs = _split(inputs, seed)
    if features.ndim != 2 or len(features) != len(inputs):
        raise InvalidInput(
            "There is nothing to tell apart.",
            [Problem("features", f"Shape {features.shape}.", f"give ({len(inputs)}, k): a row a message.")],
        )
    score = _votes(features[train], inputs[train], features[test])
    # Where votes are even, a coin decides, not one and the same side.
    coin = np.random.default_rng(seed + 1).random(len(test)) < 0.5
    guesses = np.where(score == 0, coin, score > 0)
    right = int((guesses == inputs[test]).sum())
    return Verdict(len(test), right, wilson(right, len(test)), features.shape[1])


def distinguish_messages(messages: Sequence[bytes], inputs: npt.NDArray[Any], *, seed: int = 0) -> Verdict:
    """`distinguish` by length, by the share of each byte value, and by every bit up to the end of the shortest message.

    Args:
        messages: One at least of four bytes for each of either input.
        inputs: Which of two inputs each holds, 0 or 1, `(n,)`.
        seed: Of the split.

    Raises:
        InvalidInput: As `distinguish`.
    """
    train, _, sides = _split(inputs, seed)
    shortest = min(map(len, messages), default=0)
    raw = np.stack([np.frombuffer(message[:shortest], np.uint8) for message in messages])
    shares = np.stack([np.bincount(row, minlength=256) / max(1, shortest) for row in raw])
    lengths = np.array([[len(message)] for message in messages])
    bits = _likely_bits(raw, train, sides)
    verdict = distinguish(np.hstack([lengths, shares, bits]).astype(np.float32), sides, seed=seed)
    return replace(verdict, features=257 + 8 * shortest)


def leak_bit(message: bytes, bit: bool, place: int = -1) -> bytes:
    """The message with its lowest bit at one byte replaced: the control that has to be caught.

    Args:
        message: Not empty.
        bit: A bit of the plaintext.
        place: Which byte; the last one by default.
    """
    changed = bytearray(message)
    changed[place] = changed[place] & 0xFE | bit
    return bytes(changed)


def _split(inputs: npt.NDArray[Any], seed: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """Rows to train on, rows to judge on, and the inputs as bools; each half has as many of either input."""
    sides = np.asarray(inputs).astype(bool)
    if sides.ndim != 1 or min(sides.sum(), (~sides).sum()) < 4:
        raise InvalidInput(
            "There is nothing to tell apart.",
            [Problem("inputs", f"Shape {sides.shape}, {sides.sum()} of input 1.", "give 4 messages of each input.")],
        )
    order = np.random.default_rng(seed).permutation(len(sides))
    ranked = np.concatenate([order[sides[order]], order[~sides[order]]])
    return ranked[::2], ranked[1::2], sides


def _likely_bits(
    raw: npt.NDArray[np.uint8], train: npt.NDArray[Any], sides: npt.NDArray[np.bool_]
) -> npt.NDArray[np.uint8]:
    """The bits whose shares differ most on the training half, `(n, k)`; found in blocks, as messages may be long."""
    found: list[tuple[float, int]] = []
    ones, zeros = train[sides[train]], train[~sides[train]]
    for start in range(0, raw.shape[1], _BLOCK):
        block = slice(start, start + _BLOCK)
        gaps = np.unpackbits(raw[ones, block], axis=1).mean(0) - np.unpackbits(raw[zeros, block], axis=1).mean(0)
        best = np.argsort(-np.abs(gaps), kind="stable")[:_KEPT]
        found += [(abs(float(gaps[place])), 8 * start + int(place)) for place in best]
    places = [place for _, place in sorted(found, key=lambda entry: -entry[0])[:_KEPT]]
    return np.stack([raw[:, p // 8] >> (7 - p % 8) & 1 for p in places], axis=1) if places else raw[:, :0]


def _votes(
    known: npt.NDArray[Any], inputs: npt.NDArray[np.bool_], unknown: npt.NDArray[Any]
) -> npt.NDArray[np.float64]:
    """Evidence for input 1 of each unknown row; positive or negative."""
    means, spreads = [], []
    for side in (inputs, ~inputs):
        rows = known[side]
        means.append(rows.mean(0))
        spreads.append(rows.var(0) / len(rows))
    gap = means[0] - means[1]
    # Without a floor, a feature that is constant within both inputs would divide by zero.
    t = gap / np.sqrt(spreads[0] + spreads[1] + 1e-12)
    best = np.argsort(-np.abs(t), kind="stable")[:_KEPT]
    middle = (means[0][best] + means[1][best]) / 2
    sides = np.sign((unknown[:, best] - middle) * gap[best])
    return np.asarray(sides @ np.abs(np.clip(t[best], -1e3, 1e3)), dtype=np.float64)
