"""Evaluation keys on disk: uploaded in parts, whole or absent, within quotas.

One folder a client. `SHA256.key` is a whole key that has that hash; `SHA256.TOTAL.part` is the beginning of one. Names
and sizes say all there is to know, so no table can disagree with the disk, and a kill at any moment leaves either file.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from secure_infer import files
from secure_infer.errors import InvalidInput, KeyMismatch, LimitExceeded, Problem, ProtocolError, UsageError
from secure_infer.serve.accounts import CLIENT_NAME
from secure_infer.serve.engines import disk_full

_SHA256 = re.compile(r"[0-9a-f]{64}")
_WHOLE, _PART = re.compile(r"([0-9a-f]{64})\.key"), re.compile(r"([0-9a-f]{64})\.([0-9]{1,15})\.part")
_STALE_S = 10.0
"""After so long without a byte, an upload may be taken over: its connection may be dead without anybody knowing."""
_BLOCK = 1 << 20

Name = tuple[str, str]


@dataclass(frozen=True)
class Quotas:
    """How much is kept: bytes for a client and in all, and seconds for which an unfinished upload waits."""

    client_bytes: int = 4 << 30
    total_bytes: int = 32 << 30
    partial_s: float = 3600.0


QUOTAS = Quotas()


@dataclass
class _Entry:
    """A key, whole or not."""

    path: Path
    total: int
    size: int
    used: float
    holds: int = 0
    upload: Upload | None = None
    digest: Any = field(default=None, repr=False)

    @property
    def whole(self) -> bool:
        return self.path.suffix == ".key"

    @property
    def idle(self) -> bool:
        return not self.holds and self.upload is None


class Upload:
    """One part of an upload under way; made by `KeyStore.begin`, to be closed, best by `with`.

    What was written before a lost connection or a kill stays, and the upload goes on from there.

    Attributes:
        offset: Bytes held.
        total: Bytes in all.
    """

    def __init__(self, store: KeyStore, name: Name, entry: _Entry) -> None:
        self._store, self._name, self._entry = store, name, entry
        self.offset, self.total, self.moved = entry.size, entry.total, time.monotonic()
        self.lock = threading.Lock()
        self._file = os.open(entry.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, chunk: bytes) -> int:
        """Add bytes; returns the new offset. The bytes that complete the key also check it and give it its place.

        Raises:
            InvalidInput: More bytes than announced; or the whole has another SHA-256, and is discarded (422).
            LimitExceeded: No room within the quotas, or on the disk (507).
            ProtocolError: Closed, or taken over by another connection.
        """
        with self.lock:
            if self._file < 0:
                problem = Problem("upload", "It was closed, deleted, or taken over.", "ask where it stands, and go on.")
                raise ProtocolError("This upload has ended.", [problem])
            if self.offset + len(chunk) > self.total:
                raise _invalid("upload", f"It has more than the {self.total} bytes announced.", "announce its size.")
            self._store.make_room(self._name[0], len(chunk))
            self._put(chunk)
            if self.offset == self.total:
                self._finish()
            return self.offset

    def close(self) -> None:
        """Make sure of what was written; once more does nothing."""
        with self.lock:
            self._end(sync=True)

    def _put(self, chunk: bytes) -> None:
        view = memoryview(chunk)
        try:
            while view:
                view = view[os.write(self._file, view) :]
        except OSError as error:
            # What is held of it would only keep the disk full.
            self._discard()
            raise disk_full() from error
        self._entry.digest.update(chunk)
        self.offset, self.moved = self.offset + len(chunk), time.monotonic()
        self._store.grew(self._entry, len(chunk))

    def _finish(self) -> None:
        if self._entry.digest.hexdigest() != self._name[1]:
            self._discard()
            raise _invalid("upload", "What was uploaded has another SHA-256; it is discarded.", "upload it anew.")
        try:
            os.fsync(self._file)
            self._store.complete(self._name, self._entry)
        except OSError as error:
            self._discard()
            raise disk_full() from error
        self._end()

    def _discard(self) -> None:
        self._end()
        self._store.drop(self._name, self._entry)

    def _end(self, sync: bool = False) -> None:
        descriptor, self._file = self._file, -1
        if descriptor < 0:
            return
        try:
            if sync:
                os.fsync(descriptor)
        except OSError as error:
            raise disk_full() from error
        finally:
            os.close(descriptor)
            self._store.ended(self._entry, self)


class KeyStore:
    """Evaluation keys by client and SHA-256. Threads may share it; one process alone may use the folder.

    Args:
        folder: Made, with mode 0700, if it is absent.
        quotas: How much is kept.
        on_evict: Called with the SHA-256 of each key that had to make room.
    """

    def __init__(self, folder: Path, quotas: Quotas = QUOTAS, on_evict: Callable[[str], None] | None = None) -> None:
        self._folder, self._quotas, self.on_evict = folder, quotas, on_evict
        self._lock, self._entries, self._evicted = threading.RLock(), dict[Name, _Entry](), 0
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._scan()
        except OSError as error:
            problem = Problem(str(folder), f"{error.strerror}.", "give a folder that you may use.")
            raise UsageError("Can't use this store.", [problem]) from error
        self.sweep()

    def offset(self, client: str, sha256: str) -> tuple[int, int] | None:
        """Bytes held and bytes in all; equal for a whole key; None for one of which nothing is held."""
        with self._lock:
            entry = self._entries.get((client, sha256))
            return (entry.size, entry.total) if entry else None

    def begin(self, client: str, sha256: str, start: int, total: int) -> Upload | None:
        """Begin or go on with an upload; None if the key is whole already. A start of 0 begins anew.

        Raises:
            KeyMismatch: The start is not where the upload stopped (409; see `offset`).
            InvalidInput: No SHA-256, or a start or total that can't be.
            LimitExceeded: Larger than the quota (no `retry_after`); or another connection is uploading this very key
                (`retry_after`).
        """
        _check(client, sha256, start, total)
        if total > self._quotas.client_bytes:
            fix = "use a smaller model, or ask the server's owner for more room."
            problem = Problem("keys", f"They have {total} bytes; {self._quotas.client_bytes} are allowed.", fix)
            raise LimitExceeded("These evaluation keys are too large.", [problem])
        self.sweep()
        with self._lock:
            entry = self._entries.get((client, sha256))
            if entry is not None and entry.whole:
                return None
            if entry is not None:
                self._take_over(entry)
            try:
                return self._open((client, sha256), entry, start, total)
            except OSError as error:
                raise disk_full() from error

    def append(self, client: str, sha256: str, start: int, total: int, chunks: Iterable[bytes]) -> int:
        """`begin`, `write` each chunk, `close`; returns the offset: `total` once the key is whole."""
        upload = self.begin(client, sha256, start, total)
        if upload is None:
            return total
        with upload:
            for chunk in chunks:
                upload.write(chunk)
        return upload.offset

    @contextmanager
    def hold(self, client: str, sha256: str) -> Iterator[Path]:
        """The file of a whole key, which is not evicted within the block.

        Raises:
            KeyMismatch: It is not held (409).
        """
        with self._lock:
            entry = self._entries.get((client, sha256))
            if entry is None or not entry.whole:
                problem = Problem("evaluation keys", f"No keys {sha256[:12]} are held for you.", "upload them first.")
                raise KeyMismatch("The server does not hold these evaluation keys.", [problem])
            entry.holds, entry.used = entry.holds + 1, time.time()
        with suppress(OSError):  # deleted at this moment: whoever opens it will say so
            os.utime(entry.path)  # the next server, too, shall know which key was used last
        try:
            yield entry.path
        finally:
            with self._lock:
                entry.holds -= 1

    def delete(self, client: str, sha256: str) -> bool:
        """Drop a key, whole or not, even one that is held or uploaded; False if there was none."""
        with self._lock:
            entry = self._entries.get((client, sha256))
            upload = entry.upload if entry else None
        if upload is not None:
            upload.close()
        return entry is not None and self.drop((client, sha256), entry)

    def status(self) -> Mapping[str, float]:
        """Gauges: key_bytes, whole_keys, partial_keys, held_keys; and the count evicted_keys."""
        with self._lock:
            entries = self._entries.values()
            whole = sum(entry.whole for entry in entries)
            return {
                "key_bytes": sum(entry.size for entry in entries),
                "whole_keys": whole,
                "partial_keys": len(entries) - whole,
                "held_keys": sum(entry.holds > 0 for entry in entries),
                "evicted_keys": self._evicted,
            }

    def sweep(self) -> None:
        """Drop unfinished uploads to which nothing was added for too long."""
        with self._lock:
            limit = time.time() - self._quotas.partial_s
            for name, entry in list(self._entries.items()):
                if not entry.whole and entry.idle and entry.used < limit:
                    self.drop(name, entry)

    # What follows is for `Upload`.

    def make_room(self, client: str, size: int) -> None:
        """Evict the keys that were not used for longest until so many bytes fit, into the client's quota and in all.

        Raises:
            LimitExceeded: What is left is in use.
        """
        with self._lock:
            self._evict(size, self._quotas.client_bytes, lambda name: name[0] == client)
            self._evict(size, self._quotas.total_bytes, lambda name: True)

    def grew(self, entry: _Entry, size: int) -> None:
        """Count bytes that were written."""
        with self._lock:
            entry.size, entry.used = entry.size + size, time.time()

    def complete(self, name: Name, entry: _Entry) -> None:
        """Give a file that was checked and is on the disk the name of a whole key."""
        target = entry.path.with_name(f"{name[1]}.key")
        with self._lock:
            os.replace(entry.path, target)
            entry.path = target
        _sync(target.parent)

    def ended(self, entry: _Entry, upload: Upload) -> None:
        """Note that an upload no longer writes."""
        with self._lock:
            if entry.upload is upload:
                entry.upload = None

    def drop(self, name: Name, entry: _Entry) -> bool:
        """Delete a key's file; False if that was done before."""
        with self._lock:
            if self._entries.get(name) is not entry:
                return False
            del self._entries[name]
            entry.path.unlink(missing_ok=True)
            return True

    def _evict(self, size: int, most: int, counts: Callable[[Name], bool]) -> None:
        excess = sum(entry.size for name, entry in self._entries.items() if counts(name)) + size - most
        if excess <= 0:
            return
        idle = [item for item in self._entries.items() if counts(item[0]) and item[1].idle]
        for name, entry in sorted(idle, key=lambda item: item[1].used):
            self.drop(name, entry)
            self._evicted += 1
            if self.on_evict is not None:
                self.on_evict(name[1])
            excess -= entry.size
            if excess <= 0:
                return
        problem = Problem("keys", "All keys that are held are in use.", "try again when they are not.")
        raise LimitExceeded("There is no room for these evaluation keys.", [problem], retry_after=30.0)

    def _take_over(self, entry: _Entry) -> None:
        if entry.upload is None:
            return
        if time.monotonic() - entry.upload.moved < _STALE_S:
            problem = Problem(
                "keys", "Another connection is uploading them.", "wait, then ask where the upload stands."
            )
            raise LimitExceeded("These evaluation keys are being uploaded.", [problem], retry_after=1.0)
        entry.upload.close()

    def _open(self, name: Name, entry: _Entry | None, start: int, total: int) -> Upload:
        if entry is not None and start == 0:
            self.drop(name, entry)
            entry = None
        held = entry.size if entry else 0
        if start != held or (entry is not None and entry.total != total):
            what = f"{held} bytes of {entry.total if entry else total} are held, not {start} of {total}."
            raise KeyMismatch("The upload does not go on there.", [Problem("upload", what, "ask where it stands.")])
        if entry is None:
            entry = self._fresh(name, total)
        if entry.digest is None:
            entry.digest = _hash(entry.path)
        entry.upload = Upload(self, name, entry)
        return entry.upload

    def _fresh(self, name: Name, total: int) -> _Entry:
        folder = self._folder / name[0]
        folder.mkdir(exist_ok=True, mode=0o700)
        path = folder / f"{name[1]}.{total}.part"
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, files.PRIVATE))
        entry = self._entries[name] = _Entry(path, total, 0, time.time())
        return entry

    def _scan(self) -> None:
        """Learn from the folder what is held."""
        for path in sorted(self._folder.glob("*/*")):
            status = path.stat()
            if match := _WHOLE.fullmatch(path.name):
                entry = _Entry(path, status.st_size, status.st_size, status.st_mtime)
            elif match := _PART.fullmatch(path.name):
                entry = _Entry(path, int(match[2]), status.st_size, status.st_mtime)
            else:
                continue
            self._entries[path.parent.name, match[1]] = entry


def _check(client: str, sha256: str, start: int, total: int) -> None:
    if not CLIENT_NAME.fullmatch(client):
        raise _invalid("client", "Not a name.", "use 1 to 64 letters, digits, dots, dashes or underscores.")
    if not _SHA256.fullmatch(sha256):
        raise _invalid("key name", "It is no SHA-256 in 64 lower-case hexadecimal digits.", "name keys by their hash.")
    if not 0 <= start < total:
        raise _invalid("range", f"An upload of {total} bytes can't go on at {start}.", "ask where it stands.")


def _hash(path: Path) -> Any:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest


def _sync(folder: Path) -> None:
    """Make sure of a folder's names."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _invalid(where: str, what: str, fix: str) -> InvalidInput:
    return InvalidInput("These evaluation keys can't be taken.", [Problem(where, what, fix)])
