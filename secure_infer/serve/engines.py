"""SQLite and PostgreSQL, reduced to what differs between them."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any, Protocol

from secure_infer import files
from secure_infer.errors import (
    BundleError,
    LimitExceeded,
    Problem,
    ProtocolError,
    SecureInferError,
    UsageError,
    missing_extra,
)

_WRITERS, _SERVERS = 0x73690001, 0x7369
"""Numbers of PostgreSQL's advisory locks: the one of all writers, and the space of those of the servers."""


class DiskFull(LimitExceeded):
    """The disk is full, or a file may grow no more; to a client it is a limit like others, but for its status (507)."""

    def __init__(self) -> None:
        problem = Problem("store", "Nothing was kept.", "try again later; the server's owner has to make room.")
        super().__init__("The server's disk is full.", [problem], retry_after=60.0)


class Engine(Protocol):
    """A database engine behind the DB-API."""

    name: str
    failures: type[Exception]
    look: str
    """Begins a transaction that sees one state of the tables."""

    def begin(self, durable: bool) -> tuple[str, ...]:
        """Statements that begin a transaction which no other writer's can overlap."""
        ...

    def connect(self) -> Any:
        """A connection in autocommit mode."""
        ...

    def dialect(self, sql: str) -> str:
        """A statement with `?` for parameters and `BLOB` for bytes, as this engine wants it."""
        ...

    def explain(self, error: Any) -> SecureInferError | None:
        """What a failure means to a user; None for a defect of ours."""
        ...

    def lost(self, connection: Any) -> bool:
        """Whether a connection is good for nothing any more."""
        ...

    def integrity(self, connection: Any) -> list[str]:
        """What the engine finds wrong with its own files."""
        ...

    def claim(self, connection: Any, instance: int) -> bool:
        """Mark a server as alive for as long as the connection lasts; False if it is alive elsewhere."""
        ...

    def release(self, connection: Any, instance: int) -> None:
        """Take a `claim` back."""
        ...


class Sqlite:
    """A file in the store's folder. Who is alive follows from the lock of the folder: nobody else."""

    name = "sqlite"
    failures: type[Exception] = sqlite3.Error
    look = "BEGIN"

    def __init__(self, path: Path) -> None:
        self._path = path

    def connect(self) -> sqlite3.Connection:
        """A connection with a write-ahead log, which readers do not wait for."""
        try:
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, files.PRIVATE))
        except OSError as error:
            where = Problem(str(self._path), f"{error.strerror}.", "give a folder that you may use.")
            raise UsageError("Can't use this store.", [where]) from error
        connection = sqlite3.connect(self._path, timeout=20.0, isolation_level=None, check_same_thread=False)
        for pragma in ("journal_mode = WAL", "wal_autocheckpoint = 4000", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}")
        return connection

    def begin(self, durable: bool) -> tuple[str, ...]:
        """At the next checkpoint, if not at once, all of it is on the disk."""
        return f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}", "BEGIN IMMEDIATE"

    def dialect(self, sql: str) -> str:
        """Unchanged."""
        return sql

    def explain(self, error: Any) -> SecureInferError | None:
        """By SQLite's primary result code."""
        match (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF:
            case sqlite3.SQLITE_FULL:
                return DiskFull()
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                return ProtocolError(
                    "The store is busy.", [Problem("store", "Another process is writing to it.", "try again.")]
                )
            case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
                problem = Problem(str(self._path), f"SQLite: {error}.", "put back a copy that was backed up.")
                return BundleError("The store's database is damaged.", [problem])
            case sqlite3.SQLITE_IOERR | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN:
                problem = Problem(str(self._path), f"SQLite: {error}.", "see to the disk and the permissions.")
                return ProtocolError("The store's database can't be read or written.", [problem])
        return None

    def lost(self, connection: Any) -> bool:
        """Never."""
        return False

    def integrity(self, connection: Any) -> list[str]:
        """By SQLite's own check of pages, indices and references."""
        found = [str(row[0]) for row in connection.execute("PRAGMA integrity_check")]
        references = [f"{row[0]} refers to an absent row" for row in connection.execute("PRAGMA foreign_key_check")]
        return [what for what in found if what != "ok"] + references

    def claim(self, connection: Any, instance: int) -> bool:
        """The lock of the folder says the same."""
        return True

    def release(self, connection: Any, instance: int) -> None:
        """Nothing to take back."""


class Postgres:
    """A server's database. Writers take one advisory lock, so that transactions are as serial as SQLite's."""

    name = "postgres"
    look = "BEGIN ISOLATION LEVEL REPEATABLE READ"

    def __init__(self, url: str) -> None:
        try:
            import psycopg
        except ImportError as error:
            raise missing_extra("postgresql://", "postgres", "psycopg") from error
        self._psycopg, self._url = psycopg, url
        self.failures: type[Exception] = psycopg.Error

    def connect(self) -> Any:
        """A session of its own."""
        return self._psycopg.connect(self._url, autocommit=True, connect_timeout=10, options="-c lock_timeout=20000")

    def begin(self, durable: bool) -> tuple[str, ...]:
        """The lock comes before the first look at a table, so that this transaction sees what the last one wrote."""
        commit = f"SET LOCAL synchronous_commit = {'on' if durable else 'off'}"
        return "BEGIN", commit, f"SELECT pg_advisory_xact_lock({_WRITERS})"

    def dialect(self, sql: str) -> str:
        """With psycopg's placeholders and PostgreSQL's name for bytes."""
        return sql.replace("?", "%s").replace("BLOB", "BYTEA")

    def explain(self, error: Any) -> SecureInferError | None:
        """By PostgreSQL's class of conditions."""
        if isinstance(error, self._psycopg.errors.DiskFull):
            return DiskFull()
        if isinstance(error, self._psycopg.OperationalError):
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            problem = Problem("database", f"PostgreSQL: {reason}", "see whether it runs, and where; then try again.")
            return ProtocolError("The store's database can't be reached.", [problem])
        if isinstance(error, self._psycopg.errors.InsufficientPrivilege):
            problem = Problem("database", f"PostgreSQL: {error}", "give its role the rights of an owner.")
            return UsageError("The store's database can't be used.", [problem])
        if isinstance(error, self._psycopg.ProgrammingError) and error.sqlstate is None:  # it never got to a server
            problem = Problem("database", "Its URL is malformed.", "give postgresql://USER@HOST/NAME.")
            return UsageError("The store's database can't be found.", [problem])
        return None

    def lost(self, connection: Any) -> bool:
        """Whether the session has ended."""
        return bool(connection.closed or connection.broken)

    def integrity(self, connection: Any) -> list[str]:
        """Left to PostgreSQL's own tools."""
        return []

    def claim(self, connection: Any, instance: int) -> bool:
        """An advisory lock of the session."""
        row = connection.execute("SELECT pg_try_advisory_lock(%s, %s)", (_SERVERS, instance)).fetchone()
        return bool(row[0])

    def release(self, connection: Any, instance: int) -> None:
        """The advisory lock is given back."""
        connection.execute("SELECT pg_advisory_unlock(%s, %s)", (_SERVERS, instance))
