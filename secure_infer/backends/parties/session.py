"""The processes of a session, seen from the process that serves: started together, used for many runs, always ended."""

from __future__ import annotations

import contextlib
import statistics
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from secure_infer.backends.parties import messages
from secure_infer.backends.parties.channel import HOST, Identity, new_identity
from secure_infer.backends.parties.messages import QUERY
from secure_infer.backends.parties.network import chosen
from secure_infer.backends.parties.pairs import Pairs
from secure_infer.backends.parties.party import PAUSE_S, PINGS
from secure_infer.backends.parties.seam import DEALER_NAME, LONGEST_RUN, PARTY_NAMES, Setup
from secure_infer.backends.parties.worker import GRACE_SECONDS, START_SECONDS, Worker
from secure_infer.cores import usable_cores
from secure_infer.errors import BundleError, Problem, ProtocolError, SecureInferError
from secure_infer.graph.types import Shape
from secure_infer.wire import frame
from secure_infer.wire.frame import Frame

_GLANCE_S, _IDLE_SHARE = 0.1, 0.05


class Session:
    """Parties and a dealer in processes of their own, connected and ready; models are loaded one after another.

    Args:
        setup: How the processes are started.

    Raises:
        ProtocolError: A process that does not start or connect.
    """

    def __init__(self, setup: Setup) -> None:
        threads = max(1, usable_cores() // setup.parties)
        self.timeout, self._parties = setup.timeout, setup.party_names
        self._workers: dict[str, Worker] = {}
        alive = partial(_require, self._workers, self._parties)
        self._pairs = Pairs(self.timeout, LONGEST_RUN * self.timeout, alive, setup.parties)
        self._model = ""
        self._input_shape: Shape = ()
        self.close = weakref.finalize(self, _end, self._workers)
        try:
            for name in setup.names:
                self._workers[name] = Worker(name, threads, setup.module)
            self._start(setup, {name: new_identity(name) for name in setup.names}, threads)
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
        """Load a model: the parts of each party's half.

        Raises:
            BundleError: Too few or too many halves.
            ProtocolError: The parties were given halves of different models, or a process failed.
        """
        if len(halves) != len(self._parties):
            raise BundleError(f"Expected {len(self._parties)} server halves, got {len(halves)}.")
        for name, parts in zip(self._parties, halves, strict=True):
            self._worker(name).send("load", parts=parts)
        loaded = self._gather(self._parties, LONGEST_RUN * self.timeout)[PARTY_NAMES[0]].meta
        self._model, self._input_shape = loaded.get("model", ""), tuple(loaded.get("input_shape", ()))

    def ask(self, party: int, message: bytes) -> Callable[[], Frame]:
        """Give one party its share; all start when the others have theirs.

        Returns:
            What waits for the party's answer. It raises a ProtocolError if another party can't use its share, or if a
            process or connection failed; it must be called.

        Raises:
            BundleError, KeyMismatch: The party can't use its share; the others are told.
            ProtocolError: The session is closed, another party refused its share, or this query runs already.
        """
        worker = self._worker(PARTY_NAMES[party])
        query, samples = self._checked(party, message)
        return partial(self._answer, worker, query, self._pairs.begin(query, party, samples, message, self._start_run))

    def _answer(self, worker: Worker, query: str, all_work: Callable[[], None]) -> Frame:
        try:
            all_work()
            return worker.receive(LONGEST_RUN * self.timeout)
        except ProtocolError as error:
            raise self._explained(error) from error
        finally:
            self._pairs.end(query)

    def _checked(self, party: int, message: bytes) -> tuple[str, int]:
        """Name of a query, and the samples in a share of it."""
        if not self._model:
            return str(frame.unpack(message, QUERY).meta.get("session")), 0
        try:
            share = messages.unpack(message, QUERY, self._model, party, self._input_shape)
        except SecureInferError as error:
            with contextlib.suppress(BundleError):
                self._pairs.refuse(str(frame.unpack(message, QUERY).meta.get("session")), party, error)
            raise
        return share.session, len(share.values)

    def _start_run(self, party: int, message: bytes) -> None:
        self._worker(PARTY_NAMES[party]).pass_on(message)

    def measure(self) -> dict[str, float]:
        """Seconds for one of each primitive, as party 0 sees it; and for an empty request to all parties."""
        found = dict(self._ask_all("measure")[PARTY_NAMES[0]].meta)
        taken = []
        for _ in range(PINGS):
            time.sleep(PAUSE_S)
            started = time.perf_counter()
            self._ask_all("ping")
            taken.append(time.perf_counter() - started)
        return {**found, "requests": statistics.median(taken)}

    def _ask_all(self, verb: str) -> dict[str, Frame]:
        for name in self._parties:
            self._worker(name).send(verb)
        return self._gather(self._parties, LONGEST_RUN * self.timeout)

    def _start(self, setup: Setup, identities: Mapping[str, Identity], threads: int) -> None:
        for name, worker in self._workers.items():
            peers = {other: identity.certificate for other, identity in identities.items() if other != name}
            meta = {
                "role": name,
                "parties": setup.parties,
                "peers": list(peers),
                "timeout": self.timeout,
                "settings": dict(setup.settings),
                "threads": threads,
                "network": chosen(),
                "crowded": setup.parties > usable_cores(),
            }
            mine = identities[name]
            worker.send("start", meta, [mine.key, mine.certificate, *peers.values()])
        answers = self._gather(list(self._workers), START_SECONDS)
        addresses = {name: (HOST, answer.meta["port"]) for name, answer in answers.items()}
        for worker in self._workers.values():
            worker.send("connect", {"addresses": addresses})
        self._gather(list(self._workers), START_SECONDS)

    def _worker(self, name: str) -> Worker:
        return _worker(self._workers, name)

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
        statistics: Of the last run: rounds, bytes_sent (to the other parties), bytes_between_parties (sent to them and
            received from them), bytes_from_dealer (to this party), seconds, cpu_seconds (of the process), and
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
        """The reply to a share. Call it for all parties at the same time, each in a thread of its own.

        Raises:
            BundleError, KeyMismatch, ProtocolError: See `ask`.
        """
        return self.ask(message, evaluation)()

    def ask(self, message: bytes, evaluation: bytes) -> Callable[[], bytes]:
        """Give the party a share, and do not wait; what is returned must be called, and waits for the reply.

        Raises:
            BundleError: Not a share for this party, or one of a wrong shape.
            KeyMismatch: A share for another model.
            ProtocolError: Another party was not asked, or a process or connection failed; says which.
        """
        return partial(self._reply, self._session.ask(self._party, message))

    def _reply(self, wait: Callable[[], Frame]) -> bytes:
        answer = wait()
        self.statistics = {**answer.meta, "dealer_total_seconds": self._session.dealer_seconds()}
        self._cpu_seconds += self.statistics["cpu_seconds"]
        return answer.parts[0]

    def settle(self, seconds: float = 120.0) -> None:
        """Wait until no process of the session works ahead, so that a run is timed alone."""
        self._session.settle(seconds)

    def close(self) -> None:
        """End all processes of the session, the other parties' too: one is of no use without the others."""
        self._session.close()


def start(setup: Setup, halves: Sequence[Sequence[bytes]]) -> list[PartyRole]:
    """All parties of a new session, with a model loaded: the parts of each party's half.

    Raises:
        ProtocolError: A process does not start.
    """
    session = Session(setup)
    try:
        session.load(halves)
    except BaseException:
        session.close()
        raise
    return [PartyRole(session, party) for party in range(setup.parties)]


def measure(setup: Setup) -> dict[str, float]:
    """What `Session.measure` finds in a session for this alone."""
    session = Session(setup)
    try:
        return session.measure()
    finally:
        session.close()


def _worker(workers: Mapping[str, Worker], name: str) -> Worker:
    if name not in workers:
        raise ProtocolError("The servers are closed.", [Problem(name, "Its process was ended.", "start again.")])
    return workers[name]


def _require(workers: Mapping[str, Worker], names: Sequence[str]) -> None:
    for worker in (_worker(workers, name) for name in names):
        if worker.process.poll() is not None:
            raise worker.gone()


def _burnt(process: int) -> float:
    """CPU seconds of a process so far; zero where the system does not tell."""
    try:
        return time.clock_gettime(~process << 3 | 2)  # the clock of clock_getcpuclockid(3)
    except OSError:
        return 0.0


def _end(workers: dict[str, Worker]) -> None:
    for name in list(workers):
        workers.pop(name).end()
