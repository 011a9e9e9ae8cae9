"""The client: splits its input into random shares, one a party, and adds the replies. It needs no crypto library."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from secure_infer.backends.base import Keys
from secure_infer.backends.parties import messages
from secure_infer.backends.parties.messages import QUERY, REPLY, Share
from secure_infer.errors import BundleError, DecryptionError, InvalidInput, KeyMismatch, Problem
from secure_infer.graph.types import Integers, Shape
from secure_infer.wire import frame

PARTIES = 2
MOST_PARTIES = 3
RINGS = (16, 32, 64)


@dataclass(frozen=True)
class ClientHalf:
    """What a client must know.

    Attributes:
        kind: What its frame is called: each protocol has its own.
        model: Name of the plan.
        input_shape: Shape of one sample.
        low: Least input.
        high: Greatest input.
        output_shape: Shape of one result.
        ring_bits: Replies are added modulo two to this power.
        parties: How many get a share each.
    """

    kind: str
    model: str
    input_shape: Shape
    low: int
    high: int
    output_shape: Shape
    ring_bits: int = 64
    parties: int = PARTIES

    def pack(self) -> bytes:
        """The half as a frame."""
        return frame.pack(
            self.kind,
            [],
            {
                "model": self.model,
                "input_shape": self.input_shape,
                "low": self.low,
                "high": self.high,
                "output_shape": self.output_shape,
                **({} if self.ring_bits == RINGS[-1] else {"ring_bits": self.ring_bits}),
                **({} if self.parties == PARTIES else {"parties": self.parties}),
            },
        )

    @classmethod
    def unpack(cls, data: bytes, kind: str) -> ClientHalf:
        """The half in a frame of `kind`.

        Raises:
            BundleError: Not such a frame.
        """
        meta: Any = frame.unpack(data, kind).meta
        try:
            shapes = [tuple(int(size) for size in meta[key]) for key in ("input_shape", "output_shape")]
            bits, parties = int(meta.get("ring_bits", 64)), int(meta.get("parties", PARTIES))
            if bits not in RINGS or not PARTIES <= parties <= MOST_PARTIES:
                raise ValueError(f"there is no ring of {bits} bits, or no sharing among {parties}")
            ends = int(meta["low"]), int(meta["high"])
            return cls(kind, str(meta["model"]), shapes[0], *ends, shapes[1], bits, parties)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise BundleError(
                "The client half is malformed.",
                [Problem(kind, f"{type(error).__name__}: {error}.", "fetch or compile the model again.")],
            ) from error


class SharingClient:
    """The client of a protocol of several parties; it has no keys, since every query is masked afresh.

    Attributes:
        parties: How many messages and replies a query has.
    """

    def __init__(self, half: ClientHalf) -> None:
        self._half, self.parties = half, half.parties

    def keygen(self) -> Keys:
        """Empty keys: nothing secret outlives a query."""
        return Keys(b"", b"")

    def encrypt(self, x: Integers, keys: Keys) -> tuple[bytes, ...]:
        """A message for each party: uniformly random arrays, and for the last party `x` minus them modulo 2^64.

        Args:
            x: Integers, shape `(n, *input shape)`, n at least one.
            keys: Not used.

        Raises:
            InvalidInput: A wrong shape or type, an empty batch, or values out of range.
        """
        values = self._checked(np.asarray(x))
        drawn = os.urandom(8 * values.size * (self.parties - 1))
        masks = np.frombuffer(drawn, dtype=np.int64).reshape(-1, *values.shape)
        session = os.urandom(16).hex()
        shares = (*masks, values - masks.sum(axis=0))
        return tuple(Share(self._half.model, session, party, share).pack(QUERY) for party, share in enumerate(shares))

    def decrypt(self, replies: Sequence[bytes], keys: Keys) -> Integers:
        """The sum of the replies modulo `2**ring_bits`, as signed numbers: int64, shape `(n, *output shape)`.

        Raises:
            DecryptionError: Not the replies of all parties to one query of this model.
        """
        if len(replies) != self.parties:
            raise _undecryptable(f"Expected {self.parties} replies, got {len(replies)}.")
        half = self._half
        try:
            first, *others = (
                messages.unpack(reply, REPLY, half.model, party, half.output_shape)
                for party, reply in enumerate(replies)
            )
        except (BundleError, KeyMismatch) as error:
            raise DecryptionError("A reply can't be read.", error.problems) from error
        if any((first.session, first.values.shape) != (other.session, other.values.shape) for other in others):
            raise _undecryptable("The replies answer different queries.")
        if any(first.run != other.run for other in others):
            raise _undecryptable("The replies come from different runs of the query.")
        spare, total = 64 - half.ring_bits, sum((other.values for other in others), first.values)
        return np.asarray((total << spare) >> spare)

    def _checked(self, x: Integers) -> Integers:
        half, problems = self._half, []
        if x.dtype.kind not in "bui":
            problems.append(Problem("input", f"Expected integers, got {x.dtype}.", "quantize the input first."))
        if x.shape[1:] != half.input_shape or x.ndim != len(half.input_shape) + 1 or not len(x):
            problems.append(
                Problem(
                    "input",
                    f"Expected shape (n, {', '.join(map(str, half.input_shape))}), n >= 1, got {x.shape}.",
                    "pass a batch; a single sample x is x[None].",
                )
            )
        elif not problems and (x.min() < half.low or x.max() > half.high):
            problems.append(
                Problem(
                    "input",
                    f"Values lie outside [{half.low}, {half.high}].",
                    "quantize the input with the model's own scale.",
                )
            )
        if problems:
            raise InvalidInput("The input can't be shared.", problems)
        return x.astype(np.int64)


def _undecryptable(what: str) -> DecryptionError:
    return DecryptionError(
        "The replies do not decrypt.",
        [Problem("reply", what, "pass the replies of all parties, in their order, to one and the same query.")],
    )
