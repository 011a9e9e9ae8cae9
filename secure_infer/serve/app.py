"""The application: a catalog, what is remembered, and workers, put together behind HTTP."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from fastapi import FastAPI

from secure_infer import __version__
from secure_infer.serve import problems
from secure_infer.serve.base import Runner
from secure_infer.serve.catalog import Catalog
from secure_infer.serve.guards import BodyGuard, Guards, Memory
from secure_infer.serve.inference import Inferences
from secure_infer.serve.metrics import Meter, Metrics
from secure_infer.serve.routes import attach
from secure_infer.serve.state import State

log = logging.getLogger(__name__)
_SWEEP_SECONDS, _STATUS_SECONDS = 60.0, 1.0


@dataclass(frozen=True)
class Options:
    """How a server behaves.

    Attributes:
        open: Whether requests without a token are let in, as one client called "anonymous".
        samples: Most inputs of one request.
        seconds: Time limit of a request, waiting included.
        linger_s: Seconds that a request goes on for a client that has gone, and may come back for its reply.
        guards: What clients may hold.
    """

    open: bool = False
    samples: int = 64
    seconds: float = 900.0
    linger_s: float = 10.0
    guards: Guards = field(default_factory=Guards)


class Front:
    """All that the routes need.

    Args:
        catalog: The models.
        state: Accounts, budgets, keys, audit log.
        runner: Where requests are run; closed with the application.
        options: How it behaves.
        start: Starts the runner, in the event loop that will use it; None if it runs.
    """

    def __init__(
        self,
        catalog: Catalog,
        state: State,
        runner: Runner,
        options: Options | None = None,
        start: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self.catalog, self.state, self.runner, self._start = catalog, state, runner, start
        self.options = options or Options()
        self._status: tuple[float, Mapping[str, float]] = (-math.inf, {})
        self.metrics = Metrics({"workers": self.status, "keys": state.keys.status})
        self.memory = Memory(self.options.guards.body_bytes)
        self.inferences = Inferences(state, runner, self.metrics, self.options.linger_s)
        self.ready = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start the workers and keep house; within the block the front is ready."""
        loop = asyncio.get_running_loop()
        if self._start is not None:
            await self._start()

        def forget(name: str) -> None:
            loop.call_soon_threadsafe(self.runner.forget, name)

        self.state.keys.on_evict = forget
        sweeping = asyncio.create_task(self._sweep())
        self.ready = True
        try:
            yield
        finally:
            self.ready = False
            self.state.keys.on_evict = None
            sweeping.cancel()
            with suppress(asyncio.CancelledError):
                await sweeping
            await self.runner.close()
            await self.inferences.close()

    def status(self) -> Mapping[str, float]:
        """The runner's gauges, asked for once a second at most: anybody may make the server look."""
        now = time.monotonic()
        if now - self._status[0] > _STATUS_SECONDS:
            self._status = now, self.runner.status()
        return self._status[1]

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            try:
                await asyncio.to_thread(self.state.sweep)
            except Exception:
                log.exception("sweeping the store failed")


def create_app(front: Front) -> FastAPI:
    """The ASGI application of a front, which whoever serves it keeps `running` meanwhile."""
    app = FastAPI(
        title="secure_infer",
        version=__version__,
        summary="Encrypted inference: keys are uploaded once, then each request is one octet-stream.",
        docs_url=None,
        redoc_url=None,
    )
    problems.install(app)
    attach(app, front)
    app.add_middleware(BodyGuard, guards=front.options.guards)
    app.add_middleware(Meter, metrics=front.metrics)
    return app
