"""Every error as an RFC 9457 problem document: ours, the framework's, and a defect's."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.routing import Match

from secure_infer.errors import (
    AccessDenied,
    InvalidInput,
    LimitExceeded,
    Problem,
    ProtocolError,
    SecureInferError,
    UsageError,
)
from secure_infer.serve.engines import DiskFull
from secure_infer.wire import api

log = logging.getLogger(__name__)

TOO_LARGE, TIMEOUT, UNAUTHORIZED, DEFECT, FULL = 413, 408, 401, 500, 507


class Refused(Exception):
    """A request that is answered by an error, where status or headers are not those that the error stands for.

    Args:
        error: What the client is told.
        status: HTTP status.
        headers: Further headers.
    """

    def __init__(self, error: SecureInferError, status: int, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(error.summary)
        self.error, self.status, self.headers = error, status, dict(headers or {})


def status_of(error: SecureInferError) -> int:
    """The HTTP status that an error stands for."""
    if isinstance(error, DiskFull):
        return FULL
    return next((status for kind, status in api.STATUS.items() if isinstance(error, kind)), DEFECT)


def document(error: SecureInferError, status: int, instance: str = "") -> bytes:
    """A problem document."""
    return json.dumps(api.problem(error, status, instance)).encode()


def respond(
    error: SecureInferError, status: int | None = None, headers: Mapping[str, str] | None = None, instance: str = ""
) -> Response:
    """An error as a response, with Retry-After where waiting helps."""
    status = status_of(error) if status is None else status
    extra = dict(headers or {})
    if isinstance(error, LimitExceeded) and error.retry_after is not None:
        extra.setdefault("Retry-After", str(math.ceil(error.retry_after)))
    if status == UNAUTHORIZED:
        extra["WWW-Authenticate"] = 'Bearer realm="secure-infer"'
    return Response(document(error, status, instance), status, extra, media_type=api.PROBLEM)


def install(app: FastAPI) -> None:
    """Let every exception end in a problem document."""
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(SecureInferError, _ours)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _framework)
    app.add_exception_handler(Exception, _defect)


async def _refused(request: Request, error: Exception) -> Response:
    found = error if isinstance(error, Refused) else Refused(SecureInferError(str(error)), DEFECT)
    return respond(found.error, found.status, found.headers, request.url.path)


async def _ours(request: Request, error: Exception) -> Response:
    return respond(error if isinstance(error, SecureInferError) else SecureInferError(""), instance=request.url.path)


async def _invalid(request: Request, error: Exception) -> Response:
    found = error.errors() if isinstance(error, RequestValidationError) else []
    problems = [
        Problem(".".join(map(str, entry["loc"])), f"{entry['msg']}.", "see /openapi.json for what is expected.")
        for entry in found
    ]
    return respond(InvalidInput("The request is malformed.", problems), instance=request.url.path)


async def _framework(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        return await _defect(request, error)
    kind: type[SecureInferError] = AccessDenied if error.status_code in (401, 403) else UsageError
    found = kind(f"{error.detail}.", [Problem(request.url.path[:200], f"{request.method} is not for it.", _SEE)])
    headers = dict(error.headers or {})
    if "Allow" in headers:
        headers["Allow"] = ", ".join(sorted(_methods(request)))
    return respond(found, error.status_code, headers, request.url.path)


def _methods(request: Request) -> set[str]:
    """The methods of all routes of a path; the framework names those of the first alone."""
    matching = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    return {method for route in matching for method in getattr(route, "methods", None) or ()}


async def _defect(request: Request, error: Exception) -> Response:
    log.error("%s %s failed: %s", request.method, request.url.path, type(error).__name__, exc_info=error)
    found = ProtocolError(
        "Something went wrong inside the server.",
        [Problem("server", "This is a defect, and is in its log.", "try again, or tell its operator.")],
    )
    return respond(found, DEFECT, instance=request.url.path)


_SEE = "see /openapi.json for paths and methods."


def too_large(where: str, limit: int) -> Refused:
    """The refusal of something that is longer than it may be."""
    found = LimitExceeded(
        "The request is too large.", [Problem(where, f"It may have {limit} bytes at most.", "send less at once.")]
    )
    return Refused(found, TOO_LARGE)
