"""What the runs against a real server share: the server as a process, its memory, and requests with known answers."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import numpy as np

from secure_infer import backends
from secure_infer.backends.base import ClientRole, Keys, Values
from secure_infer.bench import host
from secure_infer.bench.contender import Reals
from secure_infer.bench.host import LIBRARIES
from secure_infer.bench.ours import evaluate
from secure_infer.bench.records import Record
from secure_infer.bench.runner import Progress, silent
from secure_infer.bench.subjects import load_subject
from secure_infer.compiler import compile
from secure_infer.errors import DecryptionError, Problem, ProtocolError
from secure_infer.serve.base import Job
from secure_infer.serve.pool import resident_bytes
from secure_infer.serve.state import State
from secure_infer.wire.access import TOKEN_VARIABLE

T = TypeVar("T")
NAME = "model"
"""Under which the model is served."""
_START_SECONDS = 300.0
_SCOPES = ("models", "keys", "infer")


@dataclass(frozen=True)
class Ask:
    """One request whose answer is known.

    Attributes:
        job: The request as the workers get it.
        expected: The network's outputs in the clear, shape `(1, *output shape)`.
    """

    job: Job
    expected: Reals


@dataclass(frozen=True)
class Workload:
    """A compiled model of the zoo, keys, and encrypted held-out images.

    Attributes:
        model: Name of the model.
        protocol: Name of the protocol.
        bundle: Its bundle.
        role: Encrypts and decrypts.
        dequantize: Outputs in units of their scale to reals.
        keys: Distinct key sets by name; client `i` uses number `i % len(keys)`.
        asks: Requests; number `i` is one of client `i % clients`.
        bound: Greatest error that the guarantee permits; 0 where it is exact.
    """

    model: str
    protocol: str
    bundle: Path
    role: ClientRole
    dequantize: Callable[[Values], Reals]
    keys: dict[str, Keys] = field(repr=False)
    asks: list[Ask] = field(repr=False)
    bound: float

    @classmethod
    def prepare(
        cls,
        model: str,
        protocol: str,
        folder: Path,
        clients: int,
        keys: int,
        requests: int,
        tell: Progress = silent,
    ) -> Workload:
        """Compile, make keys and encrypt, all before anything is timed.

        Args:
            model: Name of a model of the zoo.
            protocol: Name of a protocol.
            folder: Where the bundle and the evaluation keys are written.
            clients: Number of clients.
            keys: Number of key sets.
            requests: Number of requests, each with a ciphertext of its own.
            tell: Told how far it is.

        Raises:
            UsageError: No such model.
            DataError: Its data set is not to be found.
        """
        subject = load_subject(model)
        compiled = compile(subject.net, subject.calibration, protocol, **subject.options.get(protocol, {}))
        path = compiled.save(folder / f"{NAME}.bundle")
        backend = backends.load(protocol)
        role = backend.client(compiled.program.client)
        made = {_name(each): each for each in (role.keygen() for _ in told("keys", range(keys), tell))}
        names, files = list(made), {name: folder / name for name in made if name}
        for name, file in files.items():
            file.write_bytes(made[name].evaluation)
        expected = evaluate(compiled.graph, subject.x, exact=backend.exact)
        asks = []
        for i in told("messages", range(requests), tell):
            image, client = i % len(subject.x), i % clients
            own = names[client % len(names)]
            (message,) = role.encrypt(compiled.interface.quantize(subject.x[image : image + 1]), made[own])
            job = Job(NAME, client_name(client), message, own, files.get(own), _START_SECONDS)
            asks.append(Ask(job, expected[image : image + 1]))
        bound = compiled.guarantee.error_bound or 0.0
        return cls(model, protocol, path, role, compiled.interface.dequantize, made, asks, bound)

    def of_client(self, number: int) -> Keys:
        """The keys of a client."""
        return list(self.keys.values())[number % len(self.keys)]

    def wrong(self, ask: Ask, reply: bytes) -> bool:
        """Whether a reply decrypts to something else than the network's outputs."""
        try:
            outputs = self.dequantize(self.role.decrypt([reply], self.keys[ask.job.key_name]))
        except DecryptionError:
            return True
        return bool(np.abs(outputs - ask.expected).max() > self.bound)


