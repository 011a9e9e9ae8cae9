"""One request from its admission to its settlement, whatever becomes of the client or of the worker meanwhile."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from secure_infer.errors import Problem, ProtocolError, SecureInferError
from secure_infer.serve.accounts import Account
from secure_infer.serve.base import Done, Job, Runner
from secure_infer.serve.budgets import Admission
from secure_infer.serve.metrics import Metrics
from secure_infer.serve.problems import Refused
from secure_infer.serve.state import State

log = logging.getLogger(__name__)
CONFLICT = 409


@dataclass(frozen=True)
class Request:
    """One message, read and checked.

    Attributes:
        account: Who asks.
        job: What is to be run, but for the file of the keys.
        request_id: Names the request through its retries.
        digest: SHA-256 of the message.
    """

    account: Account
    job: Job
    request_id: str
    digest: str


@dataclass(frozen=True)
class Outcome:
    """A reply, and whether it was kept from an earlier try."""

    done: Done
    replayed: bool = False


@dataclass(eq=False)
class _Pending:
    digest: str
    waiting: int = 0
    abandoned: bool = False
    running: asyncio.Task[Done] | None = None
    task: asyncio.Task[Outcome] = field(init=False)


class Recorded(Exception):
    """A request that was refused or failed, as the audit log says already.

    Args:
        error: Why.
    """

    def __init__(self, error: SecureInferError) -> None:
        super().__init__(error.summary)
        self.error = error


class Inferences:
    """The requests under way.

    Args:
        state: Budgets and keys.
        runner: Where they are run.
        metrics: Where they are counted.
        linger_s: Seconds that a request goes on for a client that has gone.
    """

    def __init__(self, state: State, runner: Runner, metrics: Metrics, linger_s: float) -> None:
        self._state, self._runner, self._metrics, self._linger_s = state, runner, metrics, linger_s
        self._pending: dict[tuple[str, str], _Pending] = {}

    async def answer(self, request: Request, gone: Callable[[], asyncio.Task[None]]) -> Outcome:
        """The reply. A second try of a request that is being run waits for that run.

        Args:
            request: What is asked.
            gone: Makes a task that ends when the client has gone.

        Raises:
            KeyMismatch: The keys are not held.
            Recorded: What the request is refused for, or failed from.
            Refused: Another connection is having it run.
            ConnectionAbortedError: The client has gone.
        """
        pending = self._pending.get(_name(request))
        if pending is None or pending.digest != request.digest:
            pending = self._begin(request)
        pending.waiting += 1
        watch = gone()
        try:
            await asyncio.wait({pending.task, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not pending.task.done():
                await asyncio.wait({pending.task}, timeout=self._linger_s)
                raise ConnectionAbortedError("the client has gone")
            return await pending.task
        finally:
            watch.cancel()
            pending.waiting -= 1
            if not pending.waiting:
                _abandon(pending)

    async def close(self) -> None:
        """Give up what is under way, and settle it."""
        left = list(self._pending.values())
        for pending in left:
            _abandon(pending)
        await asyncio.gather(*(pending.task for pending in left), return_exceptions=True)

    def _begin(self, request: Request) -> _Pending:
        pending, name = _Pending(request.digest), _name(request)
        pending.task = asyncio.create_task(self._work(request, pending))
        # Where one of another message is under way, this one is about to be refused, and must not take its place.
        if name not in self._pending:
            self._pending[name] = pending
            pending.task.add_done_callback(lambda task: self._forget(name, task))
        return pending

    def _forget(self, name: tuple[str, str], task: asyncio.Task[Outcome]) -> None:
        del self._pending[name]
        if not task.cancelled():
            task.exception()  # Seen, even if all who waited have gone.

    async def _work(self, request: Request, pending: _Pending) -> Outcome:
        with ExitStack() as held:
            job, admission = await asyncio.to_thread(self._admit, request, held)
            if admission.kind == "replay":
                return Outcome(Done(admission.reply, 0.0, 0.0, 0.0, 0.0), replayed=True)
            if admission.kind == "running":
                raise _elsewhere(admission)
            return Outcome(await self._run(job, admission, pending))

    def _admit(self, request: Request, held: ExitStack) -> tuple[Job, Admission]:
        """Hold the keys, and charge the client; both may wait for the disk."""
        job, account = request.job, request.account
        if job.key_name:
            job = replace(job, key_file=held.enter_context(self._state.keys.hold(account.client, job.key_name)))
        asked = job.model, job.key_name, request.request_id, request.digest, len(job.message)
        try:
            return job, self._state.budgets.admit(account, *asked)
        except SecureInferError as error:
            raise Recorded(error) from error

    async def _run(self, job: Job, admission: Admission, pending: _Pending) -> Done:
        """Run an admitted job and settle it, exactly once."""
        try:
            if pending.abandoned:
                raise _canceled()
            pending.running = asyncio.create_task(self._runner.run(job))
            done = await _result(pending.running)
        except SecureInferError as error:
            await asyncio.to_thread(self._state.budgets.settle, admission, error)
            raise Recorded(error) from error
        except BaseException as error:
            log.exception("a runner failed")
            defect = ProtocolError("The server failed.", [Problem("server", type(error).__name__, "see its log.")])
            await asyncio.to_thread(self._state.budgets.settle, admission, defect)
            raise Recorded(defect) from error
        await asyncio.to_thread(self._state.budgets.settle, admission, done.reply, done.cpu_s)
        self._metrics.inference(job.model, done)
        return done


async def _result(running: asyncio.Task[Done]) -> Done:
    """What a run gave. Its cancellation is an error of the request, not of whoever waits for it."""
    await asyncio.wait({running})
    if running.cancelled():
        raise _canceled()
    return running.result()


def _abandon(pending: _Pending) -> None:
    pending.abandoned = True
    if pending.running is not None:
        pending.running.cancel()


def _canceled() -> ProtocolError:
    return ProtocolError(
        "The request was canceled.", [Problem("client", "It closed the connection.", "send the request again.")]
    )


def _elsewhere(admission: Admission) -> Refused:
    problem = Problem("Idempotency-Key", "Another connection has sent this request.", "ask again for its reply.")
    after = {"Retry-After": str(max(1, round(admission.retry_after)))}
    return Refused(ProtocolError("The request is being run.", [problem]), CONFLICT, after)


def _name(request: Request) -> tuple[str, str]:
    return request.account.client, request.request_id
