"""The transports over HTTP, waiting and awaiting: connections, TLS and tokens; what is said over them is in `talk`."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

from secure_infer.errors import (
    AccessDenied,
    KeyMismatch,
    Problem,
    ProtocolError,
    SecureInferError,
    UsageError,
)
from secure_infer.wire.access import Access, checked, library, settings
from secure_infer.wire.talk import Answered, Call, Flow, Lost, Pause, Progress, Reply, Talk
from secure_infer.wire.transport import Answer, merged

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")


class Http:
    """A model's servers, one for each party, over HTTP.

    Args:
        urls: Address of each party's server, in order.
        model: Name under which all of them serve the model; may be left out where they serve only one.
        access: Token, certificates, patience.
        progress: Told how much of the evaluation keys has arrived.

    Raises:
        UsageError: An address that is no URL, or an unknown model.
        AccessDenied: A token that would have to travel in the clear.
    """

    def __init__(
        self, urls: Sequence[str], model: str = "", access: Access | None = None, progress: Progress | None = None
    ) -> None:
        httpx2 = library()
        access = access or Access()
        self._evaluation = b""
        self._clients = [httpx2.Client(**settings(url, access, party)) for party, url in enumerate(checked(urls))]
        try:
            name = model or _only(self._drive(0, _talk(access, "").models()))
            self._talk = _talk(access, name, progress)
        except BaseException:
            self.close()
            raise

    def client_half(self) -> bytes:
        """The model's public half, of which all parties must have the same."""
        return _agreed(self._everywhere([self._talk.client_half() for _ in self._clients]))

    def upload(self, evaluation: bytes) -> str:
        """Bring evaluation keys to all servers; nothing is sent to those that have them, or if there are none."""
        if not evaluation:
            return ""
        name = hashlib.sha256(evaluation).hexdigest()
        self._everywhere([self._talk.upload(evaluation, name) for _ in self._clients])
        self._evaluation = evaluation
        return name

    def infer(self, messages: Sequence[bytes], key_name: str) -> Answer:
        """Send every party its message, at once."""
        request, start = secrets.token_hex(16), time.perf_counter()
        flows = [self._talk.infer(message, key_name, self._evaluation, request) for message in messages]
        return _answer(self._everywhere(flows), time.perf_counter() - start)

    def close(self) -> None:
        """Close all connections; once more does nothing."""
        for client in self._clients:
            client.close()

    def _everywhere(self, flows: Sequence[Flow[T]]) -> list[T]:
        _require_open(self._clients[0].is_closed)
        if len(flows) == 1:
            return [self._drive(0, flows[0])]
        _require_parties(len(self._clients), len(flows))
        # Threads of their own: parties wait for one another, so that a shared pool could be full of one half of each.
        with ThreadPoolExecutor(len(flows), thread_name_prefix="party") as threads:
            return list(threads.map(self._drive, range(len(flows)), flows))

    def _drive(self, party: int, flow: Flow[T]) -> T:
        client = self._clients[party]
        try:
            step = next(flow)
            while True:
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                    step = next(flow)
                    continue
                try:
                    reply = _call(client, step)
                except Lost as lost:
                    step = flow.throw(lost)
                else:
                    step = flow.send(reply)
        except StopIteration as done:
            result: T = done.value
            return result


class AsyncHttp:
    """The same for `await`; made by `open`."""

    def __init__(self, clients: Sequence[httpx2.AsyncClient], talk: Talk) -> None:
        self._clients, self._talk, self._evaluation = clients, talk, b""

    @classmethod
    async def open(
        cls, urls: Sequence[str], model: str = "", access: Access | None = None, progress: Progress | None = None
    ) -> AsyncHttp:
        """Connect; arguments and errors are those of `Http`."""
        httpx2 = library()
        access = access or Access()
        clients = [httpx2.AsyncClient(**settings(url, access, party)) for party, url in enumerate(checked(urls))]
        found = cls(clients, _talk(access, model, progress))
        if not model:
            try:
                found._talk = _talk(access, _only(await found._drive(0, found._talk.models())), progress)
            except BaseException:
                await found.close()
                raise
        return found

    async def client_half(self) -> bytes:
        """The model's public half, of which all parties must have the same."""
        return _agreed(await self._everywhere([self._talk.client_half() for _ in self._clients]))

    async def upload(self, evaluation: bytes) -> str:
        """Bring evaluation keys to all servers."""
        if not evaluation:
            return ""
        name = hashlib.sha256(evaluation).hexdigest()
        await self._everywhere([self._talk.upload(evaluation, name) for _ in self._clients])
        self._evaluation = evaluation
        return name

    async def infer(self, messages: Sequence[bytes], key_name: str) -> Answer:
        """Send every party its message, at once."""
        request, start = secrets.token_hex(16), time.perf_counter()
        flows = [self._talk.infer(message, key_name, self._evaluation, request) for message in messages]
        return _answer(await self._everywhere(flows), time.perf_counter() - start)

    async def close(self) -> None:
        """Close all connections; once more does nothing."""
        for client in self._clients:
            await client.aclose()

    async def _everywhere(self, flows: Sequence[Flow[T]]) -> list[T]:
        _require_open(self._clients[0].is_closed)
        _require_parties(len(self._clients), len(flows))
        driven = (self._drive(party, flow) for party, flow in enumerate(flows))
        found = await asyncio.gather(*driven, return_exceptions=True)
        for result in found:
            if isinstance(result, BaseException):
                raise result
        return cast("list[T]", found)

    async def _drive(self, party: int, flow: Flow[T]) -> T:
        client = self._clients[party]
        try:
            step = next(flow)
            while True:
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                    step = next(flow)
                    continue
                try:
                    reply = await _call_async(client, step)
                except Lost as lost:
                    step = flow.throw(lost)
                else:
                    step = flow.send(reply)
        except StopIteration as done:
            result: T = done.value
            return result


