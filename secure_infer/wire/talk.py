"""What a client says to one server, as steps without a connection: `http` takes them, waiting or awaiting.

Each conversation is a generator: it yields a `Call` or a `Pause`, is sent the `Reply` (or has `Lost` thrown into it),
and returns its result. So retries, resumed uploads and time keeping are written once for both kinds of client.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import time
from collections.abc import Callable, Collection, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar
from urllib.parse import quote

from secure_infer.errors import BundleError, KeyMismatch, Problem, ProtocolError, SecureInferError
from secure_infer.wire import api

T = TypeVar("T")
Progress: TypeAlias = Callable[[int, int], None]
"""Told how many bytes of how many have arrived at the server."""

"""Bytes of one PUT: what a lost connection costs at most."""
_SMALL, _HALF, _REPLY = 1 << 20, 256 << 20, 1 << 30
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0
_AGAIN = frozenset({408, 425, 429, 502, 503, 504})


@dataclass(frozen=True)
class Call:
    """One request.

    Attributes:
        method: GET, HEAD, PUT ...
        path: Below the server's address.
        headers: Beside those that every request carries.
        body: What is sent.
        limit: Most bytes of the reply that are read.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    limit: int = _SMALL


@dataclass(frozen=True)
class Pause:
    """Wait before going on."""

    seconds: float


@dataclass(frozen=True)
class Reply:
    """The reply to a call; names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Lost(Exception):
    """A call had no reply.

    Args:
        error: Says why.
        final: Whether trying again is of no use.
    """

    def __init__(self, error: SecureInferError, final: bool = False) -> None:
        super().__init__(error.summary)
        self.error, self.final = error, final


Flow: TypeAlias = Generator[Call | Pause, Reply, T]


@dataclass(frozen=True)
class Answered:
    """One party's reply to a message.

    Attributes:
        reply: One frame.
        wall_s: Seconds from the first byte out to the last byte in, retries included.
        upload_s: Seconds of them in which evaluation keys were uploaded once more.
        server_s: What the server says of itself: queue, load, run and cpu.
        statistics: What the party counted.
    """

    reply: bytes
    wall_s: float
    upload_s: float
    server_s: Mapping[str, float]
    statistics: Mapping[str, float]


@dataclass(frozen=True)
class Talk:
    """Conversations about one model.

    Args:
        model: Name under which it is served.
        retries: How often a call is tried again after a lost connection or a server that is busy.
        patience: Most seconds that one call waits between its tries, all together.
        chunk: Bytes of evaluation keys in one call; what a lost connection costs.
        progress: Told how many bytes of how many have arrived.
    """

    model: str
    retries: int = 5
    patience: float = 60.0
    chunk: int = 8 << 20
    progress: Progress | None = None

    def models(self) -> Flow[list[Mapping[str, Any]]]:
        """What the server serves."""
        reply = yield from self.ask(Call("GET", api.MODELS, limit=_SMALL))
        try:
            return [{**entry, "name": str(entry["name"])} for entry in json.loads(reply.body)["models"]]
        except (ValueError, KeyError, TypeError) as error:
            raise _nonsense("its list of models is unreadable") from error

    def client_half(self) -> Flow[tuple[bytes, str]]:
        """The model's public half, compared with its hash, and which party of how many this server is ("0/1")."""
        path = f"{api.MODELS}/{quote(self.model, safe='')}/client-half"
        reply = yield from self.ask(Call("GET", path, limit=_HALF))
        if reply.headers.get("etag", "").strip('"') != hashlib.sha256(reply.body).hexdigest():
            raise BundleError(
                "The client half was altered on its way.",
                [Problem("client half", "Its SHA-256 is not the one that the server names.", "fetch it again.")],
            )
        return reply.body, reply.headers.get(api.PARTY.lower(), "0/1")

    def upload(self, keys: bytes, name: str) -> Flow[None]:
        """Bring evaluation keys to the server, from where the last try ended; nothing is sent if it has them."""
        total, path, stalled = len(keys), f"{api.KEYS}/{name}", 0
        held = yield from self.ask(Call("HEAD", path), {200, 404})
        offset = _offset(held) if held.status == 200 else 0
        while offset < total:
            end = min(offset + self.chunk, total)
            headers = {"Content-Range": f"bytes {offset}-{end - 1}/{total}", "Content-Type": api.OCTETS}
            reply = yield from self.ask(Call("PUT", path, headers, keys[offset:end]), {200, 201, 202, 409})
            if reply.status == 409 and api.UPLOAD_OFFSET.lower() not in reply.headers:
                raise _error(reply)
            # 409: a try that was thought lost had arrived, or somebody else sends the same keys.
            now = total if reply.status in (200, 201) else _offset(reply)
            stalled = 0 if now > offset else stalled + 1
            if stalled > self.retries:
                raise _nonsense("it does not keep what is uploaded")
            offset = now
            if self.progress is not None:
                self.progress(offset, total)

    def infer(self, message: bytes, key_name: str, keys: bytes, request: str) -> Flow[Answered]:
        """Ask; if the server has lost the evaluation keys meanwhile, upload them again, once."""
        start, upload_s = time.perf_counter(), 0.0
        try:
            reply = yield from self._post(message, key_name, request)
        except KeyMismatch:
            if not keys:
                raise
            began = time.perf_counter()
            yield from self.upload(keys, key_name)
            upload_s = time.perf_counter() - began
            reply = yield from self._post(message, key_name, request)
        wall_s = time.perf_counter() - start
        return Answered(reply.body, wall_s, upload_s, _timings(reply.headers), _statistics(reply.headers))

    def _post(self, message: bytes, key_name: str, request: str) -> Flow[Reply]:
        headers = {api.IDEMPOTENCY_KEY: request, "Content-Type": api.OCTETS, "Accept": api.OCTETS}
        if key_name:
            headers[api.EVALUATION_KEYS] = key_name
        path = f"{api.MODELS}/{quote(self.model, safe='')}/infer"
        return (yield from self.ask(Call("POST", path, headers, message, _REPLY)))

    def ask(self, call: Call, good: Collection[int] = (200,)) -> Flow[Reply]:
        """The reply to a call, which is tried again where that may help.

        Raises:
            SecureInferError: The server's own error, or a ProtocolError if there was no reply to the last try.
        """
        waited = 0.0
        for attempt in range(self.retries + 1):
            pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**attempt) * random.uniform(0.5, 1)
            try:
                reply = yield call
                if reply.status in good:
                    return reply
                error, again = _error(reply), reply.status in _AGAIN or "retry-after" in reply.headers
                pause = _retry_after(reply, pause)
            except Lost as lost:
                error, again = lost.error, not lost.final
            waited += pause
            if not again or attempt == self.retries or waited > self.patience:
                raise error
            yield Pause(pause)
        raise AssertionError("the last attempt returns or raises")


