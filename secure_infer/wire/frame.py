"""The frame around everything that is stored or sent: magic, schema, kind, JSON header, parts, SHA-256.

    offset  size  field
    0       4     magic "SIF1"
    4       32    SHA-256 of all that follows
    36      4     length h of the header, little endian
    40      h     header: JSON object {"kind": str, "parts": [length, ...], "meta": {...}}
    40+h    -     the parts, end to end

Nothing in a frame is ever unpickled; a part is opaque bytes for the library that made it.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from secure_infer.errors import BundleError, Problem

MAGIC = b"SIF1"
_HEAD = 4 + 32 + 4
MAX_HEADER = 1 << 20


@dataclass(frozen=True)
class Frame:
    """A checked frame: its kind, its metadata and its parts."""

    kind: str
    meta: Mapping[str, Any]
    parts: tuple[bytes, ...]


def pack(kind: str, parts: Sequence[bytes], meta: Mapping[str, Any] | None = None) -> bytes:
    """Join parts and metadata to one frame."""
    header = json.dumps({"kind": kind, "parts": [len(part) for part in parts], "meta": dict(meta or {})}).encode()
    body = (struct.pack("<I", len(header)), header, *parts)
    digest = hashlib.sha256()
    for part in body:
        digest.update(part)
    return b"".join((MAGIC, digest.digest(), *body))  # joined once: parts can be gigabytes


def unpack(data: bytes, kind: str | None) -> Frame:
    """Take a frame apart after checking its magic, lengths, SHA-256 and kind; None stands for any kind.

    Raises:
        BundleError: Anything that is not a whole, unaltered frame of this kind.
    """
    problem = _problem(data)
    if problem:
        raise _error(kind, problem)
    (length,) = struct.unpack_from("<I", data, 36)
    try:
        header = json.loads(data[_HEAD : _HEAD + length])
        found, sizes, meta = header["kind"], header["parts"], header["meta"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _error(kind, "its header is not readable") from error
    if kind is not None and found != kind:
        raise _error(kind, f"it is of the kind {str(found)[:40]!r}")
    lengths = isinstance(sizes, list) and all(type(size) is int and size >= 0 for size in sizes)
    if not lengths or not isinstance(meta, dict):
        raise _error(kind, "its header is malformed")
    if _HEAD + length + sum(sizes) != len(data):
        raise _error(kind, "its parts do not add up to its length")
    parts, at = [], _HEAD + length
    for size in sizes:
        parts.append(data[at : at + size])
        at += size
    return Frame(found, meta, tuple(parts))


def _problem(data: bytes) -> str:
    if len(data) < _HEAD or data[:4] != MAGIC:
        return "it does not begin like one"
    (length,) = struct.unpack_from("<I", data, 36)
    if length > MAX_HEADER or _HEAD + length > len(data):
        return "it is truncated"
    if hashlib.sha256(memoryview(data)[36:]).digest() != data[4:36]:
        return "its SHA-256 does not match: it is truncated or altered"
    return ""


def _error(kind: str | None, what: str) -> BundleError:
    kind = kind or "frame"
    return BundleError(
        f"This is not a usable {kind}.",
        [Problem(kind, f"Refused because {what}.", "fetch or make it again, and check that it is the right file.")],
    )
