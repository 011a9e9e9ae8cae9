"""`secure-infer bench serve-faults`: kill -9 of front, workers and clients at random moments, and what came of it."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from secure_infer.bench.ours import evaluate
from secure_infer.bench.records import Record
from secure_infer.bench.runner import Progress, silent
from secure_infer.bench.service import NAME, Server, client_name, facts
from secure_infer.compiler import compile
from secure_infer.graph import INPUT, Graph, Linear, Node, Polynomial, TensorType
from secure_infer.serve import checkup
from secure_infer.serve.database import Database
from secure_infer.wire.access import TOKEN_VARIABLE

CASE, PROTOCOL, KILLS, CLIENTS, WORKERS = "serve-faults", "ckks", 200, 3, 2
ROLES = ("front", "worker", "client")
_ENDS = ("answer", "wrong", "error", "killed")
_MOMENTS = ("begin", "upload", "sent")
_LONGEST_PAUSE, _LAST_WORDS_SECONDS, _START_SECONDS = 2.0, 300.0, 60.0


class Clients:
    """Processes that ask all the time, each with a folder of its own.

    Args:
        server: Whom they ask.
        folder: Where their folders are made.
        known: File of inputs and outputs.
        count: How many.
    """

    def __init__(self, server: Server, folder: Path, known: Path, count: int) -> None:
        self._server, self._known = server, known
        self.folders = [folder / client_name(i) for i in range(count)]
        for each in self.folders:
            each.mkdir()
        self._processes = [self._start(i) for i in range(count)]
        self.unclear = 0

    def kill(self, i: int) -> None:
        """Kill one, note where in its log, and start it anew."""
        self._processes[i].kill()
        self._processes[i].wait()
        with (self.folders[i] / "log").open("a") as log:
            log.write("killed\n")
        self._processes[i] = self._start(i)

    def doing(self, i: int) -> str:
        """The last line of a client's log: begin, upload, sent ..."""
        lines = self.lines(i)
        return lines[-1].split()[0] if lines else "start"

    def lines(self, i: int) -> list[str]:
        """The log of a client."""
        path = self.folders[i] / "log"
        return path.read_text().splitlines() if path.exists() else []

    def stop(self) -> None:
        """Let all end what they have begun; whoever does not, or ends by an error of ours, is counted as unclear."""
        for folder in self.folders:
            (folder / "stop").touch()
        for process in self._processes:
            try:
                self.unclear += process.wait(_LAST_WORDS_SECONDS) != 0
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                self.unclear += 1

    def _start(self, i: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "secure_infer.bench.fault_client"]
        environment = {**os.environ, TOKEN_VARIABLE: self._server.tokens[i]}
        with (self.folders[i] / "stderr").open("ab") as log:
            return subprocess.Popen(
                [*command, self._server.url, NAME, str(self.folders[i]), str(self._known)], env=environment, stderr=log
            )


def run(n: int | None = None, progress: Progress = silent) -> Record:
    """Kill; returns one record.

    Args:
        n: Kills, instead of 200; a third for each role.
        progress: Told what is being done.

    Raises:
        ProtocolError: The server does not start.
    """
    begun, kills = time.time(), KILLS if n is None else n
    seed = random.SystemRandom().randrange(1 << 32)
    with tempfile.TemporaryDirectory(prefix="bench-faults-") as name:
        folder = Path(name)
        bundle, known = _prepare(folder)
        server = Server(bundle, folder / "store", CLIENTS, WORKERS).start()
        try:
            clients = Clients(server, folder, known, CLIENTS)
            try:
                moments = _kill(server, clients, kills, random.Random(seed), progress)
            finally:
                clients.stop()
        finally:
            server.stop()
        outcome = _outcome(folder / "store", clients)
    done = {"kills": sum(moments.values()), "by": _sums(moments, 0), "while": _sums(moments, 1)}
    return {**facts(CASE, PROTOCOL, begun), "seed": seed, "clients": CLIENTS, **done, **outcome}


