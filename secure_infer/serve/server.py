"""Listens: sockets, TLS, signals, and a stop that lets requests under way end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import uvicorn
from starlette.types import ASGIApp

from secure_infer.errors import Problem, UsageError
from secure_infer.serve.app import Front, create_app
from secure_infer.serve.guards import Guards, guarded
from secure_infer.wire.access import is_loopback


@dataclass(frozen=True)
class Listen:
    """Where a server listens, and what it asks of connections.

    Attributes:
        host: Name or address.
        port: 0 for any that is free.
        certificate: PEM file of the server's certificate and those between it and an authority; None for plain HTTP.
        key: PEM file of its key.
        client_ca: PEM file of the authorities that must have signed a client's certificate; None asks for none.
        insecure: Permit plain HTTP to other machines.
        drain_s: Seconds that requests under way have to end when the server is stopped.
    """

    host: str = "127.0.0.1"
    port: int = 0
    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    insecure: bool = False
    drain_s: int = 30

    def check(self, anonymous: bool) -> None:
        """Refuse what would let strangers in, or read along.

        Args:
            anonymous: Whether requests without a token are let in.

        Raises:
            UsageError: Off loopback without TLS (unless `insecure`) or without tokens; half a certificate.
        """
        away, problems = not is_loopback(self.host), []
        if (self.certificate is None) != (self.key is None):
            problems.append(Problem("TLS", "A certificate and its key go together.", "give both, or neither."))
        if self.client_ca is not None and self.certificate is None:
            problems.append(Problem("client CA", "There is no TLS to ask for certificates in.", "give a certificate."))
        if away and self.certificate is None and not self.insecure:
            fix = "give a certificate and its key, or say --insecure where something else encrypts."
            problems.append(Problem(self.host, "Other machines would send tokens in the clear.", fix))
        if away and anonymous:
            problems.append(Problem(self.host, "Anybody could ask.", "leave --open out, and hand out tokens."))
        if problems:
            raise UsageError("The server can't listen like this.", problems)

    def context(self) -> ssl.SSLContext | None:
        """TLS 1.2 or newer, if there is a certificate.

        Raises:
            UsageError: A file that can't be used.
        """
        if self.certificate is None:
            return None
        try:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=self.client_ca)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.load_cert_chain(self.certificate, self.key)
        except OSError as error:
            problem = Problem(str(self.certificate), f"{error}.", "give PEM files that belong together.")
            raise UsageError("A certificate or key can't be used.", [problem]) from error
        if self.client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def bind(self) -> socket.socket:
        """A socket that listens.

        Raises:
            UsageError: The address can't be had.
        """
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            found = socket.socket(family, kind, protocol)
        except (OSError, OverflowError) as error:
            raise self._unusable(error) from error
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
            found.listen(512)
            return found
        except OSError as error:
            found.close()
            raise self._unusable(error) from error

    def url(self, bound: socket.socket) -> str:
        """The address of a socket that `bind` made."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'http' if self.certificate is None else 'https'}://{host}:{bound.getsockname()[1]}"

    def _unusable(self, error: Exception) -> UsageError:
        problem = Problem(f"{self.host}:{self.port}", f"{error}.", "give another --host or --port.")
        return UsageError("The server can't listen there.", [problem])


class Server:
    """A front on a socket.

    Args:
        front: What it offers.
        listen: Where it listens.

    Raises:
        UsageError: The address or a certificate can't be used, or they would let strangers in.
    """

    def __init__(self, front: Front, listen: Listen) -> None:
        listen.check(front.options.open)
        context = listen.context()
        self._front, self._socket = front, listen.bind()
        self.url = listen.url(self._socket)
        guards = front.options.guards
        self._uvicorn = _Uvicorn(_config(create_app(front), guards, context, listen.drain_s), guards.head_s)
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def run(self, ready: Callable[[], object]) -> None:
        """Serve until SIGTERM or SIGINT; what keeps the workers from starting is raised.

        Args:
            ready: Called once requests are taken.
        """
        asyncio.run(self._serve(ready, signals=True))

    def __enter__(self) -> Self:
        """Serve in a thread until the block ends."""
        ready = threading.Event()

        def work() -> None:
            try:
                asyncio.run(self._serve(ready.set, signals=False))
            except BaseException as error:
                self._failure = error
            finally:
                ready.set()

        self._thread = threading.Thread(target=work, name="server", daemon=True)
        self._thread.start()
        ready.wait()
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
        if self._thread is not None:
            self._thread.join()

    def stop(self) -> None:
        """Take no more requests, and end once those under way have."""
        self._uvicorn.should_exit = True

    async def _serve(self, ready: Callable[[], object], signals: bool) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT) if signals else ():
            loop.add_signal_handler(number, self._uvicorn.handle_exit, number, None)
        waiting = asyncio.create_task(self._announce(ready))
        try:
            async with self._front.running():
                await self._uvicorn.serve(sockets=[self._socket])
        finally:
            waiting.cancel()
            self._socket.close()

    async def _announce(self, ready: Callable[[], object]) -> None:
        while not self._uvicorn.started:
            await asyncio.sleep(0.01)
        ready()


class _Uvicorn(uvicorn.Server):
    """Leaves signals to whoever runs it, so that a process that was asked to end ends with its own exit code."""

    def __init__(self, config: uvicorn.Config, handshake_s: float) -> None:
        super().__init__(config)
        self._handshake_s = handshake_s if config.is_ssl else None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As in the base class, but that a TLS handshake, too, has to come to an end soon."""
        await self.lifespan.startup()
        http: Any = self.config.http_protocol_class
        protocol = partial(
            http,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        loop, tls = asyncio.get_running_loop(), self.config.ssl
        self.servers = [
            await loop.create_server(protocol, sock=bound, ssl=tls, ssl_handshake_timeout=self._handshake_s)
            for bound in sockets or ()
        ]
        self.started = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _config(app: ASGIApp, guards: Guards, context: ssl.SSLContext | None, drain_s: int) -> uvicorn.Config:
    extra: dict[str, Any] = {} if context is None else {"ssl_context_factory": lambda config, default: context}
    return uvicorn.Config(
        app,
        http=guarded(guards),
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=guards.keep_alive_s,
        timeout_graceful_shutdown=drain_s,
        h11_max_incomplete_event_size=guards.head_bytes,
        **extra,
    )
