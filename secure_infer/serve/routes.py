"""The routes of the interface that `wire.api` describes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from fastapi import FastAPI, Path, Request
from fastapi.responses import JSONResponse, Response
from starlette.requests import ClientDisconnect

from secure_infer.errors import KeyMismatch, LimitExceeded, Problem, ProtocolError, SecureInferError, UsageError
from secure_infer.serve import catalog, describe, requests
from secure_infer.serve.accounts import Account
from secure_infer.serve.audit import Event
from secure_infer.serve.base import Done, Job
from secure_infer.serve.inference import CONFLICT, Recorded
from secure_infer.serve.inference import Request as Inference
from secure_infer.serve.problems import FULL, Refused
from secure_infer.wire import api

if TYPE_CHECKING:
    from secure_infer.serve.app import Front

Sha256 = Annotated[str, Path(pattern="^[0-9a-f]{64}$", description="SHA-256 of the keys.")]
Name = Annotated[str, Path(max_length=100, description="Name of a model.")]
_WRITE, _SHORT = 1 << 20, 256 << 10
_ABSENT, _UNAVAILABLE, _GONE = 404, 503, 499
_STRANGERS = 60
"""Refusals a minute of those without a valid token that are recorded: else they could fill the disk."""


def attach(found: FastAPI, front: Front) -> None:
    """Give an application all routes."""
    routes = Routes(front)
    found.get(api.MODELS, **describe.MODELS)(routes.models)
    found.get(f"{api.MODELS}/{{model}}/client-half", **describe.HALF)(routes.client_half)
    found.head(f"{api.KEYS}/{{sha256}}", **describe.HEAD)(routes.head_keys)
    found.put(f"{api.KEYS}/{{sha256}}", **describe.PUT)(routes.put_keys)
    found.delete(f"{api.KEYS}/{{sha256}}", **describe.DELETE)(routes.delete_keys)
    found.post(f"{api.MODELS}/{{model}}/infer", **describe.INFER)(routes.infer)
    found.get("/healthz", **describe.HEALTH)(routes.healthz)
    found.get("/readyz", **describe.READY)(routes.readyz)
    found.get("/metrics", **describe.METRICS)(routes.metrics)


@dataclass
class _Entry:
    """What the audit log will say of a request."""

    action: str
    model: str = ""
    key_name: str = ""
    account: Account | None = None
    received: int = 0
    sent: int = 0
    quiet: bool = False
    """Recorded already, with its settlement; or only a part of an upload."""


class Routes:
    """One method a route.

    Args:
        front: What they act on.
    """

    def __init__(self, front: Front) -> None:
        self._front = front
        self._minute, self._strangers = 0, 0

    async def models(self, request: Request) -> Response:
        """The models that are offered."""
        async with self._logged("models") as entry:
            await self._enter(request, entry, "models")
            return JSONResponse(catalog.summary(self._front.catalog.offered()))

    async def client_half(self, request: Request, model: Name) -> Response:
        """The public half of a model; 304 if the client has it."""
        async with self._logged("client-half", model=model) as entry:
            await self._enter(request, entry, "models")
            found = self._front.catalog.get(model)
            headers = {"ETag": f'"{found.etag}"', api.PARTY: f"{found.party}/{found.parties}"}
            if request.headers.get("if-none-match", "").strip('"') == found.etag:
                return Response(status_code=304, headers=headers)
            entry.sent = len(found.half)
            return Response(found.half, headers=headers, media_type=api.OCTETS)

    async def head_keys(self, request: Request, sha256: Sha256) -> Response:
        """How much of evaluation keys the server holds."""
        async with self._logged("keys", key_name=sha256) as entry:
            account = await self._enter(request, entry, "keys")
            held = await asyncio.to_thread(self._front.state.keys.offset, account.client, sha256)
            if held is None:
                raise _no_keys()
            return Response(headers=_held(*held))

    async def put_keys(self, request: Request, sha256: Sha256) -> Response:
        """Take a part of evaluation keys, or the whole."""
        async with self._logged("upload", key_name=sha256) as entry:
            account = await self._enter(request, entry, "keys")
            requests.require_octets(request)
            part = requests.content_range(request, self._front.catalog.keys_bytes())
            offset = await self._receive(request, account, sha256, part)
            entry.received, entry.quiet = part.end - part.start, offset < part.total
            return Response(status_code=201 if offset == part.total else 202, headers=_held(offset, part.total))

    async def delete_keys(self, request: Request, sha256: Sha256) -> Response:
        """Drop evaluation keys."""
        async with self._logged("delete", key_name=sha256) as entry:
            account = await self._enter(request, entry, "keys")
            if not await asyncio.to_thread(self._front.state.keys.delete, account.client, sha256):
                raise _no_keys()
            self._front.runner.forget(sha256)
            return Response(status_code=204)

    async def infer(self, request: Request, model: Name) -> Response:
        """Answer a message."""
        front = self._front
        async with self._logged("infer", model=model) as entry:
            account = await self._enter(request, entry, "infer")
            found = front.catalog.get(model)
            requests.require_octets(request)
            name = requests.request_id(request) or secrets.token_hex(16)
            entry.key_name = requests.key_name(request, found)
            limit = found.sizes.message_bytes(front.options.samples)
            async with requests.body(request, limit, front.memory) as message:
                entry.received = len(message)
                digest = await self._checked(message, found)
                job = Job(model, account.client, message, entry.key_name, None, front.options.seconds)
                asked = Inference(account, job, name, digest)
                outcome = await front.inferences.answer(asked, lambda: asyncio.create_task(_gone(request)))
            # What was run is recorded with its settlement.
            entry.quiet, entry.action, entry.sent = not outcome.replayed, "replay", len(outcome.done.reply)
            headers = {api.IDEMPOTENCY_KEY: name}
            headers |= {api.REPLAYED: "true"} if outcome.replayed else _timing(outcome.done)
            return Response(outcome.done.reply, headers=headers, media_type=api.OCTETS)

    async def healthz(self) -> Response:
        """Whether the process answers."""
        return JSONResponse({"status": "ok"})

    async def readyz(self) -> Response:
        """Whether requests would be run."""
        if self._front.ready and self._front.status().get("workers", 1) > 0:
            return JSONResponse({"status": "ready"})
        problem = Problem("server", "It is starting, stopping, or has no workers.", "try again.")
        raise Refused(ProtocolError("The server is not ready.", [problem]), _UNAVAILABLE, {"Retry-After": "1"})

    async def metrics(self, request: Request) -> Response:
        """Counters, for Prometheus."""
        await requests.authenticate(request, self._front.state.accounts, "metrics", self._front.options.open)
        return Response(self._front.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _receive(self, request: Request, account: Account, sha256: str, part: requests.Part) -> int:
        """Write a part to the store, as it comes; returns how much is held then."""
        keys, source = self._front.state.keys, _blocks(request, part.end - part.start)
        first = await anext(source, b"")
        if part.start == 0:
            requests.check_keys(first, part.total, self._front.catalog.keys_kinds())
        try:
            upload = await asyncio.to_thread(keys.begin, account.client, sha256, part.start, part.total)
        except KeyMismatch as error:
            held = await asyncio.to_thread(keys.offset, account.client, sha256) or (0, part.total)
            raise Refused(error, CONFLICT, _held(*held)) from error
        except LimitExceeded as error:
            # One that goes away is another connection, and not the disk.
            raise Refused(error, FULL) if error.retry_after is None else error from error
        if upload is None:
            return part.total
        try:
            offset = await asyncio.to_thread(upload.write, first)
            async for block in source:
                offset = await asyncio.to_thread(upload.write, block)
        except LimitExceeded as error:
            raise Refused(error, FULL) from error
        finally:
            await asyncio.to_thread(upload.close)
        return offset

    async def _checked(self, message: bytes, model: catalog.Model) -> str:
        """SHA-256 of a message that holds what one may; what is short takes less time than handing it to a thread."""

        def check() -> str:
            requests.check_message(message, model, self._front.options.samples)
            return hashlib.sha256(message).hexdigest()

        return check() if len(message) <= _SHORT else await asyncio.to_thread(check)

    async def _enter(self, request: Request, entry: _Entry, scope: str) -> Account:
        front = self._front
        account = await requests.authenticate(request, front.state.accounts, scope, front.options.open)
        entry.account = account
        return account

    @asynccontextmanager
    async def _logged(self, action: str, model: str = "", key_name: str = "") -> AsyncIterator[_Entry]:
        """Record the request in the audit log, however it ends."""
        entry, outcome = _Entry(action, model[:100], key_name), "ok"
        try:
            yield entry
        except Recorded as error:
            entry.quiet = True
            raise error.error from error
        except Refused as error:
            outcome = type(error.error).__name__
            raise
        except (ClientDisconnect, ConnectionAbortedError) as error:
            outcome = "disconnected"
            problem = Problem("client", "It closed the connection.", "send the request again.")
            raise Refused(ProtocolError("The client has gone.", [problem]), _GONE) from error
        except BaseException as error:
            outcome = type(error).__name__
            raise
        finally:
            if not entry.quiet and (entry.account is not None or self._may_record()):
                await asyncio.to_thread(self._record, entry, outcome)

    def _record(self, entry: _Entry, outcome: str) -> None:
        who = entry.account.client if entry.account else ""
        found = Event(who, entry.action, entry.model, entry.key_name, "", entry.received, entry.sent, outcome)
        self._front.state.audit.record(found)

    def _may_record(self) -> bool:
        minute = int(time.monotonic() // 60)
        if minute != self._minute:
            self._minute, self._strangers = minute, 0
        self._strangers += 1
        return self._strangers <= _STRANGERS


async def _blocks(request: Request, length: int) -> AsyncIterator[bytes]:
    """The body in blocks that are worth a write; never more than was announced."""
    block, left = bytearray(), length
    async for chunk in request.stream():
        left -= len(chunk)
        if left < 0:
            problem = Problem("body", "It is longer than its Content-Range.", "send what was announced.")
            raise Refused(SecureInferError("The body has another length than announced.", [problem]), 400)
        block += chunk
        if len(block) >= _WRITE:
            yield bytes(block)
            block.clear()
    if block:
        yield bytes(block)


async def _gone(request: Request) -> None:
    """End when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _held(offset: int, total: int) -> dict[str, str]:
    return {api.UPLOAD_OFFSET: str(offset), api.UPLOAD_LENGTH: str(total)}


def _no_keys() -> Refused:
    problem = Problem("evaluation keys", "You have uploaded none of this name.", "upload them.")
    return Refused(UsageError("The server does not hold these evaluation keys.", [problem]), _ABSENT)


def _timing(done: Done) -> dict[str, str]:
    phases = {"queue": done.queue_s, "load": done.load_s, "run": done.run_s, "cpu": done.cpu_s}
    headers = {api.SERVER_TIMING: ", ".join(f"{name};dur={seconds * 1e3:.3f}" for name, seconds in phases.items())}
    if done.statistics:
        headers[api.STATISTICS] = json.dumps(dict(done.statistics))
    return headers
