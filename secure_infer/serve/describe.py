"""What /openapi.json says of each route: bodies, headers, and the errors that it may give."""

from __future__ import annotations

from typing import Any

from fastapi.responses import Response

from secure_infer.wire import api

_PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "problems"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "instance": {"type": "string"},
        "retry_after": {"type": "number"},
        "problems": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["where", "what", "fix"],
                "properties": {name: {"type": "string"} for name in ("where", "what", "fix")},
            },
        },
    },
}
_TEXTS = {
    400: "The body is damaged.",
    401: "No valid token.",
    403: "The token does not permit this.",
    404: "There is none.",
    408: "The body came too slowly.",
    409: "Keys that have to be uploaded (again), or another try is under way.",
    413: "Too large.",
    415: "Another kind of body.",
    422: "Malformed, or an Idempotency-Key that was used for another message.",
    429: "A budget is spent, or the queue is full; see Retry-After.",
    500: "A defect.",
    503: "A worker failed, or the server is not ready.",
    507: "No room, within the quotas or on the disk.",
}
_OCTETS = {api.OCTETS: {"schema": {"type": "string", "format": "binary"}}}
_BODY = {"requestBody": {"required": True, "content": _OCTETS}}
_SECURED: dict[str, Any] = {"security": [{"bearer": []}]}


def _header(name: str, pattern: str, text: str) -> dict[str, Any]:
    return {"in": "header", "name": name, "description": text, "schema": {"type": "string", "pattern": pattern}}


def _route(answers: dict[int, dict[str, Any]], errors: tuple[int, ...], **extra: Any) -> dict[str, Any]:
    failed = {
        status: {"description": _TEXTS[status], "content": {api.PROBLEM: {"schema": _PROBLEM}}} for status in errors
    }
    return {"responses": {**answers, **failed}, "response_class": Response, "openapi_extra": extra or None}


def _json(text: str) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": {"type": "object"}}}}


def _bytes(text: str) -> dict[str, Any]:
    return {"description": text, "content": _OCTETS}


_RANGE = _header("Content-Range", r"^bytes \d{1,15}-\d{1,15}/\d{1,15}$", "The part that the body is, of the whole.")
_KEYS = _header(api.EVALUATION_KEYS, "^[0-9a-f]{64}$", "SHA-256 of uploaded keys, where the protocol has such.")
_ONCE = _header(api.IDEMPOTENCY_KEY, "^[0-9a-f]{32}$", "Drawn for a request, and kept through its retries.")

MODELS = _route({200: _json("The models.")}, (401, 403, 500, 507), **_SECURED)
HALF = _route(
    {200: _bytes("The public half."), 304: {"description": "The client has it."}},
    (401, 403, 404, 422, 500, 507),
    **_SECURED,
)
HEAD = _route({200: {"description": "How much is held."}}, (401, 403, 404, 422, 500, 507), **_SECURED)
PUT = _route(
    {200: {"description": "Held already."}, 201: {"description": "Whole."}, 202: {"description": "More is to come."}},
    (400, 401, 403, 408, 409, 413, 415, 422, 429, 500, 507),
    parameters=[_RANGE],
    **_BODY,
    **_SECURED,
)
DELETE = _route({204: {"description": "Dropped."}}, (401, 403, 404, 422, 500, 507), **_SECURED) | {"status_code": 204}
INFER = _route(
    {200: _bytes("The reply, still encrypted.")},
    (400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 500, 503, 507),
    parameters=[_KEYS, _ONCE],
    **_BODY,
    **_SECURED,
)
HEALTH = _route({200: _json("The process answers.")}, ())
READY = _route({200: _json("Requests would be run.")}, (503,))
METRICS = _route({200: {"description": "Counters.", "content": {"text/plain": {}}}}, (401, 403, 500), **_SECURED)
