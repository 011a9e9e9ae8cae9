"""The processes of a session, seen from the process that serves: started together, used for many runs, always ended."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence

from secure_infer.backends.parties.channel import HOST, Identity, new_identity
from secure_infer.backends.parties.messages import QUERY
from secure_infer.backends.parties.network import chosen
from secure_infer.backends.parties.seam import DEALER_NAME, LONGEST_RUN, PARTY_NAMES, Setup
from secure_infer.backends.parties.worker import GRACE_SECONDS, START_SECONDS, Worker
from secure_infer.errors import Problem, ProtocolError, SecureInferError
from secure_infer.wire import frame
from secure_infer.wire.frame import Frame

_GLANCE_S, _IDLE_SHARE = 0.1, 0.05


class Turns:
    """Lets queries through one after another, both parties of each together, however their callers interleave."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._current: str | None = None
        self._done = 0

    @contextlib.contextmanager
    def take(self, query: str, seconds: float) -> Iterator[None]:
        """Wait until no other query is running; the turn ends when both parties are done, or one has failed.

        Raises:
            ProtocolError: Other queries take longer than `seconds`.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._current in (None, query), seconds):
                raise ProtocolError(
                    "The servers are busy.",
                    [Problem("servers", "Other queries did not end in time.", "ask again later.")],
                )
            if self._current is None:
                self._current, self._done = query, 0
        try:
            yield
        except BaseException:
            self._end(query, failed=True)
            raise
        self._end(query, failed=False)

    def _end(self, query: str, failed: bool) -> None:
        with self._changed:
            if self._current == query:
                self._done += 1
                if failed or self._done == len(PARTY_NAMES):
                    self._current = None
            self._changed.notify_all()


class Session:
    """Two parties and a dealer in processes of their own, connected and ready; models are loaded one after another.

    Args:
        setup: How the processes are started.

    Raises:
        ProtocolError: A process that does not start or connect.
    """

    def __init__(self, setup: Setup) -> None:
        names = (*PARTY_NAMES, DEALER_NAME) if setup.dealer else PARTY_NAMES
        threads = max(1, (os.cpu_count() or 1) // 2)
        self.timeout = setup.timeout
        self._workers: dict[str, Worker] = {}
        self._locks, self._turns = (threading.Lock(), threading.Lock()), Turns()
        self.close = weakref.finalize(self, _end, self._workers)
        try:
            for name in names:
                self._workers[name] = Worker(name, threads, setup.module)
            self._start(setup, {name: new_identity(name) for name in names}, threads)
        except BaseException:
            self.close()
            raise

    @property
    def processes(self) -> dict[str, int]:
        """Process numbers, by name; empty once the session is closed."""
        return {name: worker.process.pid for name, worker in self._workers.items()}

    def dealer_seconds(self) -> float:
        """CPU that the dealer's process has taken so far; zero if there is no dealer or the system does not tell."""
        process = self.processes.get(DEALER_NAME)
        return _burnt(process) if process else 0.0

    def settle(self, seconds: float) -> None:
        """Wait until no process works, as a dealer does for later runs; for so many seconds at most."""
        deadline, before = time.monotonic() + seconds, -1.0
        while time.monotonic() < deadline:
            burnt = sum(map(_burnt, self.processes.values()))
            if burnt - before < _IDLE_SHARE * _GLANCE_S:
                return
            before = burnt
            time.sleep(_GLANCE_S)

    def load(self, halves: Sequence[Sequence[bytes]]) -> None:
        """Load a model: the parts of each party's half."""
        for name, parts in zip(PARTY_NAMES, halves, strict=True):
            self._worker(name).send("load", parts=parts)
        self._gather(PARTY_NAMES, LONGEST_RUN * self.timeout)

    def run(self, party: int, message: bytes) -> Frame:
        """Run one party; the other must be run meanwhile, in another thread."""
        worker, limit = self._worker(PARTY_NAMES[party]), LONGEST_RUN * self.timeout
        query = str(frame.unpack(message, QUERY).meta.get("session"))
        try:
            with self._turns.take(query, limit), self._locks[party]:
                worker.send("run", parts=[message])
                return worker.receive(limit)
        except ProtocolError as error:
            raise self._explained(error) from error

    def measure(self) -> dict[str, float]:
        """Seconds for one of each primitive, as party 0 sees it."""
        for name in PARTY_NAMES:
            self._worker(name).send("measure")
        return dict(self._gather(PARTY_NAMES, LONGEST_RUN * self.timeout)[PARTY_NAMES[0]].meta)

    def _start(self, setup: Setup, identities: Mapping[str, Identity], threads: int) -> None:
        for name, worker in self._workers.items():
            peers = {other: identity.certificate for other, identity in identities.items() if other != name}
            meta = {
                "role": name,
                "peers": list(peers),
                "timeout": self.timeout,
                "settings": dict(setup.settings),
                "threads": threads,
                "network": chosen(),
            }
            mine = identities[name]
            worker.send("start", meta, [mine.key, mine.certificate, *peers.values()])
        answers = self._gather(list(self._workers), START_SECONDS)
        addresses = {name: (HOST, answer.meta["port"]) for name, answer in answers.items()}
        for worker in self._workers.values():
            worker.send("connect", {"addresses": addresses})
        self._gather(list(self._workers), START_SECONDS)

    def _worker(self, name: str) -> Worker:
        if name not in self._workers:
            raise ProtocolError("The servers are closed.", [Problem(name, "Its process was ended.", "start again.")])
        return self._workers[name]

    def _gather(self, names: Sequence[str], seconds: float) -> dict[str, Frame]:
        """Everybody's answer; all are read before the first failure is raised, so that none is left in a pipe."""
        answers: dict[str, Frame] = {}
        failures: list[SecureInferError] = []
        for name in names:
            try:
                answers[name] = self._worker(name).receive(seconds)
            except SecureInferError as error:
                failures.append(error)
        if failures:
            raise failures[0]
        return answers

    def _explained(self, error: ProtocolError) -> ProtocolError:
        """The error, with every process that has ended named."""
        deadline = time.monotonic() + GRACE_SECONDS
        named = {problem.where for problem in error.problems}
        while time.monotonic() < deadline:
            ended = {
                name: worker.process.returncode
                for name, worker in self._workers.items()
                if worker.process.poll() is not None and name not in named
            }
            if ended:
                break
            time.sleep(0.02)
        extra = [
            Problem(name, f"Its process ended with code {code}.", "start the servers again.")
            for name, code in ended.items()
        ]
        return ProtocolError(error.summary, [*error.problems, *extra])


