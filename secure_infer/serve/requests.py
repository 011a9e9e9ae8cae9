"""What a request says, checked before anything acts on it: token, ranges, names, bodies, frames."""

from __future__ import annotations

import asyncio
import json
import re
import struct
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import Request

from secure_infer.errors import AccessDenied, BundleError, InvalidInput, KeyMismatch, Problem
from secure_infer.serve.accounts import ANONYMOUS, Account, Accounts
from secure_infer.serve.catalog import Model
from secure_infer.serve.guards import Memory
from secure_infer.serve.problems import UNAUTHORIZED, Refused, too_large
from secure_infer.wire import api, frame
from secure_infer.wire.access import is_loopback

_RANGE = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15})")
_NAME = re.compile(r"[0-9a-f]{64}")
_REQUEST = re.compile(r"[0-9a-f]{32}")
_LENGTH = re.compile(r"\d{1,15}")
_BEARER = re.compile(r"Bearer +(\S+) *", re.IGNORECASE)
_PREAMBLE = 40
_HEADER = 64 << 10
_UNSUPPORTED = 415


async def authenticate(request: Request, accounts: Accounts, scope: str, anonymous: bool) -> Account:
    """Who asks, if they may.

    Args:
        request: The request.
        accounts: Who is known.
        scope: What the request needs.
        anonymous: Whether a request without a token is let in.

    Raises:
        Refused: No token, or none that holds (401).
        AccessDenied: A token for other things (403).
    """
    header = request.headers.get("authorization")
    if header is None and anonymous:
        if not is_loopback(request.url.hostname or ""):
            # A web page elsewhere can give its own name this machine's address, and so ask through a browser here.
            problem = Problem("Host", "It is not this machine's name.", "use the address that the server printed.")
            raise AccessDenied("Requests without a token must be meant for this machine.", [problem])
        return ANONYMOUS
    found = _BEARER.fullmatch(header or "")
    try:
        account = await asyncio.to_thread(accounts.authenticate, found[1] if found else None)
    except AccessDenied as error:
        raise Refused(error, UNAUTHORIZED) from error
    account.require(scope)
    return account


def request_id(request: Request) -> str | None:
    """The Idempotency-Key, if there is one.

    Raises:
        InvalidInput: A malformed one.
    """
    return _matching(request, api.IDEMPOTENCY_KEY, _REQUEST, "32 lower-case hexadecimal digits")


def key_name(request: Request, model: Model) -> str:
    """Name of the evaluation keys to use; empty where the protocol has none.

    Raises:
        InvalidInput: A malformed one.
        KeyMismatch: None is named for a model that needs keys.
    """
    found = _matching(request, api.EVALUATION_KEYS, _NAME, "a SHA-256, 64 lower-case hexadecimal digits")
    if found is None and model.sizes.keys_bytes:
        problem = Problem(api.EVALUATION_KEYS, "The header is missing.", "upload keys, and name them.")
        raise KeyMismatch("This model needs evaluation keys.", [problem])
    return found or ""


def _matching(request: Request, header: str, pattern: re.Pattern[str], expected: str) -> str | None:
    value = request.headers.get(header)
    if value is not None and not pattern.fullmatch(value):
        raise InvalidInput("A header is malformed.", [Problem(header, f"Expected {expected}.", "draw it anew.")])
    return value


@dataclass(frozen=True)
class Part:
    """A part of evaluation keys: bytes `start` to `end`, exclusively, of `total`."""

    start: int
    end: int
    total: int


def content_range(request: Request, most: int) -> Part:
    """Which part of the keys a request brings.

    Args:
        request: The request; without Content-Range it brings the whole.
        most: Most bytes of the whole.

    Raises:
        InvalidInput: A malformed range, or a body of another length than its range.
        Refused: The whole is too long (413).
    """
    header, length = request.headers.get("content-range"), _length(request)
    found = _RANGE.fullmatch(header or "")
    if header is None and length:
        part = Part(0, length, length)
    elif found:
        part = Part(int(found[1]), int(found[2]) + 1, int(found[3]))
    else:
        part = Part(0, 0, 0)
    if not part.start < part.end <= part.total or length not in (None, part.end - part.start):
        problem = Problem("Content-Range", "Expected the bytes of the body: bytes a-b/total.", "see /openapi.json.")
        raise InvalidInput("The range of an upload is malformed.", [problem])
    if part.total > most:
        raise too_large("evaluation keys", most)
    return part


def _length(request: Request) -> int | None:
    value = request.headers.get("content-length")
    return int(value) if value is not None and _LENGTH.fullmatch(value) else None


def require_octets(request: Request) -> None:
    """Refuse bodies that say that they are something else (415), such as forms from a browser."""
    kind = request.headers.get("content-type", api.OCTETS).partition(";")[0].strip().lower()
    if kind != api.OCTETS:
        problem = Problem("Content-Type", f"Expected {api.OCTETS}.", "send the bytes as they are.")
        raise Refused(InvalidInput("The body is of another kind.", [problem]), _UNSUPPORTED)


@asynccontextmanager
async def body(request: Request, limit: int, memory: Memory) -> AsyncIterator[bytes]:
    """The whole body, which counts as memory in use within the block.

    Raises:
        Refused: It is longer than `limit` (413), whether or not it says so.
        LimitExceeded: There is no memory for it just now.
    """
    declared = _length(request)
    if declared is not None and declared > limit:
        raise too_large("message", limit)
    with memory.reserve(limit if declared is None else declared):
        found = bytearray()
        async for chunk in request.stream():
            found += chunk
            if len(found) > limit:
                raise too_large("message", limit)
        yield bytes(found)


def check_message(message: bytes, model: Model, samples: int) -> None:
    """Check the frame of a message as far as that needs no crypto library.

    Raises:
        BundleError: It is damaged, or another kind of message.
        Refused: It holds more inputs than one request may (413).
    """
    bounds = model.sizes
    found = frame.unpack(message, bounds.message_kind) if bounds.message_kind else None
    if found is None:
        _check_head(message, len(message), frozenset([None]), "message")
    elif len(found.parts) > samples * bounds.sample_parts:
        raise too_large("inputs of one request", samples)


def check_keys(first: bytes, total: int, kinds: Collection[str | None]) -> None:
    """Check the beginning of evaluation keys: that it is a frame, whose parts are as long as the whole.

    Raises:
        BundleError: It is none, or of a kind that no model here has.
    """
    _check_head(first, total, kinds, "evaluation keys")


def _check_head(first: bytes, total: int, kinds: Collection[str | None], what: str) -> None:
    try:
        if not first.startswith(frame.MAGIC):
            raise ValueError("it does not begin like a frame")
        (length,) = struct.unpack_from("<I", first, _PREAMBLE - 4)
        if length > _HEADER or _PREAMBLE + length > len(first):
            raise ValueError("its header is too long, or is not within the first part")
        header = json.loads(first[_PREAMBLE : _PREAMBLE + length])
        if _PREAMBLE + length + sum(header["parts"]) != total:
            raise ValueError("its parts do not add up to its length")
        if None not in kinds and header["kind"] not in kinds:
            raise ValueError("it is of another kind")
    except (ValueError, KeyError, TypeError, RecursionError, struct.error) as error:
        reason = str(error) if type(error) is ValueError else "its header is not readable"
        problem = Problem(what, f"Refused because {reason}.", "make it again with this model's client half.")
        raise BundleError(f"These are no usable {what}.", [problem]) from error