def _error(reply: Reply) -> SecureInferError:
    try:
        document = json.loads(reply.body)
    except (ValueError, RecursionError):
        document = None
    return api.error_of(document, reply.status)


def _retry_after(reply: Reply, otherwise: float) -> float:
    """Seconds that the server asks for; a little longer than it says, as it rounds."""
    try:
        seconds = float(reply.headers["retry-after"])
    except (KeyError, ValueError):
        return otherwise
    return max(seconds, otherwise) if math.isfinite(seconds) and seconds >= 0 else otherwise


def _offset(reply: Reply) -> int:
    text = reply.headers.get(api.UPLOAD_OFFSET.lower(), "")
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise _nonsense("it does not say how much of the keys it holds")
    return int(text)


def _timings(headers: Mapping[str, str]) -> dict[str, float]:
    """Seconds by name of a `Server-Timing` header; what can't be read is left out."""
    found = {"queue": 0.0, "load": 0.0, "run": 0.0, "cpu": 0.0}
    for entry in headers.get(api.SERVER_TIMING.lower(), "").split(","):
        name, _, duration = entry.strip().partition(";dur=")
        try:
            seconds = float(duration) / 1e3
        except ValueError:
            continue
        if name in found and 0 <= seconds < math.inf:
            found[name] = seconds
    return found


def _statistics(headers: Mapping[str, str]) -> dict[str, float]:
    try:
        found = json.loads(headers.get(api.STATISTICS.lower(), "{}"))
        return {str(name): value for name, value in found.items() if type(value) in (int, float)}
    except (ValueError, AttributeError, RecursionError):
        return {}


def _nonsense(what: str) -> ProtocolError:
    return ProtocolError(
        "The server does not keep to the protocol.",
        [Problem("server", f"Gave up because {what}.", "check its address, and its version.")],
    )
