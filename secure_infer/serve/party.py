"""Runs the jobs of one MPC party whose peers were started elsewhere: party 0 proposes the next one, others choose."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Self, cast

from secure_infer.backends import load
from secure_infer.backends.parties import messages
from secure_infer.backends.parties.meeting import LONGEST_PROPOSAL, is_session, name_of
from secure_infer.backends.parties.messages import QUERY
from secure_infer.backends.parties.seam import SeveralParties
from secure_infer.backends.parties.standing import Link, Seat
from secure_infer.backends.parties.worker import Worker
from secure_infer.cores import usable_cores
from secure_infer.errors import LimitExceeded, Problem, ProtocolError, SecureInferError, UsageError
from secure_infer.serve.base import Done, Job
from secure_infer.serve.party_files import PartyHalf
from secure_infer.wire import frame

_LOG = logging.getLogger(__name__)
_PATIENCE = 0.05  # seconds that a party looks for a proposed query before it declines
_PAUSE = 0.5  # seconds between two attempts to connect
_SIGNS_OF_LIFE = 4  # in the time limit of one message


@dataclass(eq=False)
class _Waiting:
    """A job that waits for the other parties to have their shares as well."""

    name: str
    job: Job
    since: float = field(default_factory=time.monotonic)
    done: Future[Done] = field(default_factory=Future)

    @property
    def session(self) -> str:
        """The query's name without its size."""
        return self.name.partition(":")[0]

    def end(self, result: Done | SecureInferError) -> None:
        """Answer, unless nobody waits any more."""
        if self.done.set_running_or_notify_cancel():
            if isinstance(result, SecureInferError):
                self.done.set_exception(result)
            else:
                self.done.set_result(result)


