"""Whatever is done to the log is found, and the first record that is wrong is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from secure_infer.errors import BundleError, UsageError
from secure_infer.serve.audit import Audit, Event, Head
from secure_infer.serve.database import Database, Transaction
from secure_infer.serve.state import State
from tests.serve.stores import store, url

__all__ = ["store", "url"]

RECORDS = 8
_COLUMNS = "seq, time_ms, client, action, model, key_name, request_id, received, sent, outcome, cpu_ms, previous, hash"


def filled(store: Path, url: str | None) -> tuple[Database, Audit]:
    database = Database.open(store, url)
    audit = Audit(database, store)
    for number in range(RECORDS):
        audit.record(Event("ann", "infer", "digits", "ab" * 32, f"{number:032x}", 10, 20, "ok", 30))
    audit.anchor()
    return database, audit


def tamper(database: Database, url: str | None, change: Callable[[Transaction], object]) -> None:
    """Change the log as its owner could, who may drop the triggers that keep others off it."""
    with database.transaction() as transaction:
        if url is None:
            transaction.run("DROP TRIGGER audit_no_update")
            transaction.run("DROP TRIGGER audit_no_delete")
        else:
            transaction.run("ALTER TABLE audit DISABLE TRIGGER ALL")
        change(transaction)


def rewrite(transaction: Transaction, first: int, last: int) -> None:
    """Make the hashes from a record on right again, as a forger would."""
    row = transaction.one("SELECT hash FROM audit WHERE seq = ?", first - 1)
    previous = row[0] if row else "0" * 64
    from secure_infer.serve.audit import Record

    for seq in range(first, last + 1):
        found = transaction.one(f"SELECT {_COLUMNS} FROM audit WHERE seq = ?", seq)
        assert found is not None
        event = Event(*found[2:11])
        previous_hash, previous = previous, Record(seq, found[1], event, previous, "").digest()
        transaction.run("UPDATE audit SET previous = ?, hash = ? WHERE seq = ?", previous_hash, previous, seq)


def test_a_whole_log(store: Path, url: str | None) -> None:
    database, audit = filled(store, url)
    head = audit.verify()
    records = list(audit.records())
    assert [record.seq for record in records] == list(range(1, RECORDS + 1))
    assert head == Head(RECORDS, records[-1].hash)
    audit.record(Event("ann", "infer"))
    assert audit.verify(head).seq == RECORDS + 1  # a log that grew holds its old head
    assert [record.seq for record in audit.records(after=RECORDS)] == [RECORDS + 1]
    database.close()


@pytest.mark.parametrize(
    "column",
    ["time_ms", "client", "action", "model", "key_name", "request_id", "received", "sent", "outcome", "cpu_ms"],
)
def test_every_word_of_a_record_counts(store: Path, column: str) -> None:
    database, audit = filled(store, None)
    other = 7 if column in ("time_ms", "received", "sent", "cpu_ms") else "eve"
    tamper(database, None, lambda log: log.run(f"UPDATE audit SET {column} = ? WHERE seq = 5", other))
    with pytest.raises(BundleError, match="record 5: Its content"):
        audit.verify()
    database.close()


CHANGES: dict[str, tuple[Callable[[Transaction], object], str]] = {
    "altered": (lambda log: log.run("UPDATE audit SET client = 'eve' WHERE seq = 3"), "record 3: Its content"),
    "altered and hashed": (
        lambda log: (log.run("UPDATE audit SET client = 'eve' WHERE seq = 3"), rewrite(log, 3, 3)),
        "record 4: It does not name",
    ),
    "altered and all hashed": (
        lambda log: (log.run("UPDATE audit SET client = 'eve' WHERE seq = 3"), rewrite(log, 3, RECORDS)),
        f"record {RECORDS}: Its hash is not the one that was noted",
    ),
    "first removed": (lambda log: log.run("DELETE FROM audit WHERE seq = 1"), "record 1: It is missing"),
    "removed": (lambda log: log.run("DELETE FROM audit WHERE seq = 4"), "record 4: It is missing"),
    "cut": (lambda log: log.run("DELETE FROM audit WHERE seq > 5"), f"record 6: It is missing: .* {RECORDS} records"),
    "emptied": (lambda log: log.run("DELETE FROM audit"), "record 1: It is missing"),
    "swapped": (
        lambda log: [log.run("UPDATE audit SET seq = ? WHERE seq = ?", *pair) for pair in ((99, 2), (2, 3), (3, 99))],
        "record 2: It does not name",
    ),
    "removed and numbered again": (
        lambda log: (
            log.run("DELETE FROM audit WHERE seq = 4"),
            [log.run("UPDATE audit SET seq = ? WHERE seq = ?", seq - 1, seq) for seq in range(5, RECORDS + 1)],
            rewrite(log, 4, RECORDS - 1),
        ),
        f"record {RECORDS}: It is missing",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_done_is_found(store: Path, url: str | None, change: str) -> None:
    database, audit = filled(store, url)
    tamper(database, url, CHANGES[change][0])
    with pytest.raises(BundleError, match=CHANGES[change][1]):
        audit.verify()
    database.close()


def test_a_log_written_anew_with_its_anchor_is_found_by_a_head_noted_elsewhere(store: Path) -> None:
    database, audit = filled(store, None)
    head = audit.verify()
    tamper(database, None, lambda log: (log.run("UPDATE audit SET client = 'eve'"), rewrite(log, 1, RECORDS)))
    (store / "audit.head").unlink()
    assert not audit.anchored
    assert audit.verify().seq == RECORDS  # nothing here tells: that is what the docstring says can't be found
    with pytest.raises(BundleError, match=f"record {RECORDS}: Its hash"):
        audit.verify(head)
    database.close()


def test_a_server_does_not_write_over_the_anchor_of_a_log_that_was_cut(store: Path) -> None:
    database, _ = filled(store, None)
    tamper(database, None, lambda log: log.run("DELETE FROM audit WHERE seq > 5"))
    database.close()
    before = (store / "audit.head").read_text()
    for _ in range(2):
        with pytest.raises(BundleError, match="was cut"):
            State.open(store)
    assert (store / "audit.head").read_text() == before
    (store / "audit.head").unlink()  # its owner has decided
    State.open(store).close()


def test_a_server_anchors_what_the_last_one_could_not(store: Path) -> None:
    database, _ = filled(store, None)
    (store / "audit.head").unlink()
    database.close()
    with State.open(store) as state:
        assert state.audit.verify().seq == RECORDS
        assert (store / "audit.head").read_text().startswith(f"{RECORDS}:")
        state.audit.record(Event("ann", "upload"))
    assert (store / "audit.head").read_text().startswith(f"{RECORDS + 1}:")


def test_a_record_that_may_be_lost_with_the_machine_is_not_anchored(store: Path) -> None:
    database, audit = filled(store, None)
    audit._anchored_at = 0.0  # as if the last second had passed
    with database.transaction(durable=False) as transaction:
        audit.append(transaction, Event("ann", "infer"))
    audit.anchor()
    assert (store / "audit.head").read_text().startswith(f"{RECORDS}:")
    database.close()


def test_an_anchor_that_can_not_be_written_stops_nobody(store: Path) -> None:
    database, audit = filled(store, None)
    (store / "audit.head").unlink()
    (store / "audit.head").mkdir()
    audit._anchored_at = 0.0
    audit.record(Event("ann", "infer"))
    assert len(list(audit.records())) == RECORDS + 1
    database.close()


@pytest.mark.parametrize("text", ["", "7", "7:", "x:" + "0" * 64, "7:" + "0" * 63, "7:" + "G" * 64, "-1:" + "0" * 64])
def test_what_is_no_head(store: Path, text: str) -> None:
    with pytest.raises(UsageError):
        Head.parse(text)
    database, audit = filled(store, None)
    (store / "audit.head").write_text(text)
    with pytest.raises(BundleError, match="anchor is damaged"):
        audit.verify()
    database.close()
