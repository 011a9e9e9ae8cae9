"""Who asked what and when, never the content: an append-only log in which each record holds the hash of the one before.

A record that was altered, removed from the middle, or slipped in breaks the chain. One cut off at the end does not:
that is found by the anchor, the newest number and hash. The file `audit.head` has it: it is written with a record if
that was last done a second ago or longer, at every sweep, and at the end. Whoever can write both the database and that
file can cut the log, or write it anew, unseen; against them, keep what `audit verify` prints somewhere else and give it
back to a later run (`--expect`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from secure_infer import files
from secure_infer.errors import BundleError, Problem, SecureInferError, UsageError
from secure_infer.serve.database import Database, Transaction

_ORIGIN = "0" * 64
_ANCHOR = "audit.head"
_ANCHOR_S = 1.0
_PAGE = 1000
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Event:
    """What a record says.

    Attributes:
        client: Who.
        action: What: `infer`, `upload`, `delete` ...
        model: Name of the model, where there is one.
        key_name: SHA-256 of the evaluation keys, where there are some.
        request_id: The client's name for the request.
        received: Bytes of the body that came.
        sent: Bytes of the body that went.
        outcome: `ok`, or what went wrong, in a word that tells nothing about the content.
        cpu_ms: Milliseconds of CPU.
    """

    client: str
    action: str
    model: str = ""
    key_name: str = ""
    request_id: str = ""
    received: int = 0
    sent: int = 0
    outcome: str = "ok"
    cpu_ms: int = 0


@dataclass(frozen=True)
class Record:
    """One link of the chain: its number from 1, its time in milliseconds since 1970, the event, two hashes."""

    seq: int
    time_ms: int
    event: Event
    previous: str
    hash: str

    def digest(self) -> str:
        """The hash that this record must have: SHA-256 of the JSON list of all that it says and the previous hash."""
        content = [self.seq, self.time_ms, *astuple(self.event), self.previous]
        return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True)
class Head:
    """The end of a chain that was found whole: the number of its newest record (0: none), and that record's hash."""

    seq: int = 0
    hash: str = _ORIGIN

    def __str__(self) -> str:
        return f"{self.seq}:{self.hash}"

    @classmethod
    def parse(cls, text: str) -> Head:
        """Read what `str` wrote.

        Raises:
            UsageError: It is something else.
        """
        number, _, digest = text.strip().partition(":")
        if not (number.isdecimal() and len(digest) == len(_ORIGIN) and set(digest) <= set("0123456789abcdef")):
            problem = Problem("head", f"{text[:80]!r} is no NUMBER:SHA256.", "give what `audit verify` printed.")
            raise UsageError("No head of an audit log.", [problem])
        return cls(int(number), digest)


_EVENT = tuple(field.name for field in fields(Event))
_COLUMNS = ", ".join(("seq", "time_ms", *_EVENT, "previous", "hash"))
_VALUES = ", ".join("?" * (len(_EVENT) + 4))