class PartyRole:
    """One server party, as the caller sees it.

    Attributes:
        statistics: Of the last run: rounds, bytes_sent (to the other party), bytes_between_parties (in both
            directions), bytes_from_dealer (to this party), seconds, cpu_seconds (of the process), and
            dealer_total_seconds: CPU that the dealer's process has taken since it was started.
    """

    def __init__(self, session: Session, party: int) -> None:
        self._session, self._party = session, party
        self._cpu_seconds = 0.0
        self.statistics: dict[str, float] = {}

    def cpu_seconds(self) -> float:
        """CPU that all runs so far have taken in this party's process."""
        return self._cpu_seconds

    def run(self, message: bytes, evaluation: bytes) -> bytes:
        """The reply to a share. Call it for both parties at the same time, each in a thread of its own.

        Raises:
            BundleError: Not a share for this party, or one of a wrong shape.
            KeyMismatch: A share for another model.
            ProtocolError: The other party was not run, or a process or connection failed; says which.
        """
        answer = self._session.run(self._party, message)
        self.statistics = {**answer.meta, "dealer_total_seconds": self._session.dealer_seconds()}
        self._cpu_seconds += self.statistics["cpu_seconds"]
        return answer.parts[0]

    def settle(self, seconds: float = 120.0) -> None:
        """Wait until no process of the session works ahead, so that a run is timed alone."""
        self._session.settle(seconds)

    def close(self) -> None:
        """End all processes of the session, the other party's too: one is of no use without the other."""
        self._session.close()


def _burnt(process: int) -> float:
    """CPU seconds of a process so far; zero where the system does not tell."""
    try:
        return time.clock_gettime(~process << 3 | 2)  # the clock of clock_getcpuclockid(3)
    except OSError:
        return 0.0


def _end(workers: dict[str, Worker]) -> None:
    for name in list(workers):
        workers.pop(name).end()