class PartyRunner:
    """A `Runner` for one party: a process that holds the model, and a thread that keeps it in step with its peers.

    Args:
        half: The party's half of the model.
        seat: Its identity and its peers.
        capacity: Jobs that may wait.
        threads: For the process's libraries; half of the cores by default.

    Raises:
        BundleError: The half is damaged.
        UsageError: It was compiled for a first party that deals.
    """

    def __init__(self, half: PartyHalf, seat: Seat, capacity: int = 64, threads: int | None = None) -> None:
        self._half = cast(SeveralParties, load(half.interface.protocol)).party_half(half.server, half.party)
        if self._half.setup.insecure:
            raise UsageError(
                "This model is for development on one machine.",
                [Problem("provider", "Its party 0 deals, and could read every input.", "compile it with the dealer.")],
            )
        self._party, self._seat, self._capacity = half.party, seat, capacity
        self._threads = threads or max(1, usable_cores() // 2)
        self._changed, self._waiting = threading.Condition(), dict[str, _Waiting]()
        self._trouble: SecureInferError | None = _not_connected(seat.role)
        self._worker: Worker | None = None
        self._counts: Counter[str] = Counter(busy=0, restarts=0)
        self._refusals, self._refused = list[str](), OrderedDict[str, None]()  # here, and by another party
        self._others = " or ".join(name for name in self._half.setup.party_names if name != seat.role)
        self._closing = False
        self._thread = threading.Thread(target=self._keep, name=seat.role, daemon=True)

    async def start(self) -> Self:
        """Begin to look for the other roles, which need not be there yet; `status` says when they are."""
        self._thread.start()
        return self

    async def run(self, job: Job) -> Done:
        """Answer a share together with the other parties, once those have theirs.

        Raises:
            KeyMismatch, BundleError: Not a share of this model for this party.
            LimitExceeded: Too many wait.
            ProtocolError: A role is gone, or another party was not sent the same request in time.
        """
        try:
            share = messages.unpack(job.message, QUERY, self._half.model, self._party, self._half.input_shape)
        except SecureInferError:
            self._refuse(job.message)
            raise
        entry = _Waiting(name_of(share.session, len(share.values)), job)
        self._admit(entry)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(entry.done), job.seconds)
        except TimeoutError as error:
            raise self._unanswered(entry) from error
        finally:
            self._drop(entry)

    def forget(self, key_name: str) -> None:
        """Nothing: this protocol has no evaluation keys."""

    def status(self) -> Mapping[str, float]:
        """Gauges; `connected` is 1 while all roles are in touch."""
        with self._changed:
            connected = float(self._trouble is None)
            return {"workers": connected, "connected": connected, "queued": len(self._waiting), **self._counts}

    async def close(self) -> None:
        """End the party's process; jobs that wait are answered by a ProtocolError."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._kill()
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join)
        self._fail(ProtocolError("The party was stopped.", [Problem(self._seat.role, "It ended.", "start it again.")]))

    def _refuse(self, message: bytes) -> None:
        """Have the other parties told that they wait for a share that was refused here, if the share says for which."""
        with contextlib.suppress(SecureInferError):
            session = frame.unpack(message, QUERY).meta.get("session")
            if isinstance(session, str) and is_session(session):
                with self._changed:
                    self._refusals = [*self._refusals, session][-LONGEST_PROPOSAL:]
                    self._changed.notify_all()

    def _tell(self) -> list[str]:
        with self._changed:
            told, self._refusals = self._refusals, []
            return told

    def _told(self, sessions: Sequence[str]) -> None:
        """Answer the requests whose other share was refused; they are remembered, since a share may be yet to come."""
        with self._changed:
            self._refused.update(dict.fromkeys(sessions))
            while len(self._refused) > LONGEST_PROPOSAL:
                self._refused.popitem(last=False)
            ended = [entry for entry in self._waiting.values() if entry.session in sessions]
            for entry in ended:
                del self._waiting[entry.name]
        for entry in ended:
            entry.end(self._refusal())

    def _refusal(self) -> ProtocolError:
        problem = Problem(self._others, "It can't use its share.", "send each party the message that was made for it.")
        return ProtocolError(f"The {self._others} refused its share of this request.", [problem])

    def _admit(self, entry: _Waiting) -> None:
        with self._changed:
            if self._trouble is not None:
                raise _again(self._trouble)
            if entry.session in self._refused:
                raise self._refusal()
            if len(self._waiting) >= self._capacity:
                raise LimitExceeded(
                    "Too many requests wait.",
                    [Problem(self._seat.role, f"{self._capacity} wait already.", "ask again later.")],
                    retry_after=1.0,
                )
            replaced = self._waiting.pop(entry.name, None)
            self._waiting[entry.name] = entry
            self._changed.notify_all()
        if replaced:
            replaced.end(ProtocolError("The same request was sent again; the later one is answered."))

    def _drop(self, entry: _Waiting) -> None:
        with self._changed:
            if self._waiting.get(entry.name) is entry:
                del self._waiting[entry.name]

    def _unanswered(self, entry: _Waiting) -> ProtocolError:
        waited = f"It did not come to this request in {entry.job.seconds:g} s: it was not sent it, or is busy."
        return ProtocolError(
            f"The {self._others} did not join in.",
            [Problem(self._others, waited, "send all parties their shares at the same time, or ask again later.")],
        )

    def _keep(self) -> None:
        """Connect, serve until something fails, say what, and again."""
        while not self._closing:
            try:
                self._serve()
            except SecureInferError as error:
                self._fail(error)
            except Exception as error:
                _LOG.exception("%s failed", self._seat.role)
                self._fail(ProtocolError(f"The {self._seat.role} failed: {type(error).__name__}."))
            with self._changed:
                self._changed.wait_for(lambda: self._closing, _PAUSE)

    def _serve(self) -> None:
        link = Link(self._seat, self._half, self._threads, self._started)
        try:
            with self._changed:
                self._trouble = None
            _LOG.info("%s is connected", self._seat.role)
            turn = self._lead if self._party == 0 else self._follow
            while not self._closing:
                turn(link)
        finally:
            link.close()

    def _started(self, worker: Worker) -> None:
        with self._changed:
            self._worker = worker
        if self._closing:
            self._kill()

    def _kill(self) -> None:
        if self._worker is not None:
            self._worker.process.kill()

    def _fail(self, error: SecureInferError) -> None:
        with self._changed:
            if not self._closing:
                self._counts["restarts"] += self._trouble is None
                _LOG.warning("%s: %s", self._seat.role, error)
            self._trouble = error
            lost = list(self._waiting.values())
            self._waiting.clear()
        for entry in lost:
            entry.end(_again(error))

    def _lead(self, link: Link) -> None:
        offered = self._next(self._half.setup.timeout / _SIGNS_OF_LIFE)
        answer = link.call("propose", {"names": list(offered), "refused": self._tell()}).meta
        self._told(answer["refused"])
        if answer["chosen"]:
            self._evaluate(link, offered[answer["chosen"]])

    def _next(self, seconds: float) -> dict[str, _Waiting]:
        """What to propose: the first job of each client, then the second of each, and so on."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._refusals or self._closing, seconds)
            earlier: Counter[str] = Counter()
            ranked = []
            for place, entry in enumerate(self._waiting.values()):
                ranked.append((earlier[entry.job.client], place, entry))
                earlier[entry.job.client] += 1
        return {entry.name: entry for _, _, entry in sorted(ranked, key=lambda each: each[:2])[:LONGEST_PROPOSAL]}

    def _follow(self, link: Link) -> None:
        heard = link.call("hear").meta
        self._told(heard["refused"])
        known = self._known_of(heard["names"])
        answer = link.call("choose", {"waiting": list(known), "refused": self._tell()}).meta
        self._told(answer["refused"])
        if answer["chosen"]:
            self._evaluate(link, known[answer["chosen"]])

    def _known_of(self, names: Sequence[str]) -> dict[str, _Waiting]:
        """Those of some proposed queries that wait here, in the order of the proposal."""
        with self._changed:
            if names:
                self._changed.wait_for(lambda: self._waiting.keys() & names, _PATIENCE)
            return {name: self._waiting[name] for name in names if name in self._waiting}

    def _evaluate(self, link: Link, entry: _Waiting) -> None:
        """Run a job that all parties run now; even if nobody waits for it any more, or the parties lose step."""
        self._drop(entry)
        queued = time.monotonic() - entry.since
        self._counts["busy"] = 1
        try:
            answer = link.run(entry.job.message)
        except SecureInferError as error:
            entry.end(error)
            raise
        finally:
            self._counts["busy"] = 0
        spent = answer.meta
        done = Done(answer.parts[0], queued, 0.0, spent["seconds"], spent["cpu_seconds"], dict(spent))
        entry.end(done)


def _not_connected(role: str) -> ProtocolError:
    problem = Problem(role, "It has not reached the other roles yet.", "start them all, or ask again later.")
    return ProtocolError("The parties are not connected.", [problem])


def _again(error: SecureInferError) -> ProtocolError:
    """The same error, for one more caller."""
    return ProtocolError(error.summary, error.problems)
