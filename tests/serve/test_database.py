"""One writer at a time, schema versions, and what a damaged, newer or misplaced database is called."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from secure_infer.errors import BundleError, LimitExceeded, ProtocolError, UsageError
from secure_infer.serve.database import Database
from secure_infer.serve.schema import STEPS, Step
from tests.serve.stores import store, url

__all__ = ["store", "url"]

_V2 = Step(("CREATE TABLE extra (n BIGINT)", "INSERT INTO extra VALUES (7)"))


def test_a_transaction_that_fails_leaves_nothing(store: Path, url: str | None) -> None:
    database = Database.open(store, url)
    with pytest.raises(KeyError), database.transaction() as transaction:
        transaction.run("INSERT INTO clients (name) VALUES (?)", "ann")
        raise KeyError
    with database.reading() as query:
        assert query.all("SELECT name FROM clients") == []
    database.close()


def test_threads_write_one_after_another(store: Path, url: str | None) -> None:
    database = Database.open(store, url)
    other = Database.open(store, url)
    with database.transaction() as transaction:
        transaction.run("INSERT INTO usage VALUES ('ann', 'day', 0, 0, 0, 0)")

    def count(through: Database) -> None:
        for _ in range(20):
            with through.transaction(durable=False) as transaction:
                row = transaction.one("SELECT requests FROM usage")
                transaction.run("UPDATE usage SET requests = ?", row[0] + 1 if row else -1)

    threads = [threading.Thread(target=count, args=(through,)) for through in (database, database, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.reading() as query:
        assert query.all("SELECT requests FROM usage") == [(60,)]
    database.close()
    other.close()


def test_an_old_schema_is_brought_up_and_keeps_its_rows(store: Path, url: str | None) -> None:
    old = Database.open(store, url)
    with old.transaction() as transaction:
        transaction.run("INSERT INTO clients (name) VALUES ('ann')")
    old.close()
    for _ in range(2):  # the second time there is nothing left to do
        new = Database.open(store, url, steps=(*STEPS, _V2))
        with new.reading() as query:
            assert query.all("SELECT name FROM clients") == [("ann",)]
            assert query.all("SELECT n FROM extra") == [(7,)]
        new.close()
    with pytest.raises(BundleError, match="newer version"):
        Database.open(store, url)


def test_a_step_that_fails_leaves_the_old_schema(store: Path, url: str | None) -> None:
    Database.open(store, url).close()
    broken = Step(("CREATE TABLE extra (n BIGINT)", "INSERT INTO nowhere VALUES (1)"))
    with pytest.raises(Exception, match="nowhere"):
        Database.open(store, url, steps=(*STEPS, broken))
    Database.open(store, url, steps=(*STEPS, _V2)).close()


def test_audit_records_can_not_be_changed_by_mistake(store: Path, url: str | None) -> None:
    database = Database.open(store, url)
    with database.transaction() as transaction:
        transaction.run("INSERT INTO audit VALUES (1, 0, 'a', 'b', '', '', '', 0, 0, 'ok', 0, '', '')")
    for statement in ("UPDATE audit SET client = 'x'", "DELETE FROM audit"):
        with pytest.raises(Exception, match="append only"), database.transaction() as transaction:
            transaction.run(statement)
    database.close()


def test_a_file_that_is_no_database(store: Path) -> None:
    store.mkdir(mode=0o700)
    (store / "state.db").write_bytes(b"not a database" * 100)
    with pytest.raises(BundleError, match="damaged"):
        Database.open(store)


def test_a_full_disk_is_said_to_be_full(store: Path) -> None:
    database = Database.open(store)
    with database.transaction() as transaction:
        row = transaction.one("PRAGMA page_count")
        transaction.one(f"PRAGMA max_page_count = {row[0] if row else 1}")
    with pytest.raises(LimitExceeded, match="full") as caught, database.transaction() as transaction:
        transaction.run("INSERT INTO replies VALUES ('a', 'b', 1, 0, ?)", bytes(100_000))
    assert caught.value.retry_after
    with database.reading() as query:
        assert query.all("SELECT id FROM replies") == []
    database.close()


def test_a_folder_that_others_can_read_is_refused(store: Path) -> None:
    store.mkdir()
    store.chmod(0o755)
    with pytest.raises(UsageError, match="chmod 700"):
        Database.open(store)


def test_a_folder_that_is_a_file(store: Path) -> None:
    store.write_bytes(b"")
    with pytest.raises(UsageError, match="Can't use this store"):
        Database.open(store)


def test_a_store_has_one_database(store: Path) -> None:
    store.mkdir(mode=0o700)
    (store / "database").write_text("postgresql\n")
    with pytest.raises(UsageError, match="elsewhere"):
        Database.open(store)
    (store / "database").unlink()
    Database.open(store).close()
    with pytest.raises(UsageError, match="of its own"):
        Database.open(store, "postgresql://localhost/x")
    with pytest.raises(UsageError, match="No such kind"):
        Database.open(store, "mysql://localhost/x")


def test_postgres_that_does_not_answer(store: Path) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(ProtocolError, match="can't be reached"):
        Database.open(store, "postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(UsageError, match="malformed"):
        Database.open(store, "postgresql://127.0.0.1:1/none?frob=1")


def test_a_lost_connection_is_made_again(store: Path, url: str | None) -> None:
    if url is None:
        pytest.skip("SQLite has none to lose")
    import psycopg

    database = Database.open(store, url)
    database.claim(1)
    with database.reading():
        pass
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    with database.reading() as query:
        assert query.one("SELECT 1") == (1,)
    with database.transaction() as transaction:
        assert transaction.one("SELECT 1") == (1,)
    other = Database.open(store, url)
    assert other.dead([1]) == []  # the claim came back with the connection
    database.close()
    until = time.monotonic() + 30
    while other.dead([1]) == []:  # PostgreSQL ends a session a moment after its client
        assert time.monotonic() < until
    other.close()
