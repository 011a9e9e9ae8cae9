"""What the rooms of the server tell one another: a job for the workers, its result, and the seam to run it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Job:
    """One request, admitted and paid for, on its way to a worker. Nothing in it has been parsed by a crypto library.

    Attributes:
        model: Name under which the model is served.
        client: Who asks: the queue is fair between clients.
        message: The body of the request: one frame.
        key_name: SHA-256 of the evaluation keys, by which workers keep them hot; empty where the protocol has none.
        key_file: The uploaded keys; None where the protocol has none.
        seconds: Time limit from here to the reply, waiting included.
    """

    model: str
    client: str
    message: bytes
    key_name: str = ""
    key_file: Path | None = None
    seconds: float = 60.0


@dataclass(frozen=True)
class Done:
    """A job's reply, and what it took.

    Attributes:
        reply: One frame.
        queue_s: Seconds that it waited for a worker.
        load_s: Seconds in which the worker read and unpacked evaluation keys that were not hot.
        run_s: Seconds of evaluation.
        cpu_s: Seconds of CPU of load and run together.
        statistics: What the server party counted, where the protocol has such counts.
    """

    reply: bytes
    queue_s: float
    load_s: float
    run_s: float
    cpu_s: float
    statistics: Mapping[str, float] = field(default_factory=dict)


class Runner(Protocol):
    """Runs jobs: a pool of processes, a cluster, or the one process of an MPC party."""

    async def run(self, job: Job) -> Done:
        """Run a job. A canceled call gives its place in the queue up, and its worker if it has begun.

        Raises:
            LimitExceeded: The queue is full; `retry_after` says when to ask again.
            ProtocolError: The worker died, or the time limit passed; the request may be sent again.
            BundleError, KeyMismatch, InvalidInput: What the worker found wrong with the message or the keys.
        """
        ...

    def forget(self, key_name: str) -> None:
        """Drop evaluation keys that were deleted from every worker that keeps them hot."""
        ...

    def status(self) -> Mapping[str, float]:
        """Gauges for metrics and readiness: workers, busy, queued, restarts, resident_bytes, hot_keys ..."""
        ...

    async def close(self) -> None:
        """End all workers; jobs under way are answered by a ProtocolError."""
        ...
