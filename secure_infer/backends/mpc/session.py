"""The processes of a session, seen from the process that serves: started together, used for many runs, always ended."""

from __future__ import annotations

import contextlib
import os
import select
import struct
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import IO, Any, cast

from secure_infer import errors
from secure_infer.backends.mpc.channel import Identity, new_identity
from secure_infer.backends.mpc.party import ANSWER, COMMAND, DEALER_NAME, FAILURE, PARTY_NAMES
from secure_infer.backends.mpc.plan import FIRST_PARTY
from secure_infer.errors import Problem, ProtocolError, SecureInferError
from secure_infer.wire import frame
from secure_infer.wire.frame import Frame

_LONGEST_RUN = 20  # time limits for one message that a whole run may take
_START_SECONDS = 120.0
_GRACE_SECONDS = 0.5


class Worker:
    """One process, and the two pipes it is driven through.

    Args:
        name: "party 0", "party 1" or "dealer".
        threads: Threads that its libraries may use.
    """

    def __init__(self, name: str, threads: int) -> None:
        self.name = name
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "secure_infer.backends.mpc.party"], bufsize=0, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self._errors, env=environment, start_new_session=True)
        self._commands, self._answers = cast(IO[bytes], self.process.stdin), cast(IO[bytes], self.process.stdout)
        os.set_blocking(self._commands.fileno(), False)

    def send(self, verb: str, meta: Mapping[str, Any] | None = None, parts: Sequence[bytes] = (),
             seconds: float = _START_SECONDS) -> None:
        """Send a command.

        Raises:
            ProtocolError: The process is gone, or does not take the command in time.
        """
        data = frame.pack(COMMAND, parts, {"verb": verb, **(meta or {})})
        view, deadline = memoryview(struct.pack("<Q", len(data)) + data), time.monotonic() + seconds
        try:
            while view:
                self._wait(self._commands, select.POLLOUT, deadline)
                view = view[os.write(self._commands.fileno(), view) :]
        except (OSError, ValueError) as error:
            raise self._gone() from error

    def receive(self, seconds: float) -> Frame:
        """The answer to a command.

        Raises:
            ProtocolError: The process is gone, or does not answer in time.
            SecureInferError: What it met.
        """
        deadline = time.monotonic() + seconds
        (length,) = struct.unpack("<Q", self._read(8, deadline))
        data = self._read(length, deadline)
        with contextlib.suppress(errors.BundleError):
            return frame.unpack(data, ANSWER)
        meta = frame.unpack(data, FAILURE).meta
        raise getattr(errors, meta["type"], ProtocolError)(meta["summary"], [Problem(*p) for p in meta["problems"]])

    def end(self) -> None:
        """End the process and wait for it, so that no zombie stays."""
        with contextlib.suppress(OSError):
            self.process.kill()
        self.process.wait()
        for pipe in (self._commands, self._answers, self._errors):
            with contextlib.suppress(OSError):
                pipe.close()

    def _read(self, count: int, deadline: float) -> bytes:
        pieces = []
        try:
            while count:
                self._wait(self._answers, select.POLLIN, deadline)
                piece = os.read(self._answers.fileno(), min(count, 1 << 20))
                if not piece:
                    raise self._gone()
                pieces.append(piece)
                count -= len(piece)
        except (OSError, ValueError) as error:
            raise self._gone() from error
        return b"".join(pieces)

    def _wait(self, pipe: IO[bytes], event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(pipe, event)
        if not poll.poll(max(0.0, 1000 * (deadline - time.monotonic()))):
            self.process.kill()  # a late answer must not be taken for the answer to a later command
            raise ProtocolError(f"The {self.name} does not answer.", [
                Problem(self.name, "It took longer than its time limit.", "compile with a longer timeout.")])

    def _gone(self) -> ProtocolError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_GRACE_SECONDS)
        return ProtocolError(f"The {self.name} is gone.", [
            Problem(self.name, f"Its process ended with code {self.process.returncode}. {self._last_words()}".strip(),
                    "start the servers again.")])

    def _last_words(self) -> str:
        with contextlib.suppress(OSError, ValueError):
            self._errors.seek(0)
            lines = self._errors.read()[-2000:].decode(errors="replace").strip().splitlines()
            return lines[-1] if lines else ""
        return ""


