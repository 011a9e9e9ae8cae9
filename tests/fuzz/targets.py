"""What is fuzzed: each target takes bytes and raises only if the reader under test broke its promise.

The promise is: a reader gives back what its type says, or raises an error of ours; nothing else, whatever it is fed. A
checksum would stop almost every mutation at the door, so targets put right ones around what the fuzzer makes, and JSON
is bent by replacing values of a good document rather than its bytes.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import struct
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from secure_infer import bundle
from secure_infer.backends.clear import unpack_integers
from secure_infer.errors import SecureInferError
from secure_infer.serve.party_files import PartyHalf
from secure_infer.wire import frame
from tests.fuzz import seeds

_NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 255, 1 << 31, 1 << 62, 1 << 63, 1 << 64, -(1 << 63), 10**300),
    *(0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"), "", "x", "a", "../../x", "\0", "ÿ" * 99),
    *([], {}, [[]], [0], [1] * 9, [-1, 2], [1 << 31, 1 << 31], {"x": []}, "Linear", "Conv2d", "Reshape", "input"),
)


def framed(data: bytes) -> bytes:
    """`data` behind a magic and a digest that are right."""
    return frame.MAGIC + hashlib.sha256(data).digest() + data


def bent(text: bytes, data: bytes) -> Any:
    """A JSON document in which every three bytes, up to ten times, replace one value by another."""
    changed = {"": json.loads(text)}
    places = list(_places(changed))
    for at in range(0, min(len(data), 30) - 2, 3):
        holder, key = places[int.from_bytes(data[at : at + 2], "little") % len(places)]
        choice = data[at + 2]
        if choice < 2 * len(_NASTY):
            holder[key] = copy.copy(_NASTY[choice % len(_NASTY)])
        else:
            other, name = places[choice * 31 % len(places)]
            # Containers would make the document grow without end.
            holder[key] = holder[key] if isinstance(other[name], (dict, list)) else other[name]
    return changed[""]


def _places(holder: Any) -> list[tuple[Any, Any]]:
    keys = list(holder) if isinstance(holder, dict) else range(len(holder))
    found = []
    for key in keys:
        found.append((holder, key))
        if isinstance(holder[key], (dict, list)):
            found += _places(holder[key])
    return found


class FrameTarget:
    """The frame: raw bytes, a frame with a right digest, and a frame whose header length is right as well."""

    def __call__(self, data: bytes) -> None:
        """Unpack one frame, and what it gives once more."""
        tried = self._made(data[:1], data[1:])
        try:
            found = frame.unpack(tried, "thing")
        except SecureInferError:
            return
        if found.kind != "thing" or not isinstance(found.meta, dict) or sum(map(len, found.parts)) > len(tried):
            raise AssertionError("a frame that breaks its type")
        again = frame.unpack(frame.pack(found.kind, found.parts, found.meta), "thing")
        if again.parts != found.parts or json.dumps(again.meta) != json.dumps(found.meta):
            raise AssertionError("a frame that does not survive another trip")

    @staticmethod
    def _made(mode: bytes, rest: bytes) -> bytes:
        if not mode or mode[0] % 3 == 0:
            return rest
        if mode[0] % 3 == 1:
            return framed(rest)
        header, _, body = rest.partition(b"\0")
        return framed(struct.pack("<I", len(header)) + header + body)


class MessageTarget:
    """What is inside of frames: client halves, party halves and arrays, behind bent headers and right digests."""

    def __init__(self) -> None:
        client = frame.unpack(seeds.client_half(), "client-half")
        whole = [
            (client, bundle.unpack_client_half),
            (frame.unpack(seeds.party_half(), "party-half"), PartyHalf.unpack),
            (frame.unpack(seeds.array(), "integers"), unpack_integers),
        ]
        self._readers: list[tuple[frame.Frame, Callable[[bytes], object]]] = [*whole]

    def __call__(self, data: bytes) -> None:
        """Read one message."""
        if not data:
            return
        good, reader = self._readers[data[0] % len(self._readers)]
        parts = list(good.parts)
        if data[0] & 64 and parts:
            parts[-1] = data[1:4] + parts[-1][: data[0]]
        if data[0] & 128:
            parts = [*parts, b"more"] if data[0] & 32 else parts[:-1]
        meta = bent(json.dumps(good.meta).encode(), data[1:])
        try:
            reader(frame.pack(good.kind, parts, meta if isinstance(meta, dict) else {"": meta}))
        except SecureInferError:
            return


def zipped(parts: Mapping[str, bytes], manifest: Any) -> bytes:
    """A bundle file of parts and a manifest that names their digests."""
    if isinstance(manifest, dict):
        manifest = manifest | {"parts": {name: hashlib.sha256(part).hexdigest() for name, part in parts.items()}}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("manifest.json", json.dumps(manifest))
        for name, part in parts.items():
            archive.writestr(name, part)
    return buffer.getvalue()


class BundleTarget:
    """The bundle: raw bytes; archives with right digests around a bent manifest, network, or header of the weights."""

    def __init__(self) -> None:
        folder = "/dev/shm" if os.path.isdir("/dev/shm") else None
        self._file = tempfile.NamedTemporaryFile(prefix="fuzz-", dir=folder)  # noqa: SIM115 - removed with the target
        self._path = Path(self._file.name)
        self._parts = seeds.parts()
        self._manifest = self._parts.pop("manifest.json")

    def __call__(self, data: bytes) -> None:
        """Load one bundle."""
        self._path.write_bytes(self._made(data[:1], data[1:]))
        try:
            graph, interface, _ = bundle.load(self._path)
        except SecureInferError:
            return
        if graph.input != interface.input:
            raise AssertionError("a bundle whose halves disagree")

    def _made(self, mode: bytes, rest: bytes) -> bytes:
        match mode[0] % 4 if mode else 0:
            case 1:
                return zipped(self._parts, bent(self._manifest, rest))
            case 2:
                network = json.dumps(bent(self._parts["graph.json"], rest)).encode()
                return zipped({**self._parts, "graph.json": network}, json.loads(self._manifest))
            case 3:
                return zipped({**self._parts, "weights.safetensors": self._weights(rest)}, json.loads(self._manifest))
        return rest

    def _weights(self, rest: bytes) -> bytes:
        good = self._parts["weights.safetensors"]
        (length,) = struct.unpack_from("<Q", good)
        header = json.dumps(bent(good[8 : 8 + length], rest)).encode()
        return struct.pack("<Q", len(header)) + header + good[8 + length :]


TARGETS: Mapping[str, Callable[[], Callable[[bytes], None]]] = {
    "frame": FrameTarget,
    "messages": MessageTarget,
    "bundle": BundleTarget,
}
