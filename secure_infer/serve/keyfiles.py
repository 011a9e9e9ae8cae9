"""The files of evaluation keys, their sizes, and which of them must go when there is no room.

One folder a client. `SHA256.key` is a whole key that has that hash; `SHA256.TOTAL.part` is the beginning of one. Names
and sizes say all there is to know, so no table can disagree with the disk, and a kill at any moment leaves either file.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secure_infer import files
from secure_infer.errors import LimitExceeded, Problem, ProtocolError, SecureInferError, UsageError
from secure_infer.serve.engines import DiskFull

_WHOLE, _PART = re.compile(r"([0-9a-f]{64})\.key"), re.compile(r"([0-9a-f]{64})\.([0-9]{1,15})\.part")

Name = tuple[str, str]
"""Client and SHA-256."""


@dataclass(frozen=True)
class Quotas:
    """How much is kept: bytes for a client and in all, and seconds for which an unfinished upload waits."""

    client_bytes: int = 4 << 30
    total_bytes: int = 32 << 30
    partial_s: float = 3600.0


QUOTAS = Quotas()


@dataclass(eq=False)
class Entry:
    """A key, whole or not.

    Attributes:
        name: Whose, and which.
        path: Its file.
        total: Bytes that the whole key has.
        size: Bytes that are held.
        used: When it was last written or asked for, in seconds since 1970.
        holds: Requests that are using it.
        upload: The upload that writes it, if any.
        digest: SHA-256 of the bytes held, as far as it is known.
    """

    name: Name
    path: Path
    total: int
    size: int
    used: float
    holds: int = 0
    upload: object | None = None
    digest: Any = field(default=None, repr=False)

    @property
    def whole(self) -> bool:
        """Whether it is a key, and not the beginning of one."""
        return self.path.suffix == ".key"

    @property
    def idle(self) -> bool:
        """Whether nobody reads or writes it."""
        return not self.holds and self.upload is None


class KeyFiles:
    """All keys that are held, by client and SHA-256. Threads may share it; one process alone may use the folder.

    Args:
        folder: Made, with mode 0700, if it is absent.
        quotas: How much is kept.

    Raises:
        UsageError: The folder can't be used.
    """

    def __init__(self, folder: Path, quotas: Quotas) -> None:
        self._folder, self.quotas = folder, quotas
        self.on_evict: Callable[[str], None] | None = None
        self.lock = threading.RLock()
        """Held by whoever looks at entries and acts on what it saw; never while waiting for an upload or a disk."""
        self._entries: dict[Name, Entry] = {}
        self._held: Counter[str] = Counter()
        self._evicted = 0
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._scan()
        except OSError as error:
            problem = Problem(str(folder), f"{error.strerror}.", "give a folder that you may use.")
            raise UsageError("Can't use this store.", [problem]) from error

    def get(self, name: Name) -> Entry | None:
        """A key, whole or not."""
        with self.lock:
            return self._entries.get(name)

    def create(self, name: Name, total: int) -> Entry:
        """An empty file for a key of so many bytes."""
        folder = self._folder / name[0]
        path = folder / f"{name[1]}.{total}.part"
        with self.lock:
            try:
                if not folder.exists():
                    folder.mkdir(mode=0o700)
                    _sync(self._folder)
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, files.PRIVATE))
            except OSError as error:
                raise unwritable(error) from error
            entry = self._entries[name] = Entry(name, path, total, 0, time.time())
            return entry

    def grew(self, entry: Entry, size: int) -> None:
        """Count bytes that were written."""
        with self.lock:
            if self._entries.get(entry.name) is entry:
                entry.size, entry.used = entry.size + size, time.time()
                self._held[entry.name[0]] += size

    def complete(self, entry: Entry) -> None:
        """Give a file that was checked and is on the disk the name of a whole key."""
        target = entry.path.with_name(f"{entry.name[1]}.key")
        with self.lock:
            os.replace(entry.path, target)
            entry.path = target
        _sync(target.parent)

    def drop(self, entry: Entry) -> bool:
        """Delete a key's file; False if that was done before."""
        with self.lock:
            if self._entries.get(entry.name) is not entry:
                return False
            del self._entries[entry.name]
            self._held[entry.name[0]] -= entry.size
            entry.path.unlink(missing_ok=True)
            return True

    def make_room(self, client: str, size: int) -> None:
        """Evict the keys that were not used for longest until so many bytes fit, into the client's quota and in all.

        Raises:
            LimitExceeded: Too much of what is held is in use; nothing was evicted for this quota.
        """
        with self.lock:
            self._evict(self._held[client] + size - self.quotas.client_bytes, lambda entry: entry.name[0] == client)
            self._evict(self._held.total() + size - self.quotas.total_bytes, lambda entry: True)

    def expire(self) -> None:
        """Drop unfinished uploads to which nothing was added for too long."""
        with self.lock:
            limit = time.time() - self.quotas.partial_s
            for entry in list(self._entries.values()):
                if not entry.whole and entry.idle and entry.used < limit:
                    self.drop(entry)

    def status(self) -> Mapping[str, float]:
        """Gauges: key_bytes, whole_keys, partial_keys, held_keys; and the count evicted_keys."""
        with self.lock:
            entries = self._entries.values()
            whole = sum(entry.whole for entry in entries)
            return {
                "key_bytes": self._held.total(),
                "whole_keys": whole,
                "partial_keys": len(entries) - whole,
                "held_keys": sum(entry.holds > 0 for entry in entries),
                "evicted_keys": self._evicted,
            }

    def _evict(self, excess: int, counts: Callable[[Entry], bool]) -> None:
        if excess <= 0:
            return
        idle = [entry for entry in self._entries.values() if entry.idle and counts(entry)]
        idle.sort(key=lambda entry: entry.used)
        if sum(entry.size for entry in idle) < excess:
            problem = Problem("keys", "All keys that are held are in use.", "try again when they are not.")
            raise LimitExceeded("There is no room for these evaluation keys.", [problem], retry_after=30.0)
        for entry in idle:
            if excess <= 0:
                return
            self.drop(entry)
            self._evicted += entry.whole
            if entry.whole and self.on_evict is not None:
                self.on_evict(entry.name[1])
            excess -= entry.size

    def _scan(self) -> None:
        """Learn from the folder what is held."""
        for path in sorted(self._folder.glob("*/*")):
            status = path.stat()
            if match := _WHOLE.fullmatch(path.name):
                total = status.st_size
            elif match := _PART.fullmatch(path.name):
                total = int(match[2])
            else:
                continue
            name = path.parent.name, match[1]
            entry = self._entries[name] = Entry(name, path, total, status.st_size, status.st_mtime)
            self._held[name[0]] += status.st_size
            if not entry.whole and entry.size >= total:
                self._judge(entry)

    def _judge(self, entry: Entry) -> None:
        """Bring an upload to its end that was killed after its last byte."""
        with entry.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        if digest == entry.name[1]:
            self.complete(entry)
        else:
            self.drop(entry)


def _sync(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unwritable(error: OSError) -> SecureInferError:
    """What it means to a client that the disk takes no more."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DiskFull()
    problem = Problem("store", f"{error.strerror or type(error).__name__}.", "try again later, or tell its owner.")
    return ProtocolError("The server can't write to its disk.", [problem])
