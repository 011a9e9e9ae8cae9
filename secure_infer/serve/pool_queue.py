"""Requests that wait for a worker: bounded, fair between clients, and led to the worker that has their keys hot."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain

from secure_infer.errors import LimitExceeded, Problem, ProtocolError, UsageError
from secure_infer.serve.base import Done, Job

PASSES = 4
"""How many times for each worker a request is passed over in favor of one whose keys the free worker has hot."""


@dataclass(eq=False)
class Ticket:
    """A job in the queue, or with a worker.

    Attributes:
        job: What to run.
        answer: Set when it is done or has failed.
        since: When it came, by the monotonic clock.
        passes: How often it was passed over.
        started: When a worker began with it.
    """

    job: Job
    answer: asyncio.Future[Done]
    since: float = field(default_factory=time.monotonic)
    passes: int = 0
    started: float = 0.0

    def settle(self, outcome: Done | Exception) -> None:
        """Answer; once it is answered, this does nothing."""
        if self.answer.done():
            return
        if isinstance(outcome, Done):
            self.answer.set_result(outcome)
        else:
            self.answer.set_exception(outcome)

    async def result(self) -> Done:
        """The answer, if it comes within the job's time.

        Raises:
            ProtocolError: It did not.
            SecureInferError: What the answer is instead.
        """
        try:
            async with asyncio.timeout(self.job.seconds):
                return await self.answer
        except TimeoutError as error:
            what = f"It was not done within {self.job.seconds:g} s."
            problem = Problem("server", what, "send it again later, or with fewer inputs.")
            raise ProtocolError("The request took too long.", [problem]) from error


def ticket(job: Job, models: Collection[str]) -> Ticket:
    """A ticket for a job.

    Raises:
        UsageError: There is no such model.
    """
    if job.model not in models:
        problem = Problem("model", "It is not served here.", "list the models.")
        raise UsageError(f"There is no model {job.model!r}.", [problem])
    return Ticket(job, asyncio.get_running_loop().create_future())


class FairQueue:
    """Round robin over clients, first come first served within each.

    A free worker prefers requests whose keys it has hot, then those whose keys nobody has. The others wait, but not for
    long ("delay scheduling", Zaharia et al., EuroSys 2010), and never while a worker would stand idle.

    Args:
        limit: Requests that may wait.
        workers: Number of workers.
    """

    def __init__(self, limit: int, workers: int) -> None:
        self._limit, self._most_passes = limit, PASSES * workers
        self._waiting: OrderedDict[str, deque[Ticket]] = OrderedDict()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def put(self, ticket: Ticket, retry_after: float) -> None:
        """Let a request wait.

        Raises:
            LimitExceeded: Too many do.
        """
        if self._length >= self._limit:
            raise LimitExceeded(
                "The server is busy.",
                [Problem("queue", f"{self._length} requests are waiting.", "send the request again later.")],
                retry_after=retry_after,
            )
        self._waiting.setdefault(ticket.job.client, deque()).append(ticket)
        self._length += 1

    def discard(self, ticket: Ticket) -> None:
        """Take a request out, if it still waits."""
        tickets = self._waiting.get(ticket.job.client, ())
        if ticket in tickets:
            self._remove(ticket)

    def take(self, free: Mapping[int, Collection[str]], busy: Collection[Collection[str]]) -> tuple[Ticket, int] | None:
        """The request to run next, and the worker to run it; None if there is neither.

        Args:
            free: Names of the keys that each idle worker has hot.
            busy: The same of those at work.
        """
        if not free or not self._length:
            return None
        ticket = self._next(free, busy)
        name = ticket.job.key_name
        hot = [number for number, names in free.items() if name in names]
        worker = hot[0] if hot else min(free, key=lambda number: len(free[number]))
        self._remove(ticket)
        if ticket.job.client in self._waiting:
            self._waiting.move_to_end(ticket.job.client)
        return ticket, worker

    def __iter__(self) -> Iterator[Ticket]:
        return chain.from_iterable(list(self._waiting.values()))

    def _next(self, free: Mapping[int, Collection[str]], busy: Collection[Collection[str]]) -> Ticket:
        """Of the requests whose turn it is: one passed over too often, else hot on a free worker, hot nowhere, any."""
        heads = [tickets[0] for tickets in self._waiting.values()]
        here, there = set(chain.from_iterable(free.values())), set(chain.from_iterable(busy))

        def rank(ticket: Ticket) -> int:
            name = ticket.job.key_name
            return 0 if ticket.passes >= self._most_passes else 1 if name in here else 2 if name not in there else 3

        chosen = min(heads, key=rank)
        for passed in heads[: heads.index(chosen)]:
            passed.passes += 1
        return chosen

    def _remove(self, ticket: Ticket) -> None:
        tickets = self._waiting[ticket.job.client]
        tickets.remove(ticket)
        self._length -= 1
        if not tickets:
            del self._waiting[ticket.job.client]
