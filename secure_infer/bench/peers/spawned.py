"""The parties of a peer as processes of this machine, each driven through a pipe."""

from __future__ import annotations

import multiprocessing
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any

from secure_infer.errors import ProtocolError

TIMEOUT_S = 600
_GRACE_S = 10


class Spawned:
    """Processes that were spawned: a fork after SPU has been loaded hangs.

    Args:
        peer: Their library, for errors.

    Attributes:
        pipes: To each party, in order.
    """

    def __init__(self, peer: str) -> None:
        self._peer, self._processes = peer, list[Any]()
        self.pipes: list[Connection] = []

    def start(self, serve: Callable[..., None], arguments: Sequence[Sequence[Any]]) -> None:
        """Start a party for each entry, which is given its arguments with its pipe in front."""
        context = multiprocessing.get_context("spawn")
        for each in arguments:
            mine, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, *each), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self.pipes.append(mine)

    def receive(self, party: int) -> bytes:
        """The next message of a party.

        Raises:
            ProtocolError: It ended, or does not answer.
        """
        return receive(self.pipes[party], self._peer)

    def close(self) -> None:
        """End all parties."""
        for process, pipe in zip(self._processes, self.pipes, strict=True):
            pipe.close()
            process.join(_GRACE_S)
            if process.is_alive():
                process.kill()
                process.join()
        self._processes, self.pipes = [], []


def receive(pipe: Connection, peer: str) -> bytes:
    """The next message from the other end of a pipe.

    Raises:
        ProtocolError: That end is closed, or does not answer.
    """
    if not pipe.poll(TIMEOUT_S):
        raise ProtocolError(f"A party of {peer} does not answer.")
    try:
        return pipe.recv_bytes()
    except (EOFError, OSError) as error:
        raise ProtocolError(f"A party of {peer} ended.") from error


def free_ports(count: int) -> list[int]:
    """So many ports of this machine that nobody listens at."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