def told(label: str, items: Sequence[T], tell: Progress) -> Iterator[T]:
    """The items; each is reported once whatever is done with it has been done."""
    for done, item in enumerate(items):
        tell(label, done, len(items))
        yield item
    tell(label, len(items), len(items))


def _name(keys: Keys) -> str:
    """How evaluation keys are named; empty where there are none."""
    return hashlib.sha256(keys.evaluation).hexdigest() if keys.evaluation else ""


def client_name(number: int) -> str:
    """Name of a client."""
    return f"client-{number}"


class Server:
    """`secure-infer serve` as a process of its own, on loopback, with a token for each client.

    Args:
        bundle: What it serves.
        store: Its folder.
        clients: Number of clients.
        workers: Number of workers.
        queue: Requests that may wait.
    """

    def __init__(self, bundle: Path, store: Path, clients: int, workers: int, queue: int = 256) -> None:
        with State.open(store) as state:
            self.tokens = [state.accounts.add(client_name(i), _SCOPES) for i in range(clients)]
        self._command = [sys.executable, "-m", "secure_infer.cli", "serve", f"{NAME}={bundle}", "--store", str(store)]
        self._command += ["--workers", str(workers), "--queue", str(queue), "--json"]
        self.store, self.port, self.url = store, 0, ""
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start it, on the same port as before if it ran before, and wait until it takes requests.

        Raises:
            ProtocolError: It does not come up.
        """
        environment = {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}
        with (self.store.parent / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self._command, "--port", str(self.port)], stdout=subprocess.PIPE, stderr=log, env=environment
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        said = json.loads(line) if line else {}
        if "url" not in said:
            self.reap()
            raise ProtocolError("The server did not start.", [Problem("server", f"It said: {said}.", "see its log.")])
        self.url = said["url"]
        self.port = int(self.url.rpartition(":")[2])
        return self

    def processes(self) -> list[int]:
        """The front, the template and the workers."""
        return _tree(self.process.pid) if self.process else []

    def workers(self) -> list[int]:
        """The workers alone."""
        return self.processes()[2:]

    def resident_bytes(self) -> int:
        """Memory of all processes; what they share counts once."""
        return sum(map(resident_bytes, self.processes()))

    def cpu_seconds(self) -> dict[str, float]:
        """CPU that the front, and the template with its workers, have taken so far."""
        front, *others = map(_cpu_seconds, self.processes())
        return {"front": front, "workers": sum(others)}

    def stop(self) -> None:
        """Ask it to end, and wait."""
        if self.process is not None:
            self.process.terminate()
            self.reap()

    def reap(self) -> None:
        """Wait for a front that ends or was killed."""
        if self.process is not None:
            self.process.wait(60.0)
            if self.process.stdout:
                self.process.stdout.close()
            self.process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


def _tree(pid: int) -> list[int]:
    """A process and all below it, parents first."""
    found = [pid]
    for parent in found:
        for path in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += map(int, path.read_text().split())
            except OSError:  # it has just ended
                continue
    return found


def _cpu_seconds(pid: int) -> float:
    """User and system time of a process; see proc(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 95th and 99th percentile, and the greatest."""
    return {
        **{f"p{q}": float(np.percentile(seconds, q)) for q in (50, 95, 99)},
        "max": float(max(seconds)),
    }


def facts(case: str, protocol: str, begun: float) -> Record:
    """What every record of a service run says of where and when it was taken."""
    return {
        "case": case,
        "at": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(begun)),
        "seconds": time.time() - begun,
        "host": host.host(),
        "load": host.load_average(),
        "versions": host.versions([*_listed(LIBRARIES.get(protocol, ())), "fastapi", "uvicorn", "httpx2"]),
        "commit": host.commit(),
    }


def _listed(names: str | Iterable[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)