class Audit:
    """The log of one store. Threads may share it.

    Args:
        database: Where it is kept.
        folder: Where its anchor is.
        clock: Seconds since 1970.
    """

    def __init__(self, database: Database, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self._database, self._anchor_file, self._clock = database, folder / _ANCHOR, clock
        self._lock, self._newest, self._anchored, self._anchored_at = threading.Lock(), Head(), Head(), 0.0

    def record(self, event: Event) -> None:
        """Append a record. Requests are recorded by `Budgets`; the rest (uploads, deletions ...) by whoever does it."""
        with self._database.transaction() as transaction:
            self.append(transaction, event)

    def append(self, transaction: Transaction, event: Event) -> None:
        """Append a record as part of a transaction."""
        last = _last(transaction)
        bare = Record(last.seq + 1, int(self._clock() * 1000), event, last.hash, "")
        digest = bare.digest()
        values = (bare.seq, bare.time_ms, *astuple(event), last.hash, digest)
        transaction.run(f"INSERT INTO audit ({_COLUMNS}) VALUES ({_VALUES})", *values)
        if transaction.durable:  # else the anchor might outlive what it names
            transaction.after.append(lambda: self._advance(Head(bare.seq, digest)))

    def resume(self) -> None:
        """Take up the log where the last server left it.

        Raises:
            BundleError: It has lost the record that the anchor names; the anchor stays as it is.
        """
        anchored = self._anchor_read()
        with self._database.reading() as query:
            last = _last(query)
            row = query.one("SELECT hash FROM audit WHERE seq = ?", anchored.seq) if anchored and anchored.seq else None
        if anchored and anchored.seq and (row is None or row[0] != anchored.hash):
            fix = "see `secure-infer audit verify`; if a backup was put back, remove the anchor."
            problem = Problem(str(self._anchor_file), f"It names record {anchored.seq}, which is not there.", fix)
            raise BundleError("The audit log was cut.", [problem])
        self._advance(last)

    def anchor(self) -> None:
        """Write the anchor now."""
        with self._lock:
            self._anchor()

    def _advance(self, head: Head) -> None:
        with self._lock:
            self._newest = max(self._newest, head, key=lambda h: h.seq)
            if time.monotonic() - self._anchored_at >= _ANCHOR_S:
                self._anchor()

    def _anchor(self) -> None:
        if self._newest == self._anchored:
            return
        self._anchored_at = time.monotonic()
        try:
            files.write(self._anchor_file, f"{self._newest}\n".encode(), files.PRIVATE)
            self._anchored = self._newest
        except SecureInferError as error:
            # The records themselves are kept; a full disk shall not stop the server here.
            _log.warning("The audit log's anchor could not be written: %s", error.summary)

    def records(self, after: int = 0) -> Iterator[Record]:
        """All records of a higher number, in order, a page at a time: what is appended meanwhile comes last."""
        while True:
            with self._database.reading() as query:
                sql = f"SELECT {_COLUMNS} FROM audit WHERE seq > ? ORDER BY seq LIMIT {_PAGE}"
                page = [_record(row) for row in query.all(sql, after)]
            yield from page
            if not page:
                return
            after = page[-1].seq

    def verify(self, expected: Head | None = None) -> Head:
        """Follow the chain from its first record to its last.

        Args:
            expected: A head that an earlier run gave.

        Raises:
            BundleError: The log was altered; it names the first record that is wrong.
        """
        heads = {head.seq: head.hash for head in (self._anchor_read(), expected) if head is not None and head.seq}
        at = Head()
        for record in self.records():
            _check(record, at)
            at = Head(record.seq, record.hash)
            if heads.pop(at.seq, at.hash) != at.hash:
                raise _broken(at.seq, "Its hash is not the one that was noted elsewhere: the log was written anew.")
        if heads:
            raise _broken(at.seq + 1, f"It is missing: the log once had {max(heads)} records.")
        return at

    @property
    def anchored(self) -> bool:
        """Whether there is an anchor."""
        return self._anchor_file.exists()

    def _anchor_read(self) -> Head | None:
        if not self._anchor_file.exists():
            return None
        try:
            return Head.parse(files.read(self._anchor_file).decode("ascii", "replace"))
        except UsageError as error:
            problem = Problem(str(self._anchor_file), "It can't be read as a number and a hash.", "see who changed it.")
            raise BundleError("The audit log's anchor is damaged.", [problem]) from error


def _last(query: Transaction) -> Head:
    row = query.one("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1")
    return Head(*row) if row else Head()


def _record(row: tuple[object, ...]) -> Record:
    seq, time_ms, *event, previous, digest = row
    return Record(seq, time_ms, Event(*event), previous, digest)  # type: ignore[arg-type]


def _check(record: Record, at: Head) -> None:
    if record.seq != at.seq + 1:
        raise _broken(at.seq + 1, f"It is missing: record {record.seq} follows record {at.seq}.")
    if record.previous != at.hash:
        raise _broken(record.seq, "It does not name the hash of the record before it.")
    if record.digest() != record.hash:
        raise _broken(record.seq, "Its content does not have its hash.")


def _broken(seq: int, what: str) -> BundleError:
    fix = "compare with a backup, and see who could write to the store."
    return BundleError("The audit log is not as it was written.", [Problem(f"record {seq}", what, fix)])
