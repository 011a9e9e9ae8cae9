"""Networks that are not there: delays that make processes of one machine as slow to reach as hosts far apart.

The sender writes its clock before each message; the receiver waits until the message would have come, which is half a
round trip after its last byte would have left. Both read the clock of one machine, so this is for measurements on one.
"""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass

STAMP_BYTES = 8
"""Bytes of the sender's clock, which are no part of a message and not counted."""
_SPIN_S = 3e-4  # a sleep may take this much longer than asked for


@dataclass(frozen=True)
class Network:
    """A network between any two processes.

    Attributes:
        name: Its name.
        round_trip_s: Seconds there and back.
        bits_per_s: Bandwidth of each direction of each connection.
    """

    name: str
    round_trip_s: float
    bits_per_s: float

    def seconds(self, messages: float, size: float) -> float:
        """The least time of so many messages that wait for one another and hold `size` bytes in all."""
        return messages * self.round_trip_s / 2 + 8 * size / self.bits_per_s


LOOPBACK = "loopback"
NETWORKS: Mapping[str, Network | None] = {
    LOOPBACK: None,
    "lan": Network("lan", 0.3e-3, 3e9),
    "wan": Network("wan", 40e-3, 400e6),
}
"""By name; None is the machine's own."""

_CHOSEN: ContextVar[str] = ContextVar("network", default=LOOPBACK)


@contextlib.contextmanager
def between_parties(name: str) -> Iterator[None]:
    """Sessions that are started in this block have this network between their processes."""
    token = _CHOSEN.set(name)
    try:
        yield
    finally:
        _CHOSEN.reset(token)


def chosen() -> str:
    """Name of the network that a session started now is to have."""
    return _CHOSEN.get()


class Line:
    """One direction of a connection over a network: what was sent before has to get through first."""

    def __init__(self, network: Network) -> None:
        self._network, self._free = network, 0.0

    @staticmethod
    def stamp() -> bytes:
        """The sender's clock, for `wait`."""
        return struct.pack("<d", time.monotonic())

    def due(self, sent: float, size: int) -> float:
        """When a message of `size` bytes that was sent at `sent` is there; call it in the order of sending."""
        self._free = max(self._free, sent) + 8 * size / self._network.bits_per_s
        return self._free + self._network.round_trip_s / 2

    def wait(self, stamp: memoryview, size: int) -> None:
        """Return when the message would have come."""
        (sent,) = struct.unpack("<d", stamp)
        wait_until(self.due(sent, size))


def wait_until(moment: float) -> None:
    """Wait for a moment of `time.monotonic`, to a few microseconds."""
    left = moment - time.monotonic()
    if left > _SPIN_S:
        time.sleep(left - _SPIN_S)
    while time.monotonic() < moment:
        pass
