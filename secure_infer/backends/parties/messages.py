"""Shares on the wire: a frame with the model, the query and the party they belong to, and raw int64 words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from secure_infer.errors import BundleError, KeyMismatch, Problem
from secure_infer.graph.types import Integers, Shape
from secure_infer.wire import frame
from secure_infer.wire.frame import Frame

QUERY, REPLY = "mpc-share", "mpc-reply"
HEADER_BYTES = 8
"""What precedes a message between two parties: its length."""
HANDSHAKE_BYTES = 64
"""What both parties send first in a run: the query's session, a digest of the batch's shape, and 16 random bytes."""
_NAME_DIGITS = 32


@dataclass(frozen=True, eq=False)
class Share:
    """One party's share of a batch.

    Attributes:
        model: Name of the plan that it is for.
        session: Name of the query, made afresh by the client, which both shares carry.
        party: Number of the party that it is for, or from.
        values: int64, shape `(n, *shape)`.
        run: In replies, the name of the run that they come from: two replies of different runs add up to noise.
    """

    model: str
    session: str
    party: int
    values: Integers
    run: str = ""

    def pack(self, kind: str) -> bytes:
        """The share as a frame of `kind`."""
        meta = {"model": self.model, "session": self.session, "party": self.party, "shape": list(self.values.shape)}
        meta |= {"run": self.run} if self.run else {}
        return frame.pack(kind, [np.ascontiguousarray(self.values, dtype="<i8").tobytes()], meta)


def unpack(data: bytes, kind: str, model: str, party: int, shape: Shape) -> Share:
    """The share in a frame, checked against the model, the party and the shape of one sample.

    Raises:
        KeyMismatch: A share for another model.
        BundleError: Not such a frame; one for the other party; an array of another shape or length.
    """
    return checked(frame.unpack(data, kind), model, party, shape)


def checked(received: Frame, model: str, party: int, shape: Shape) -> Share:
    """The share in a frame that is unpacked already; see `unpack`."""
    meta = received.meta
    if meta.get("model") != model:
        raise KeyMismatch(
            "The share belongs to another model.",
            [
                Problem(
                    "model",
                    f"Expected {model}, got {str(meta.get('model'))[:_NAME_DIGITS]!r}.",
                    "fetch the client half of the model that the server runs.",
                )
            ],
        )
    problems = []
    if meta.get("party") != party:
        problems.append(f"It is for party {str(meta.get('party'))[:8]}, not for party {party}.")
    session = meta.get("session")
    if not isinstance(session, str) or len(session) != _NAME_DIGITS or not set(session) <= set("0123456789abcdef"):
        problems.append("Its session is malformed.")
    found = _shape(meta.get("shape"))
    if found[1:] != shape or found[0] < 1:
        problems.append(f"Expected the shape (n, {', '.join(map(str, shape))}), got {str(meta.get('shape'))[:80]}.")
    elif len(received.parts) != 1 or len(received.parts[0]) != 8 * math.prod(found):
        problems.append("Its length does not fit its shape.")
    if problems:
        raise BundleError(
            "The share can't be used.",
            [Problem(received.kind, what, "send each party the message that was made for it.") for what in problems],
        )
    values = np.frombuffer(received.parts[0], dtype="<i8").reshape(found).astype(np.int64)
    return Share(model, str(session), party, values, str(meta.get("run", ""))[:_NAME_DIGITS])


def _shape(value: Any) -> Shape:
    """A shape of at least one axis; `(0,)` for whatever is not one."""
    whole = isinstance(value, list) and value and all(type(size) is int for size in value)
    return tuple(value) if whole else (0,)
