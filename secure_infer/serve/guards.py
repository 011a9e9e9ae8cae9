"""What keeps clients from holding connections, time or memory: limits on heads, on progress of bodies, and on sums."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from secure_infer.errors import InvalidInput, LimitExceeded, Problem, ProtocolError, SecureInferError, UsageError
from secure_infer.serve.problems import TIMEOUT, Refused, document
from secure_infer.wire import api

_DRAINED, _DRAIN_SECONDS = 4 << 20, 2.0


@dataclass(frozen=True)
class Guards:
    """What one client, and all together, may hold.

    Attributes:
        connections: Connections at a time.
        head_bytes: Longest request line and headers.
        head_s: Seconds in which they must have arrived.
        idle_s: Seconds without a byte of a body after which it is given up.
        rate: Bytes a second that a body must keep up on average, after its first `idle_s`.
        write_s: Seconds without a client reading its reply after which the connection is cut.
        keep_alive_s: Seconds that a connection may wait for its next request.
        body_bytes: Bytes of all requests together that are in memory at a time.
    """

    connections: int = 512
    head_bytes: int = 16 << 10
    head_s: float = 10.0
    idle_s: float = 20.0
    rate: int = 4 << 10
    write_s: float = 60.0
    keep_alive_s: int = 30
    body_bytes: int = 2 << 30


class BodyGuard:
    """Middleware: a body must make progress, and what nobody read of it does not end up as the next request."""

    def __init__(self, app: ASGIApp, guards: Guards) -> None:
        self._app, self._guards = app, guards

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = _rude(scope, self._guards.head_bytes)
        if refusal is not None:
            await _refuse(refusal, send)
            return
        body = _Body(scope, receive, self._guards)

        async def finish(message: Message) -> None:
            if message["type"] == "http.response.start" and not await body.drain():
                message = {**message, "headers": [*message.get("headers", []), (b"connection", b"close")]}
            await send(message)

        await self._app(scope, body.receive, finish)


def _rude(scope: Scope, head_bytes: int) -> tuple[int, SecureInferError] | None:
    """What is wrong with a head that the parser has let pass."""
    if sum(len(name) + len(value) + 4 for name, value in scope["headers"]) + len(scope["raw_path"]) > head_bytes:
        problem = Problem("head", f"It has more than {head_bytes} bytes.", "send fewer or shorter headers.")
        return 431, LimitExceeded("The head of the request is too large.", [problem])
    names = [name for name, _ in scope["headers"]]
    if b"content-length" in names and b"transfer-encoding" in names:
        # A proxy may go by the one and this server by the other, and so see different requests (RFC 9112, 6.3).
        problem = Problem("head", "It has both Content-Length and Transfer-Encoding.", "send one of them.")
        return 400, InvalidInput("The length of the request is ambiguous.", [problem])
    return None


async def _refuse(refusal: tuple[int, SecureInferError], send: Send) -> None:
    """Answer, and close the connection."""
    status, error = refusal
    body = document(error, status)
    headers = [(b"content-type", api.PROBLEM.encode()), (b"content-length", str(len(body)).encode())]
    headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class _Body:
    def __init__(self, scope: Scope, receive: Receive, guards: Guards) -> None:
        headers = dict(scope["headers"])
        self._receive, self._guards = receive, guards
        self._whole = headers.get(b"content-length", b"0") == b"0" and b"transfer-encoding" not in headers
        self._unsent = headers.get(b"expect", b"").lower() == b"100-continue"
        self._start, self._received = time.monotonic(), 0

    async def receive(self) -> Message:
        """The next part of the body; once it is whole, the news that the client has gone."""
        if self._whole:
            return await self._receive()
        self._unsent = False
        try:
            message = await asyncio.wait_for(self._receive(), self._guards.idle_s)
        except TimeoutError as error:
            raise _too_slow() from error
        self._note(message)
        allowed = self._guards.idle_s + self._received / self._guards.rate
        if not self._whole and time.monotonic() - self._start > allowed:
            raise _too_slow()
        return message

    def _note(self, message: Message) -> None:
        self._received += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)

    async def drain(self) -> bool:
        """Read and drop what is left, if that is little: a client that is still sending would miss the reply."""
        if self._unsent:
            # It waits for leave to send, and does not get it.
            return False
        left = _DRAINED
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                while not self._whole and left > 0:
                    message = await self._receive()
                    left -= len(message.get("body", b""))
                    self._note(message)
        except TimeoutError:
            pass
        return self._whole


def _too_slow() -> Refused:
    problem = Problem("body", "It came too slowly, or stopped.", "send it again over a better connection.")
    return Refused(ProtocolError("The request took too long to arrive.", [problem]), TIMEOUT)


class Memory:
    """The bytes of all requests that are in memory.

    Args:
        limit: Most of them.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self.used = limit, 0

    @contextmanager
    def reserve(self, count: int) -> Iterator[None]:
        """Hold so many bytes within the block.

        Raises:
            LimitExceeded: There are not so many left just now.
        """
        if self.used + count > self._limit:
            problem = Problem("server", "It holds as many requests as it can.", "try again.")
            raise LimitExceeded("The server is busy.", [problem], retry_after=1)
        self.used += count
        try:
            yield
        finally:
            self.used -= count


def guarded(guards: Guards) -> type[H11Protocol]:
    """The HTTP protocol of the server, with limits on connections, heads and readers."""

    class Guarded(_Guarded):
        limits = guards

    return Guarded


class _Guarded(H11Protocol):
    limits: Guards
    _head: asyncio.TimerHandle | None = None
    _reader: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in the base class
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            problem = Problem("server", "It has as many connections as it can.", "try again.")
            self._refuse(503, ProtocolError("The server is busy.", [problem]), {"Retry-After": "1"})
        else:
            self._await_head()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._head is None and self._between_requests():
            self._await_head()
        super().data_received(data)

    def handle_events(self) -> None:
        super().handle_events()
        if not self._between_requests():
            self._head_arrived()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_arrived()
        self.resume_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._reader is None:
            self._reader = self.loop.call_later(self.limits.write_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reader is not None:
            self._reader.cancel()
            self._reader = None

    def send_400_response(self, msg: str) -> None:
        what = f"It is no HTTP request, or its head has more than {self.limits.head_bytes} bytes."
        error = UsageError("The request can't be read.", [Problem("request", what, "check what sends it.")])
        self._refuse(400, error)

    def _between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _await_head(self) -> None:
        self._head = self.loop.call_later(self.limits.head_s, self._head_too_slow)

    def _head_arrived(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _head_too_slow(self) -> None:
        problem = Problem("request", "Its head did not arrive in time.", "send it again.")
        self._refuse(TIMEOUT, ProtocolError("The request took too long to arrive.", [problem]))

    def _refuse(self, status: int, error: SecureInferError, headers: dict[str, Any] | None = None) -> None:
        """Answer below the application, and close."""
        self._head_arrived()
        body = document(error, status)
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", f"Content-Type: {api.PROBLEM}"]
        lines += [f"Content-Length: {len(body)}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        if not self.transport.is_closing():
            self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
            self.transport.close()
