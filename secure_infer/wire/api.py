"""The HTTP interface, as both of its ends know it: paths, headers, scopes, and errors as RFC 9457 problem documents.

    GET    /v1/models                      application/json   {"models": [{name, protocol, party, parties, ...}]}
    GET    /v1/models/{model}/client-half  octet-stream       the public half of a bundle; ETag is its SHA-256
    HEAD   /v1/keys/{sha256}               -                  200 and both Upload-* headers, or 404
    PUT    /v1/keys/{sha256}               octet-stream       Content-Range: bytes a-b/total; 201 whole, 202 part;
                                                              409 and Upload-Offset if a is not where the upload stopped
    DELETE /v1/keys/{sha256}               -                  204
    POST   /v1/models/{model}/infer        octet-stream       Evaluation-Keys, Idempotency-Key -> Server-Timing;
                                                              409 KeyMismatch if the keys have to be uploaded again
    GET    /healthz  /readyz  /metrics  /openapi.json

All but /healthz, /readyz and /openapi.json want `Authorization: Bearer TOKEN`. A problem document whose reply has a
Retry-After header may go away: the same request, with the same Idempotency-Key, may be sent again after that time.

A party of a multi-party protocol has a front of its own with the same paths; a client sends it that party's message.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secure_infer import errors
from secure_infer.errors import Problem, ProtocolError, SecureInferError

MODELS, KEYS = "/v1/models", "/v1/keys"
OCTETS, PROBLEM = "application/octet-stream", "application/problem+json"
EVALUATION_KEYS = "Evaluation-Keys"
"""SHA-256 of the uploaded evaluation keys; absent where the protocol has none."""
IDEMPOTENCY_KEY = "Idempotency-Key"
"""32 lower-case hexadecimal digits, drawn by the client for each request and kept through its retries. Both fronts of a
two-party protocol are sent the same."""
PARTY = "Secure-Infer-Party"
"""Of a client half: which server party this is, of how many: "0/1", "1/2"."""
UPLOAD_OFFSET, UPLOAD_LENGTH = "Upload-Offset", "Upload-Length"
SERVER_TIMING = "Server-Timing"
"""queue;dur=, load;dur=, run;dur=, cpu;dur=: milliseconds."""
STATISTICS = "Secure-Infer-Statistics"
"""JSON: what the server party counted."""
REPLAYED = "Idempotency-Replayed"
"""On a reply that was kept from an earlier try of the same request."""
SCOPES = ("models", "keys", "infer", "metrics")
"""What a token may be good for: read models, upload keys, ask, read metrics."""

URN = "urn:secure-infer:error:"

STATUS: Mapping[type[SecureInferError], int] = {
    errors.InvalidInput: 422,
    errors.BundleError: 400,
    errors.KeyMismatch: 409,
    errors.UsageError: 404,
    errors.AccessDenied: 403,
    errors.LimitExceeded: 429,
    errors.ProtocolError: 503,
}
"""The HTTP status of each error, unless the place where it is raised knows better (401, 404, 411, 413, 507 ...)."""


def problem(error: SecureInferError, status: int, instance: str = "") -> dict[str, Any]:
    """An error as a problem document: type, title, status, instance, and our list of problems with their fixes."""
    kind = next((kind for kind in type(error).__mro__ if kind in STATUS), type(error))
    document: dict[str, Any] = {
        "type": URN + kind.__name__,
        "title": error.summary,
        "status": status,
        "problems": [{"where": p.where, "what": p.what, "fix": p.fix} for p in error.problems],
    }
    if instance:
        document["instance"] = instance
    if isinstance(error, errors.LimitExceeded) and error.retry_after is not None:
        document["retry_after"] = error.retry_after
    return document


_KINDS: Mapping[str, type[SecureInferError]] = {kind.__name__: kind for kind in STATUS}
_BARE: Mapping[int, type[SecureInferError]] = {
    401: errors.AccessDenied,
    403: errors.AccessDenied,
    404: errors.UsageError,
}


def error_of(document: Any, status: int) -> SecureInferError:
    """The error that a problem document stands for; whatever else a server may have said becomes a ProtocolError."""
    try:
        kind = _KINDS[document["type"].removeprefix(URN)]
        problems = [Problem(str(p["where"]), str(p["what"]), str(p["fix"])) for p in document["problems"]]
        after = document.get("retry_after")
        if kind is errors.LimitExceeded and after is not None:
            return errors.LimitExceeded(str(document["title"]), problems, retry_after=float(after))
        return kind(str(document["title"]), problems)
    except (AttributeError, KeyError, TypeError, ValueError):
        # The reply to a HEAD has no body, and a proxy's has another.
        return _BARE.get(status, ProtocolError)(
            f"The server answered with status {status}.",
            [Problem("server", "It gave no readable reason.", "check its address, your token, and its log.")],
        )
