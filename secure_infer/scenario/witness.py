"""Who saw what, by looking: the messages that went to and fro, and the files that each role holds."""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from secure_infer.wire import frame
from secure_infer.wire.transport import Answer, Transport

_PROBE = 1024
_VARIED = 40  # bytes, compressed, of a stretch of a secret that can't be met by chance


@dataclass(frozen=True)
class Message:
    """One message between the client and a server.

    Attributes:
        sender: Name of a role.
        receiver: Name of a role.
        kind: What its frame says that it is.
        size: Bytes.
        data: The message itself.
    """

    sender: str
    receiver: str
    kind: str
    size: int
    data: bytes = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """All but the data."""
        return {name: value for name, value in asdict(self).items() if name != "data"}


class Recorder:
    """A transport that notes every message that passes.

    Args:
        inner: The true transport.
        servers: Names of the servers, in the order of their messages.
    """

    def __init__(self, inner: Transport, servers: Sequence[str]) -> None:
        self._inner, self._servers = inner, tuple(servers)
        self.messages: list[Message] = []

    def client_half(self) -> bytes:
        """The model's public half, which every server sends."""
        half = self._inner.client_half()
        for name in self._servers:
            self._note(name, "client", half)
        return half

    def upload(self, evaluation: bytes) -> str:
        """Pass evaluation keys on."""
        if evaluation:
            for name in self._servers:
                self._note("client", name, evaluation)
        return self._inner.upload(evaluation)

    def infer(self, messages: Sequence[bytes], key_name: str) -> Answer:
        """Pass a request on, and its replies back."""
        for name, message in zip(self._servers, messages, strict=True):
            self._note("client", name, message)
        answer = self._inner.infer(messages, key_name)
        for name, reply in zip(self._servers, answer.replies, strict=True):
            self._note(name, "client", reply)
        return answer

    def close(self) -> None:
        """Close the transport."""
        self._inner.close()

    def _note(self, sender: str, receiver: str, data: bytes) -> None:
        self.messages.append(Message(sender, receiver, kind_of(data), len(data), data))


def kind_of(data: bytes) -> str:
    """What a frame says that it is; empty if it is no frame."""
    if data[:4] != frame.MAGIC or len(data) < 40:
        return ""
    (length,) = struct.unpack_from("<I", data, 36)
    try:
        return str(json.loads(data[40 : 40 + min(length, frame.MAX_HEADER)])["kind"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


def probe(secret: bytes) -> bytes | None:
    """A stretch of a secret by which it is recognized wherever it turns up; None if none is varied enough."""
    for at in range(0, len(secret), _PROBE):
        piece = secret[at : at + _PROBE]
        if len(zlib.compress(piece)) >= _VARIED:
            return piece
    return None


def held(folder: Path) -> list[dict[str, Any]]:
    """Every file that a role holds: where, what, how large."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in (".lock", "lock"))
    return [
        {"path": path.relative_to(folder).as_posix(), "kind": _kind(path), "bytes": path.stat().st_size}
        for path in paths
    ]


def holders(folders: dict[str, Path], piece: bytes) -> list[str]:
    """Names of the roles in any of whose files a piece of data occurs."""
    return sorted(
        name
        for name, folder in folders.items()
        if any(piece in path.read_bytes() for path in folder.rglob("*") if path.is_file())
    )


def _kind(path: Path) -> str:
    head = path.read_bytes()[: frame.MAX_HEADER]
    if found := kind_of(head):
        return found
    if head.startswith(b"PK\3\4"):
        with zipfile.ZipFile(path) as archive:
            return f"bundle: {', '.join(sorted(archive.namelist()))}"
    if head.startswith(b"-----BEGIN"):
        return "private key" if b"PRIVATE" in head else "certificate"
    if head.startswith(b"SQLite"):
        return "accounts, counts, audit log"
    if head.startswith(b"\x93NUMPY"):
        return "inputs"
    return "file"