class Session:
    """Two parties and a dealer in processes of their own, connected and ready; models are loaded one after another.

    Args:
        provider: "dealer", or "first-party" for no dealer.
        timeout: Seconds that a party waits for another.

    Raises:
        ProtocolError: A process that does not start or connect.
    """

    def __init__(self, provider: str, timeout: float) -> None:
        names = PARTY_NAMES if provider == FIRST_PARTY else (*PARTY_NAMES, DEALER_NAME)
        threads = max(1, (os.cpu_count() or 1) // 2)
        self.timeout = timeout
        self._workers: dict[str, Worker] = {}
        self.close = weakref.finalize(self, _end, self._workers)
        try:
            for name in names:
                self._workers[name] = Worker(name, threads)
            self._start(provider, {name: new_identity(name) for name in names}, threads)
        except BaseException:
            self.close()
            raise

    @property
    def processes(self) -> dict[str, int]:
        """Process numbers, by name; empty once the session is closed."""
        return {name: worker.process.pid for name, worker in self._workers.items()}

    def load(self, halves: Sequence[Sequence[bytes]]) -> None:
        """Load a model: the parts of each party's half."""
        for name, parts in zip(PARTY_NAMES, halves, strict=True):
            self._worker(name).send("load", parts=parts)
        self._gather(PARTY_NAMES, _LONGEST_RUN * self.timeout)

    def run(self, party: int, message: bytes) -> Frame:
        """Run one party; the other must be run meanwhile, in another thread."""
        worker = self._worker(PARTY_NAMES[party])
        try:
            worker.send("run", parts=[message])
            return worker.receive(_LONGEST_RUN * self.timeout)
        except ProtocolError as error:
            raise self._explained(error) from error

    def measure(self) -> dict[str, float]:
        """Seconds for one of each primitive, as party 0 sees it."""
        for name in PARTY_NAMES:
            self._worker(name).send("measure")
        return dict(self._gather(PARTY_NAMES, _LONGEST_RUN * self.timeout)[PARTY_NAMES[0]].meta)

    def _start(self, provider: str, identities: Mapping[str, Identity], threads: int) -> None:
        for name, worker in self._workers.items():
            peers = {other: identity.certificate for other, identity in identities.items() if other != name}
            meta = {"role": name, "peers": list(peers), "timeout": self.timeout, "provider": provider,
                    "threads": threads}
            mine = identities[name]
            worker.send("start", meta, [mine.key, mine.certificate, *peers.values()])
        answers = self._gather(list(self._workers), _START_SECONDS)
        ports = {name: answer.meta["port"] for name, answer in answers.items()}
        for worker in self._workers.values():
            worker.send("connect", {"ports": ports})
        self._gather(list(self._workers), _START_SECONDS)

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
        deadline = time.monotonic() + _GRACE_SECONDS
        named = {problem.where for problem in error.problems}
        while time.monotonic() < deadline:
            ended = {name: worker.process.returncode for name, worker in self._workers.items()
                     if worker.process.poll() is not None and name not in named}
            if ended:
                break
            time.sleep(0.02)
        extra = [Problem(name, f"Its process ended with code {code}.", "start the servers again.")
                 for name, code in ended.items()]
        return ProtocolError(error.summary, [*error.problems, *extra])


class PartyRole:
    """One server party, as the caller sees it.

    Attributes:
        statistics: Of the last run: rounds, bytes_sent (to the other party), seconds, cpu_seconds (of the process).
    """

    def __init__(self, session: Session, party: int) -> None:
        self._session, self._party = session, party
        self._lock = threading.Lock()
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
        with self._lock:
            answer = self._session.run(self._party, message)
        self.statistics = dict(answer.meta)
        self._cpu_seconds += self.statistics["cpu_seconds"]
        return answer.parts[0]

    def close(self) -> None:
        """End all processes of the session, the other party's too: one is of no use without the other."""
        self._session.close()


def _end(workers: dict[str, Worker]) -> None:
    for name in list(workers):
        workers.pop(name).end()
