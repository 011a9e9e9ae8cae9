"""A server in this process, on a free port of loopback, with a runner that tests can interfere with."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

import secure_infer as si
from secure_infer import backends, bundle
from secure_infer.serve.accounts import Limits
from secure_infer.serve.app import Front, Options
from secure_infer.serve.base import Done, Job
from secure_infer.serve.catalog import Catalog
from secure_infer.serve.guards import Guards
from secure_infer.serve.keyfiles import QUOTAS, Quotas
from secure_infer.serve.server import Listen, Server
from secure_infer.serve.state import State
from secure_infer.wire import api
from tests.networks import all_corners, small_graph

ALL = ("models", "keys", "infer", "metrics")
Hook = Callable[[Job], Awaitable[None]]


class Here:
    """A `Runner` without processes: roles of this process, in threads.

    Attributes:
        hook: Awaited before each run.
        jobs: What was asked for.
        ended: Jobs that ran to their end.
    """

    def __init__(self, catalog: Catalog, party: int = 0) -> None:
        self._catalog, self._party = catalog, party
        self._roles: dict[str, Any] = {}
        self.hook: Hook | None = None
        self.jobs: list[Job] = []
        self.ended: list[Job] = []
        self.forgotten: list[str] = []

    async def run(self, job: Job) -> Done:
        self.jobs.append(job)
        if self.hook is not None:
            await self.hook(job)
        start, keys = time.perf_counter(), job.key_file.read_bytes() if job.key_file else b""
        reply = await asyncio.to_thread(self._role(job.model).run, job.message, keys)
        self.ended.append(job)
        return Done(reply, 0.001, 0.002, time.perf_counter() - start, 0.01, {"rounds": 3})

    def _role(self, name: str) -> Any:
        if name not in self._roles:
            _, interface, program = bundle.load(self._catalog.get(name).path)
            self._roles[name] = backends.load(interface.protocol).servers(program.servers)[self._party]
        return self._roles[name]

    def forget(self, key_name: str) -> None:
        self.forgotten.append(key_name)

    def status(self) -> Mapping[str, float]:
        return {"workers": 1}

    async def close(self) -> None:
        pass


@dataclass
class Service:
    """A running server, and what tests need of it."""

    url: str
    token: str
    front: Front
    state: State
    runner: Here
    server: Server
    folder: Path
    headers: dict[str, str] = field(default_factory=dict)

    def client(self, **settings: Any) -> httpx2.Client:
        """A client of the library, with the token."""
        return httpx2.Client(base_url=self.url, headers=self.headers, timeout=30, **settings)

    def add(self, client: str, scopes: tuple[str, ...] = ALL, limits: Limits | None = None, **more: Any) -> str:
        """A further token."""
        return self.state.accounts.add(client, scopes, limits=limits, **more)

    def actions(self) -> list[tuple[str, str, str]]:
        """Client, action and outcome of each record of the audit log."""
        return [(r.event.client, r.event.action, r.event.outcome) for r in self.state.audit.records()]

    def connection(self) -> socket.socket:
        """A bare connection."""
        host, port = self.url.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), timeout=20)


def make_bundle(folder: Path, protocol: str, name: str = "") -> si.Compiled:
    """A tiny network as a bundle."""
    graph = small_graph(exact=protocol != "ckks")
    compiled = si.compile(graph, all_corners(graph), protocol=protocol)
    compiled.save(folder / f"{name or protocol}.bundle")
    return compiled


def inputs(n: int = 2) -> np.ndarray:
    """Inputs of those networks, shape (n, 6)."""
    return all_corners(small_graph(exact=True))[:n]


@contextmanager
def serving(
    folder: Path,
    *,
    guards: Guards | None = None,
    quotas: Quotas = QUOTAS,
    listen: Listen | None = None,
    party: int | None = None,
    **options: Any,
) -> Iterator[Service]:
    """Serve the bundles of a folder."""
    catalog = Catalog.load([folder], party)
    runner = Here(catalog, party or 0)
    with State.open(folder / f"store-{os.urandom(4).hex()}", quotas=quotas) as state:
        token = state.accounts.add("alice", ALL)
        front = Front(catalog, state, runner, Options(guards=guards or Guards(), **options))
        with Server(front, listen or Listen()) as server:
            headers = {"Authorization": f"Bearer {token}"}
            yield Service(server.url, token, front, state, runner, server, folder, headers)


def problem(reply: Any) -> dict[str, Any]:
    """The problem document of a reply, after checking that it is one."""
    assert reply.headers["content-type"] == api.PROBLEM
    found: dict[str, Any] = json.loads(reply.content)
    assert found["status"] == reply.status_code
    assert found["type"].startswith(api.URN)
    assert found["title"]
    return found


def request_id() -> str:
    return os.urandom(16).hex()
