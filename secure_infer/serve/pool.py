"""Runs requests in a pool of forked worker processes: bounded, fair, with time limits, and over crashes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from secure_infer.errors import Problem, ProtocolError, SecureInferError
from secure_infer.serve.base import Done, Job
from secure_infer.serve.pool_queue import FairQueue, Ticket
from secure_infer.serve.processes import Channel, Template
from secure_infer.serve.worker_pipe import Closed, pieces, receive_async
from secure_infer.wire import api

START_SECONDS = 300.0
_BACK_OFF = 1.0
_LOG = logging.getLogger(__name__)


class Seat:
    """A place for a worker, whichever process fills it just now.

    Attributes:
        channel: The process; None while there is none.
        ticket: What it runs.
        hot: Names of the evaluation keys that it has opened.
        hot_bytes: Memory that they take.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.channel: Channel | None = None
        self.ticket: Ticket | None = None
        self.hot: set[str] = set()
        self.hot_bytes = 0


class Pool:
    """A `Runner` on worker processes of this machine.

    Args:
        models: Path of the bundle of each model, by the name under which it is served.
        workers: Processes; one for each usable core if 0.
        queue: Requests that may wait for a worker.
        threads: Threads that a worker's libraries may use for one request.
        hot_bytes: Memory for opened evaluation keys in each worker.

    Raises:
        UsageError: A bundle that can't be read.
    """

    def __init__(
        self,
        models: Mapping[str, Path],
        workers: int = 0,
        queue: int = 256,
        *,
        threads: int = 1,
        hot_bytes: int = 1 << 30,
    ) -> None:
        count = workers or len(os.sched_getaffinity(0))
        self._template = Template(models, hot_bytes, threads)
        self._queue = FairQueue(queue, count)
        self._seats = [Seat(number) for number in range(count)]
        self._tasks: list[asyncio.Task[None]] = []
        self._open = False
        self._counts = {"done": 0, "failed": 0, "restarts": 0}
        self._mean_s = 1.0
        self._idle = asyncio.Event()

    async def start(self) -> Self:
        """Load all models and start the workers; call it once, in the event loop that will run the jobs.

        Raises:
            BundleError: A damaged bundle.
            UsageError: A model of several parties.
            ProtocolError: The processes do not come up.
        """
        await self._template.start(START_SECONDS)
        for seat in self._seats:
            seat.channel = await self._template.fork(START_SECONDS)
        self._tasks = [asyncio.create_task(self._keep(seat)) for seat in self._seats]
        self._open = True
        return self
