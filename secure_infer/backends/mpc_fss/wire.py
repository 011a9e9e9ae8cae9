"""Arrays of ring elements between the two servers; a run's first message says which run it belongs to."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from secure_infer.backends.mpc_fss.ring import Ring
from secure_infer.backends.parties.channel import Channel, lost
from secure_infer.graph.types import Shape

TAG_BYTES = 32


class Wire:
    """One run's messages.

    Args:
        channel: To the other party.
        tag: Digest of the query, its shape and the correlations that the run spends; the other party's is the same.
    """

    def __init__(self, channel: Channel, tag: bytes) -> None:
        self._channel, self._tag = channel, tag

    def swap(self, values: Ring) -> Ring:
        """The other party's array of the same shape and type, for ours: one round."""
        received = self._exchange(_bytes(values), values.nbytes, both=True)
        return _array(received, values.shape, values.dtype)

    def tell(self, values: Ring) -> None:
        """Send an array that the other party `hear`s: one round."""
        self._exchange(_bytes(values), 0, both=False)

    def hear(self, shape: Shape, kind: np.dtype[Any]) -> Ring:
        """An array that the other party `tell`s: one round."""
        return _array(self._exchange(b"", math.prod(shape) * kind.itemsize, both=False), shape, kind)

    def finish(self) -> None:
        """Make sure that the other party ran the same query, where nothing else had to be said."""
        if self._tag:
            self._exchange(b"", 0, both=True)

    def _exchange(self, data: bytes | memoryview, due: int, both: bool) -> memoryview:
        tag, self._tag = self._tag, b""
        if not tag and not both:
            if due:
                return self._channel.receive(due)
            self._channel.send(data)
            return memoryview(b"")
        received = self._channel.exchange(tag + bytes(data) if tag else data, len(tag) + due)
        if received[: len(tag)] != tag:
            raise lost(self._channel.peer, "works on another query, or with other correlations")
        return received[len(tag) :]


def _bytes(values: Ring) -> memoryview:
    return memoryview(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)


def _array(data: memoryview, shape: Shape, kind: np.dtype[Any]) -> Ring:
    return np.frombuffer(data, dtype=kind).reshape(shape)
