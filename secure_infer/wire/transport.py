"""How messages reach the servers: the seam, and the transport that keeps all roles on one machine."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from secure_infer.errors import KeyMismatch, Problem, ProtocolError, UsageError


@dataclass(frozen=True)
class Answer:
    """The servers' replies to one request.

    Attributes:
        replies: One for each party.
        wall_s: Seconds from the first message in to the last reply out, on the server side.
        cpu_s: Seconds of CPU that all parties spent.
        statistics: What the parties counted (rounds, bytes between them ...), where the protocol has such counts.
        phases: Seconds by phase of `wall_s` over a network: upload, queue, load, run, transfer.
    """

    replies: tuple[bytes, ...]
    wall_s: float
    cpu_s: float
    statistics: Mapping[str, float] = field(default_factory=dict)
    phases: Mapping[str, float] = field(default_factory=dict)


class Transport(Protocol):
    """Carries a client's requests to the server side."""

    def client_half(self) -> bytes:
        """The model's public half."""
        ...

    def upload(self, evaluation: bytes) -> str:
        """Give the servers evaluation keys; returns the name (SHA-256) to infer with."""
        ...

    def infer(self, messages: Sequence[bytes], key_name: str) -> Answer:
        """Run one request: a message for each party."""
        ...

    def close(self) -> None:
        """Let go of the servers."""
        ...


class Party(Protocol):
    """One server party, as the transport sees it."""

    def run(self, message: bytes, evaluation: bytes) -> bytes:
        """Answer a message."""
        ...

    def close(self) -> None:
        """Release resources."""
        ...


class InProcess:
    """All server parties on this machine, at the same time so that they can talk.

    Parties in processes of their own are asked one after another and then waited for; others run in a thread each, the
    last in the caller's own. Requests of several threads wait for one another: else a party of one could hold the
    thread for which a party of another waits.
    """

    def __init__(self, client_half: bytes, parties: Sequence[Party]) -> None:
        self._client_half = client_half
        self._parties = tuple(parties)
        self._keys: dict[str, bytes] = {}
        self._turn, self._closed = threading.Lock(), False
        self._threads = ThreadPoolExecutor(len(self._parties), thread_name_prefix="party")

    def client_half(self) -> bytes:
        """The model's public half."""
        return self._client_half

    def upload(self, evaluation: bytes) -> str:
        """Keep evaluation keys in memory under their SHA-256."""
        name = hashlib.sha256(evaluation).hexdigest()
        self._keys[name] = evaluation
        return name

    def infer(self, messages: Sequence[bytes], key_name: str) -> Answer:
        """Run all parties at once.

        Raises:
            KeyMismatch: Keys that were never uploaded.
            ProtocolError: The transport is closed.
            UsageError: More or less messages than parties.
        """
        if self._closed:
            raise ProtocolError(
                "The servers are closed.", [Problem("servers", "close() was called.", "make a new client.")]
            )
        if key_name not in self._keys:
            raise KeyMismatch(
                "The server does not hold these evaluation keys.",
                [Problem("evaluation keys", f"No keys named {key_name[:12]} were uploaded.", "upload them first.")],
            )
        if len(messages) != len(self._parties):
            raise UsageError(
                f"This model's protocol has {len(self._parties)} server parties.",
                [Problem("messages", f"Got {len(messages)}.", "encrypt with the client half of the same model.")],
            )
        with self._turn:
            return self._run(messages, self._keys[key_name])

    def _run(self, messages: Sequence[bytes], evaluation: bytes) -> Answer:
        wall, cpu = time.perf_counter(), self._cpu_seconds()
        asks = [getattr(party, "ask", None) for party in self._parties]
        if all(asks):  # waking a thread takes longer than some messages
            waits = [_here(ask, message, evaluation) for ask, message in zip(asks, messages, strict=True)]
            running = [_here(wait.result()) if wait.exception() is None else wait for wait in waits]
        else:
            *others, own = zip(self._parties, messages, strict=True)
            running = [self._threads.submit(party.run, message, evaluation) for party, message in others]
            running.append(_here(own[0].run, own[1], evaluation))
        replies = tuple(future.result() for future in running)
        wall_s, cpu_s = time.perf_counter() - wall, self._cpu_seconds() - cpu
        return Answer(replies, wall_s, cpu_s, self._statistics())

    def close(self) -> None:
        """Close every party; once more does nothing."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for party in self._parties:
            party.close()

    def _cpu_seconds(self) -> float:
        """CPU of this process and of the parties' own processes, where they have such."""
        return time.process_time() + sum(getattr(party, "cpu_seconds", float)() for party in self._parties)

    def _statistics(self) -> dict[str, Any]:
        return merged([getattr(party, "statistics", {}) for party in self._parties])


def merged(parties: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What several parties counted as one: the most, but for the bytes between them, which is what all have sent."""
    found: dict[str, float] = {}
    for counted in parties:
        for name, value in counted.items():
            found[name] = max(found.get(name, 0), value)
    if all("bytes_sent" in counted for counted in parties):
        found["bytes_between_parties"] = sum(counted["bytes_sent"] for counted in parties)
    return found


def _here(act: Any, *arguments: Any) -> Future[Any]:
    """What an executor gives back, for a call that is made at once."""
    done: Future[Any] = Future()
    try:
        done.set_result(act(*arguments))
    except BaseException as error:
        done.set_exception(error)
    return done
