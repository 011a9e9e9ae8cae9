"""One connection's part of an upload of evaluation keys: appended, hashed, and checked when it is whole."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from typing import Self

from secure_infer.errors import InvalidInput, Problem, ProtocolError
from secure_infer.serve.keyfiles import Entry, KeyFiles, unwritable

_BLOCK = 1 << 20


class Upload:
    """Appends to one key; made by `KeyStore.begin`, to be closed, best by `with`.

    What was written before a lost connection or a kill stays, and the upload goes on from there.

    Attributes:
        offset: Bytes held.
        total: Bytes in all.
        moved: When bytes last came, by the monotonic clock.
    """

    def __init__(self, held: KeyFiles, entry: Entry) -> None:
        self._held, self._entry = held, entry
        self.offset, self.total, self.moved = entry.size, entry.total, time.monotonic()
        self._lock = threading.Lock()
        try:
            self._file = os.open(entry.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        except OSError as error:
            raise unwritable(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def prepare(self) -> None:
        """Hash what is held, if an earlier process wrote it."""
        with self._lock:
            if self._entry.digest is None and self._file >= 0:
                try:
                    self._entry.digest = self._hash()
                except OSError as error:
                    self._discard()
                    raise unwritable(error) from error
                self.moved = time.monotonic()

    def write(self, chunk: bytes) -> int:
        """Add bytes; returns the new offset. The bytes that complete the key also check it and give it its place.

        Raises:
            InvalidInput: More bytes than announced; or the whole has another SHA-256, and is discarded (422).
            LimitExceeded: No room within the quotas, or on the disk (507).
            ProtocolError: Closed, or taken over by another connection.
        """
        with self._lock:
            if self._file < 0:
                problem = Problem("upload", "It was closed, deleted, or taken over.", "ask where it stands, and go on.")
                raise ProtocolError("This upload has ended.", [problem])
            if self.offset + len(chunk) > self.total:
                raise _refused(f"More came than the {self.total} bytes that were announced.", "announce its size.")
            self._held.make_room(self._entry.name[0], len(chunk))
            try:
                self._put(chunk)
                if self.offset == self.total:
                    self._finish()
            except OSError as error:
                # What is held of it would only keep the disk full.
                self._discard()
                raise unwritable(error) from error
            return self.offset

    def close(self) -> None:
        """Make sure of what was written; once more does nothing."""
        with self._lock:
            if self._file >= 0:
                try:
                    os.fsync(self._file)
                except OSError as error:
                    self._discard()
                    raise unwritable(error) from error
                self._end()

    def _hash(self) -> hashlib._Hash:
        digest, at = hashlib.sha256(), 0
        while block := os.pread(self._file, _BLOCK, at):
            digest.update(block)
            at += len(block)
        return digest

    def _put(self, chunk: bytes) -> None:
        view = memoryview(chunk)
        while view:
            written = os.write(self._file, view)
            self._entry.digest.update(view[:written])
            self._held.grew(self._entry, written)
            self.offset, self.moved = self.offset + written, time.monotonic()
            view = view[written:]

    def _finish(self) -> None:
        if self._entry.digest.hexdigest() != self._entry.name[1]:
            self._discard()
            raise _refused("What came has another SHA-256; it is discarded.", "upload it anew.")
        os.fsync(self._file)
        self._held.complete(self._entry)
        self._end()

    def _discard(self) -> None:
        self._held.drop(self._entry)
        self._end()

    def _end(self) -> None:
        descriptor, self._file = self._file, -1
        if descriptor >= 0:
            os.close(descriptor)
            with self._held.lock:
                self._entry.upload = None


def _refused(what: str, fix: str) -> InvalidInput:
    return InvalidInput("These evaluation keys can't be taken.", [Problem("upload", what, fix)])
