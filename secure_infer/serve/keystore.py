"""Evaluation keys on disk: uploaded in parts, whole or absent, within quotas."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from secure_infer.errors import InvalidInput, KeyMismatch, LimitExceeded, Problem
from secure_infer.serve.accounts import CLIENT_NAME
from secure_infer.serve.keyfiles import QUOTAS, Entry, KeyFiles, Quotas
from secure_infer.serve.upload import Upload

STALE_S = 10.0
"""After so long without a byte, an upload may be taken over: its connection may be dead without anybody knowing."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


class KeyStore:
    """Evaluation keys by client and SHA-256. Threads may share it; one process alone may use the folder.

    Args:
        folder: Made, with mode 0700, if it is absent.
        quotas: How much is kept.

    Raises:
        UsageError: The folder can't be used.
    """

    def __init__(self, folder: Path, quotas: Quotas = QUOTAS) -> None:
        self._held = KeyFiles(folder, quotas)
        self.sweep()

    @property
    def on_evict(self) -> Callable[[str], None] | None:
        """Called, in whichever thread is uploading, with the SHA-256 of each key that had to make room."""
        return self._held.on_evict

    @on_evict.setter
    def on_evict(self, call: Callable[[str], None] | None) -> None:
        self._held.on_evict = call

    def offset(self, client: str, sha256: str) -> tuple[int, int] | None:
        """Bytes held and bytes in all; equal for a whole key; None for one of which nothing is held."""
        with self._held.lock:
            entry = self._held.get((client, sha256))
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
        self._fits(total)
        self.sweep()
        self._end_stale(self._held.get((client, sha256)))
        with self._held.lock:
            entry = self._held.get((client, sha256))
            if entry is not None and entry.whole:
                return None
            if entry is not None and entry.upload is not None:
                problem = Problem("keys", "Another connection is uploading them.", "wait, then ask where it stands.")
                raise LimitExceeded("These evaluation keys are being uploaded.", [problem], retry_after=1.0)
            entry = self._at((client, sha256), entry, start, total)
            upload = entry.upload = Upload(self._held, entry)
        upload.prepare()
        return upload

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
        with self._held.lock:
            entry = self._held.get((client, sha256))
            if entry is None or not entry.whole:
                problem = Problem("evaluation keys", f"No keys {sha256[:12]} are held for you.", "upload them first.")
                raise KeyMismatch("The server does not hold these evaluation keys.", [problem])
            entry.holds, entry.used = entry.holds + 1, time.time()
        try:
            with suppress(OSError):  # deleted at this moment: whoever opens it will say so
                os.utime(entry.path)  # the next server, too, shall know which key was used last
            yield entry.path
        finally:
            with self._held.lock:
                entry.holds -= 1

    def delete(self, client: str, sha256: str) -> bool:
        """Drop a key, whole or not, even one that is held or uploaded; False if there was none."""
        entry = self._held.get((client, sha256))
        if entry is None:
            return False
        if isinstance(entry.upload, Upload):
            entry.upload.close()
        return self._held.drop(entry)

    def status(self) -> Mapping[str, float]:
        """Gauges: key_bytes, whole_keys, partial_keys, held_keys; and the count evicted_keys."""
        return self._held.status()

    def sweep(self) -> None:
        """Drop unfinished uploads to which nothing was added for too long."""
        self._held.expire()

    def _fits(self, total: int) -> None:
        most = min(self._held.quotas.client_bytes, self._held.quotas.total_bytes)
        if total > most:
            fix = "use a smaller model, or ask the server's owner for more room."
            problem = Problem("keys", f"They have {total} bytes; {most} are allowed.", fix)
            raise LimitExceeded("These evaluation keys are too large.", [problem])

    @staticmethod
    def _end_stale(entry: Entry | None) -> None:
        upload = entry.upload if entry else None
        if isinstance(upload, Upload) and time.monotonic() - upload.moved >= STALE_S:
            upload.close()

    def _at(self, name: tuple[str, str], entry: Entry | None, start: int, total: int) -> Entry:
        """The entry to go on with; a new one at a start of 0."""
        if start == 0:
            if entry is not None:
                self._held.drop(entry)
            return self._held.create(name, total)
        if entry is None or (start, total) != (entry.size, entry.total):
            size, whole = (entry.size, entry.total) if entry else (0, total)
            what = f"{size} of {whole} bytes are held; this part begins at {start} of {total}."
            raise KeyMismatch("The upload does not go on there.", [Problem("upload", what, "ask where it stands.")])
        return entry


def _check(client: str, sha256: str, start: int, total: int) -> None:
    problems = []
    if not CLIENT_NAME.fullmatch(client):
        fix = "use 1 to 64 letters, digits, dots, dashes or underscores."
        problems.append(Problem("client", "It is not a name.", fix))
    if not _SHA256.fullmatch(sha256):
        problems.append(Problem("key name", "It is not 64 lower-case hexadecimal digits.", "give their SHA-256."))
    if not 0 <= start <= total < 10**15 or not total:
        problems.append(Problem("range", f"No upload of {total} bytes goes on at {start}.", "ask where it stands."))
    if problems:
        raise InvalidInput("These evaluation keys can't be taken.", problems)
