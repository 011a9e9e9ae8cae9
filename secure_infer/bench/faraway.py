"""A transport whose servers are as far away as a network says: it waits as long as messages would travel."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from secure_infer.backends.parties.network import Network, wait_until
from secure_infer.wire.transport import Answer, Transport


class Faraway:
    """Another transport, with delays. Keys are uploaded without: they are sent once.

    Args:
        near: Carries the messages.
        network: Between the client and each server.
    """

    def __init__(self, near: Transport, network: Network) -> None:
        self._near, self._network = near, network

    def client_half(self) -> bytes:
        """The model's public half."""
        return self._near.client_half()

    def upload(self, evaluation: bytes) -> str:
        """Give the servers evaluation keys."""
        return self._near.upload(evaluation)

    def infer(self, messages: Sequence[bytes], key_name: str) -> Answer:
        """Run one request; its time is that of the servers and of both ways."""
        started = time.monotonic()
        self._travel(messages)
        answer = self._near.infer(messages, key_name)
        self._travel(answer.replies)
        return replace(answer, wall_s=time.monotonic() - started)

    def close(self) -> None:
        """Let go of the servers."""
        self._near.close()

    def _travel(self, messages: Sequence[bytes]) -> None:
        wait_until(time.monotonic() + self._network.seconds(1, sum(map(len, messages))))