def _talk(access: Access, model: str, progress: Progress | None = None) -> Talk:
    return Talk(model, access.retries, access.patience, access.chunk, progress)


def _call(client: httpx2.Client, call: Call) -> Reply:
    with _losses(client, call), client.stream(call.method, call.path, content=call.body, headers=call.headers) as found:
        body = bytearray()
        for chunk in found.iter_raw():
            body += chunk
            _require_short(body, call)
        return Reply(found.status_code, _lower(found.headers), bytes(body))


async def _call_async(client: httpx2.AsyncClient, call: Call) -> Reply:
    with _losses(client, call):
        async with client.stream(call.method, call.path, content=call.body, headers=call.headers) as found:
            body = bytearray()
            async for chunk in found.aiter_raw():
                body += chunk
                _require_short(body, call)
            return Reply(found.status_code, _lower(found.headers), bytes(body))


@contextmanager
def _losses(client: Any, call: Call) -> Iterator[None]:
    """Turn a lost connection into `Lost`."""
    httpx2 = library()
    try:
        yield
    except httpx2.TransportError as error:
        distrust = _distrust(error)
        what = str(distrust or error) or type(error).__name__
        kind: type[SecureInferError] = AccessDenied if distrust else ProtocolError
        fix = "give the authority that signed its certificate." if distrust else "check that it runs, and its address."
        raise Lost(
            kind("The server can't be reached.", [Problem(str(client.base_url), f"{what}.", fix)]), bool(distrust)
        ) from error


def _distrust(error: BaseException | None) -> ssl.SSLCertVerificationError | None:
    """The certificate that was refused, if that is what an error is about."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _require_short(body: bytearray, call: Call) -> None:
    if len(body) > call.limit:
        raise ProtocolError(
            "The server's reply is too long.",
            [Problem(call.path, f"It is longer than {call.limit} bytes.", "check the server's address.")],
        )


def _require_open(closed: bool) -> None:
    if closed:
        raise ProtocolError("The client is closed.", [Problem("client", "close() was called.", "make a new one.")])


def _require_parties(urls: int, messages: int) -> None:
    if urls != messages:
        raise UsageError(
            f"This model's protocol has {messages} server parties.",
            [Problem("urls", f"Expected {messages} addresses, got {urls}.", "give each party's address, in order.")],
        )


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _only(models: Sequence[Mapping[str, Any]]) -> str:
    """The name of the one model there is."""
    if len(models) == 1:
        return str(models[0]["name"])
    known = ", ".join(str(entry["name"])[:60] for entry in models) or "none"
    raise UsageError(
        f"The server has {len(models)} models.", [Problem("model", "No name was given.", f"name one of: {known}.")]
    )


def _agreed(found: Sequence[tuple[bytes, str]]) -> bytes:
    """The client half, if the servers are all parties of it, in order."""
    expected = [f"{party}/{len(found)}" for party in range(len(found))]
    named = [party for _, party in found]
    if named != expected:
        problem = Problem("urls", f"They are parties {', '.join(named)}.", "give each party's address, in order.")
        raise UsageError("These are not the servers of one model's parties, in order.", [problem])
    if len({half for half, _ in found}) != 1:
        raise KeyMismatch(
            "The servers serve different models under this name.",
            [Problem("urls", "Their client halves differ.", "give addresses of parties of the same bundle.")],
        )
    return found[0][0]


def _answer(parties: Sequence[Answered], wall_s: float) -> Answer:
    """All parties' replies as one; time is told by the party that took longest."""
    slowest = max(parties, key=lambda party: party.wall_s)
    told = slowest.server_s
    phases = {"upload": slowest.upload_s, **{name: told[name] for name in ("queue", "load", "run")}}
    phases["transfer"] = max(0.0, wall_s - sum(phases.values()))
    statistics = merged([party.statistics for party in parties])
    cpu_s = sum(party.server_s["cpu"] for party in parties)
    return Answer(tuple(party.reply for party in parties), wall_s, cpu_s, statistics, phases)