def _prepare(folder: Path) -> tuple[Path, Path]:
    """A bundle of a small network, and a file of inputs, their outputs in the clear, and the error that is permitted.

    Small, so that its keys (a few megabytes) are on their way as often as its requests: moments, not seconds, count.
    """
    rng = np.random.default_rng(0)
    nodes = (
        Node("hidden", Linear(rng.integers(-3, 4, (16, 32)), rng.integers(-9, 10, 16), (1.0,)), (INPUT,)),
        Node("square", Polynomial(np.array([0, 0, 1]), 4), ("hidden",)),
        Node("head", Linear(rng.integers(-3, 4, (4, 16)), rng.integers(-9, 10, 4), (1.0,)), ("square",)),
    )
    x = rng.integers(0, 8, (256, 32)).astype(float)
    compiled = compile(Graph(TensorType((32,), 0, 7), nodes, "head"), x, PROTOCOL)
    expected = evaluate(compiled.graph, x, exact=False)
    np.savez(folder / "known.npz", x=x, expected=expected, bound=compiled.guarantee.error_bound or 0.0)
    return compiled.save(folder / f"{NAME}.bundle"), folder / "known.npz"


def _kill(
    server: Server, clients: Clients, kills: int, chance: random.Random, tell: Progress
) -> Counter[tuple[str, str]]:
    """Kill at random moments; counts by who was killed, and by what a client was doing (for a client, the victim)."""
    victims = [ROLES[i % len(ROLES)] for i in range(kills)]
    chance.shuffle(victims)
    moments: Counter[tuple[str, str]] = Counter()
    for done, victim in enumerate(victims):
        tell("kills", done, kills)
        i = chance.randrange(len(clients.folders))
        _await(clients, i)
        time.sleep(chance.uniform(0.0, _LONGEST_PAUSE))
        moments[victim, clients.doing(i)] += 1
        if victim == "client":
            clients.kill(i)
        elif victim == "worker":
            _kill_one(server.workers(), chance)
        else:
            _kill_one(server.processes()[:1], chance)
            server.reap()
            server.start()
    tell("kills", kills, kills)
    return moments


def _await(clients: Clients, i: int) -> None:
    """Wait until a client has begun a request, but not for ever."""
    deadline = time.monotonic() + _START_SECONDS
    while clients.doing(i) not in _MOMENTS and time.monotonic() < deadline:
        time.sleep(0.02)


def _kill_one(processes: Sequence[int], chance: random.Random) -> None:
    while processes:
        try:
            os.kill(chance.choice(processes), signal.SIGKILL)
            return
        except ProcessLookupError:
            return  # it was being replaced: the kill counts, as it hit that moment


def _outcome(store: Path, clients: Clients) -> dict[str, Any]:
    """What all clients were told, held against what the store says."""
    problems = [str(problem) for problem in checkup.problems(store)]
    ended, open_ends, errors, miscounted = Counter[str](), 0, Counter[str](), 0
    for i, folder in enumerate(clients.folders):
        lines = clients.lines(i)
        own, left = _ends(lines)
        ended.update({end: own[end] for end in _ENDS})
        open_ends += left
        errors.update(line.split()[1].rstrip(":") for line in lines if line.startswith("error"))
        answered, known = own["answer"] + own["wrong"], _counts(store, client_name(i))
        miscounted += not answered <= known["answered"] <= known["charged"] <= own["begin"]
        shutil.rmtree(folder)
    return {
        "requests": dict(ended),
        "errors": dict(errors),
        "wrong": ended["wrong"],
        "without_an_end": open_ends,
        "unclear_ends": clients.unclear,
        "clients_miscounted": miscounted,
        "store_problems": problems,
    }


def _ends(lines: Sequence[str]) -> tuple[Counter[str], int]:
    """How a client's requests began and ended, and how many have no end; one that was killed idle lost no request."""
    found, left = Counter[str](), 0
    for line in lines:
        word = line.split()[0]
        if word == "begin":
            left += 1
        elif word not in _ENDS or not left:
            continue
        else:
            left -= 1
        found[word] += 1
    return found, left


def _counts(store: Path, client: str) -> dict[str, int]:
    """Requests that the store knows of a client, and how many of them it has answered."""
    database = Database.open(store)
    try:
        with database.reading() as query:
            states = [str(row[0]) for row in query.all("SELECT state FROM requests WHERE client = ?", client)]
    finally:
        database.close()
    return {"charged": len(states), "answered": states.count("answered")}


def _sums(moments: Counter[tuple[str, str]], part: int) -> dict[str, int]:
    found: Counter[str] = Counter()
    for moment, count in moments.items():
        found[moment[part]] += count
    return dict(found)
