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

from secure_infer.cores import usable_cores
from secure_infer.errors import Problem, ProtocolError, SecureInferError
from secure_infer.serve import pool_queue
from secure_infer.serve.base import Done, Job
from secure_infer.serve.pool_queue import FairQueue, Ticket
from secure_infer.serve.processes import Channel, Template
from secure_infer.serve.worker_pipe import Closed, receive_async
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
        condemned: Whether the worker is about to end, so that it gets no more work.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.channel: Channel | None = None
        self.ticket: Ticket | None = None
        self.hot: set[str] = set()
        self.hot_bytes = 0
        self.condemned = False


class Pool:
    """A `Runner` on worker processes of this machine.

    Args:
        models: Path of the bundle of each model, by the name under which it is served.
        workers: Processes; one for each usable core if 0.
        queue: Requests that may wait for a worker.
        threads: Threads that a worker's libraries may use for one request.
        hot_bytes: Memory for opened evaluation keys in each worker.
        most_bytes: Memory of a worker in all, beyond which a request fails; an equal share of the machine's if 0.

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
        most_bytes: int = 0,
    ) -> None:
        count = workers or usable_cores()
        share = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // count
        self._models = frozenset(models)
        self._template = Template(models, hot_bytes, most_bytes or share, threads)
        self._queue = FairQueue(queue, count)
        self._seats = [Seat(number) for number in range(count)]
        self._tasks: list[asyncio.Task[None]] = []
        self._open = False
        self._counts = {"done": 0, "failed": 0, "restarts": 0}
        self._mean_s = 1.0

    async def start(self) -> Self:
        """Load all models and start the workers; call it once, in the event loop that will run the jobs.

        Raises:
            BundleError: A damaged bundle.
            UsageError: A model of several parties.
            ProtocolError: The processes do not come up.
        """
        try:
            await self._template.start(START_SECONDS)
            for seat in self._seats:
                seat.channel = await self._template.fork(START_SECONDS)
        except BaseException:
            await self.close()
            raise
        self._tasks = [asyncio.create_task(self._keep(seat)) for seat in self._seats]
        self._open = True
        return self

    async def run(self, job: Job) -> Done:
        """Run a job; see `Runner.run`.

        Raises:
            UsageError: There is no such model.
            LimitExceeded: The queue is full.
            ProtocolError: The worker died, the time limit passed, or the pool is closed.
            BundleError, KeyMismatch, InvalidInput: What the worker found wrong with the message or the keys.
        """
        if not self._open:
            raise _closing()
        ticket = pool_queue.ticket(job, self._models)
        self._queue.put(ticket, self._wait_s())
        self._dispatch()
        try:
            return await ticket.result()
        finally:
            self._withdraw(ticket)

    def forget(self, key_name: str) -> None:
        """Drop evaluation keys that were deleted; a worker at work drops them when it is done."""
        for seat in self._seats:
            if seat.channel is not None:
                seat.channel.send({"forget": key_name})
            seat.hot.discard(key_name)

    def status(self) -> Mapping[str, float]:
        """Gauges: workers, busy, queued, done, failed, restarts, hot_keys, hot_bytes, resident_bytes.

        `resident_bytes` counts what processes share once (the sum of their proportional set sizes).
        """
        alive = [seat for seat in self._seats if seat.channel is not None]
        pids = [seat.channel.pid for seat in alive if seat.channel] + [pid for pid in [self._template.pid] if pid]
        return {
            "workers": len(alive),
            "busy": sum(seat.ticket is not None for seat in self._seats),
            "queued": len(self._queue),
            **self._counts,
            "hot_keys": sum(len(seat.hot) for seat in alive),
            "hot_bytes": sum(seat.hot_bytes for seat in alive),
            "resident_bytes": sum(map(resident_bytes, pids)),
        }

    async def close(self) -> None:
        """End all workers; jobs under way are answered by a ProtocolError."""
        self._open = False
        for ticket in self._unfinished():
            ticket.settle(_closing())
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for seat in self._seats:
            if seat.channel is not None:
                seat.channel.close()
                seat.channel = None
        await self._template.close()

    async def _keep(self, seat: Seat) -> None:
        """Take a worker's replies for as long as the pool is open; replace the worker when it has died."""
        while True:
            started = time.monotonic()
            with contextlib.suppress(Closed, KeyError, TypeError, ValueError):
                while seat.channel is not None:
                    self._finish(seat, *await receive_async(seat.channel.reader))
            self._lose(seat)
            while seat.channel is None:
                await asyncio.sleep(max(0.0, started + _BACK_OFF - time.monotonic()))
                started = time.monotonic()
                try:
                    seat.channel = await self._template.fork(START_SECONDS)
                except (SecureInferError, OSError) as error:  # OSError: too many open files
                    _LOG.error("No worker could be started: %s", error)
            self._dispatch()

    def _dispatch(self) -> None:
        """Give idle workers what waits."""
        while True:
            there = [seat for seat in self._seats if seat.channel is not None]
            free = {seat.number: seat.hot for seat in there if seat.ticket is None and not seat.condemned}
            found = self._queue.take(free, [seat.hot for seat in there if seat.ticket is not None])
            if found is None:
                return
            ticket, number = found
            seat, job = self._seats[number], ticket.job
            seat.ticket, ticket.started = ticket, time.monotonic()
            file = str(job.key_file) if job.key_file else None
            assert seat.channel is not None
            seat.channel.send({"model": job.model, "key_name": job.key_name, "key_file": file}, job.message)

    def _finish(self, seat: Seat, head: Mapping[str, Any], reply: bytes) -> None:
        ticket, seat.ticket = seat.ticket, None
        seat.hot, seat.hot_bytes = set(head["hot"]), int(head["hot_bytes"])
        seat.condemned |= bool(head.get("broken"))
        if ticket is None:
            return
        if "problem" in head:
            self._counts["failed"] += 1
            ticket.settle(api.error_of(head["problem"], head["problem"]["status"]))
        else:
            self._counts["done"] += 1
            self._mean_s += 0.1 * (head["load_s"] + head["run_s"] - self._mean_s)
            times = {name: head[name] for name in ("load_s", "run_s", "cpu_s", "statistics")}
            ticket.settle(Done(reply, queue_s=ticket.started - ticket.since, **times))
        self._dispatch()

    def _lose(self, seat: Seat) -> None:
        """A worker has ended, or was killed."""
        ticket, channel, seat.ticket, seat.channel = seat.ticket, seat.channel, None, None
        seat.hot, seat.hot_bytes, seat.condemned = set(), 0, False
        self._counts["restarts"] += 1
        if channel is not None:
            self._template.kill(channel)
            channel.close()
        if ticket is not None and not ticket.answer.done():
            self._counts["failed"] += 1
            _LOG.warning("Worker %d ended while it ran a request; it is replaced.", seat.number)
            ticket.settle(_died())

    def _withdraw(self, ticket: Ticket) -> None:
        """Forget a job that is answered or that nobody waits for any more: then its worker is killed, if it has one."""
        self._queue.discard(ticket)
        for seat in self._seats:
            if seat.ticket is ticket and seat.channel is not None:
                seat.condemned = True
                self._template.kill(seat.channel)

    def _unfinished(self) -> list[Ticket]:
        return [*self._queue, *(seat.ticket for seat in self._seats if seat.ticket is not None)]

    def _wait_s(self) -> float:
        """Seconds after which the queue should be half empty."""
        return max(1.0, self._mean_s * len(self._queue) / 2 / len(self._seats))


def resident_bytes(pid: int) -> int:
    """Proportional set size of a process: pages that it shares count in part; 0 if it is gone or hides them."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    return 0


def _closing() -> ProtocolError:
    return ProtocolError(
        "The server is closing.", [Problem("server", "It takes no more requests.", "send the request again later.")]
    )


def _died() -> ProtocolError:
    return ProtocolError(
        "The request was not answered.",
        [Problem("worker", "Its process ended in the middle of it.", "send the request again.")],
    )
