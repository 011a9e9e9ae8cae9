"""Evaluation keys on disk: uploaded in parts, whole or absent, within quotas."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Quotas:
    """How much is kept: bytes for a client and in all, and seconds for which an unfinished upload waits."""

    client_bytes: int = 4 << 30
    total_bytes: int = 32 << 30
    partial_s: float = 3600.0


class Upload:
    """One part of an upload under way; made by `KeyStore.begin`. To be closed, best by `with`.

    What was written before a lost connection or a kill stays, and the upload goes on from there.
    """

    offset: int
    total: int

    def write(self, chunk: bytes) -> int:
        """Add bytes; returns the new offset. The bytes that complete the key also check it and give it its place.

        Raises:
            InvalidInput: More bytes than announced; or the whole has another SHA-256, and is discarded (422).
            LimitExceeded: No room within the quotas, or on the disk (507).
            ProtocolError: Another connection has taken this upload over.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Make sure of what was written; once more does nothing."""
        raise NotImplementedError


class KeyStore:
    """Evaluation keys by client and SHA-256."""

    def __init__(self, folder: Path, quotas: Quotas = Quotas(), on_evict: Callable[[str], None] | None = None) -> None:
        self.on_evict = on_evict

    def offset(self, client: str, sha256: str) -> tuple[int, int] | None:
        """Bytes held and bytes in all; equal for a whole key; None for one of which nothing is held."""
        raise NotImplementedError

    def begin(self, client: str, sha256: str, start: int, total: int) -> Upload | None:
        """Begin or go on with an upload; None if the key is whole already. A start of 0 begins anew.

        Raises:
            KeyMismatch: The start is not where the upload stopped (409; see `offset`).
            InvalidInput: No SHA-256, or a start or total that can't be.
            LimitExceeded: Larger than the quota (no `retry_after`); or another connection is uploading this very key
                (`retry_after`).
        """
        raise NotImplementedError

    def append(self, client: str, sha256: str, start: int, total: int, chunks: Iterable[bytes]) -> int:
        """`begin`, `write` each chunk, `close`; returns the offset: `total` once the key is whole."""
        raise NotImplementedError

    @contextmanager
    def hold(self, client: str, sha256: str) -> Iterator[Path]:
        """The file of a whole key, which is not evicted within the block.

        Raises:
            KeyMismatch: It is not held (409).
        """
        raise NotImplementedError
        yield Path()

    def delete(self, client: str, sha256: str) -> bool:
        """Drop a key, whole or not, even one that is held; False if there was none."""
        raise NotImplementedError

    def status(self) -> Mapping[str, float]:
        """Gauges: key_bytes, whole_keys, partial_keys, held_keys, evicted_keys."""
        raise NotImplementedError
