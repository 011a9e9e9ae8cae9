"""The state's tables behind transactions: one writer at a time, whichever engine keeps them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from secure_infer import files
from secure_infer.errors import BundleError, Problem, UsageError
from secure_infer.serve.engines import Engine, Postgres, Sqlite
from secure_infer.serve.schema import STEPS, Step

Row = tuple[Any, ...]
_LOCAL, _ELSEWHERE = "state.db", "database"


class Transaction:
    """Statements that take effect together. Parameters are written `?`.

    Attributes:
        durable: Whether all of it is on the disk when it ends.
        after: Called once it has ended.
    """

    def __init__(self, connection: Any, dialect: Callable[[str], str], durable: bool = True) -> None:
        self._connection, self._dialect, self.durable = connection, dialect, durable
        self.after: list[Callable[[], None]] = []

    def run(self, sql: str, *values: Any) -> int:
        """Run a statement; returns the number of rows that it changed."""
        return int(self._connection.execute(self._dialect(sql), values).rowcount)

    def one(self, sql: str, *values: Any) -> Row | None:
        """The first row of a query."""
        row: Row | None = self._connection.execute(self._dialect(sql), values).fetchone()
        return row

    def all(self, sql: str, *values: Any) -> list[Row]:
        """All rows of a query."""
        return list(self._connection.execute(self._dialect(sql), values).fetchall())


class Database:
    """Two connections, one of which writes, so that looking a token up does not wait for a disk. Threads may share it.

    Made by `Database.open`; needs no lock of the store, so that commands can use it beside a server.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._locks = {True: threading.RLock(), False: threading.RLock()}
        self._connections: dict[bool, Any] = {}
        self._claimed: int | None = None

    @classmethod
    def open(cls, folder: str | Path, url: str | None = None, steps: Sequence[Step] = STEPS) -> Database:
        """Open a store's database; it is made, or brought to this version's schema, if need be.

        Args:
            folder: The store; made with mode 0700.
            url: `postgresql://...`; None is SQLite, in the folder.
            steps: The schema.

        Raises:
            UsageError: A folder that can't be used, or one whose database is elsewhere.
            BundleError: A damaged database, or one of a newer version.
            MissingExtra: PostgreSQL without psycopg.
            ProtocolError: PostgreSQL does not answer.
        """
        database = cls(_engine(private(Path(folder)), url))
        try:
            with database.transaction() as transaction:
                _migrate(transaction, steps, database._engine.name)
        except BaseException:
            database.close()
            raise
        return database

    @contextmanager
    def transaction(self, durable: bool = True) -> Iterator[Transaction]:
        """A transaction that no other writer's overlaps; any exception undoes all of it.

        Args:
            durable: Wait for the disk. A transaction that did not is kept if this process dies, but if the machine
                does, only if a durable one came after it.
        """
        with self._locks[True], self._translated():
            connection = self._begun(True, self._engine.begin(durable))
            transaction = Transaction(connection, self._engine.dialect, durable)
            try:
                yield transaction
                connection.execute("COMMIT")
            except BaseException:
                with suppress(self._engine.failures):
                    connection.execute("ROLLBACK")
                raise
        for call in transaction.after:
            call()

    @contextmanager
    def reading(self) -> Iterator[Transaction]:
        """Queries that see one state of the tables."""
        with self._locks[False], self._translated():
            connection = self._begun(False, (self._engine.look,))
            try:
                yield Transaction(connection, self._engine.dialect)
            finally:
                with suppress(self._engine.failures):
                    connection.execute("ROLLBACK")

    def claim(self, instance: int) -> None:
        """Mark this process as the server of this number, for as long as the database is open."""
        with self._locks[True], self._translated():
            self._claimed = instance
            self._engine.claim(self._connected(writes=True), instance)

    def dead(self, instances: Sequence[int]) -> list[int]:
        """Those of other servers' numbers behind which nobody lives."""
        gone = []
        with self._locks[True], self._translated():
            connection = self._connected(writes=True)
            for instance in instances:
                if instance != self._claimed and self._engine.claim(connection, instance):
                    self._engine.release(connection, instance)
                    gone.append(instance)
        return gone

    def integrity(self) -> list[str]:
        """What the engine itself finds wrong with its files."""
        with self._locks[False], self._translated():
            return self._engine.integrity(self._connected(writes=False))

    def close(self) -> None:
        """Close the connections; a later transaction would open them again."""
        for writes, lock in self._locks.items():
            with lock, suppress(self._engine.failures):
                if (connection := self._connections.pop(writes, None)) is not None:
                    connection.close()

    def _connected(self, writes: bool) -> Any:
        connection = self._connections.get(writes)
        if connection is None or self._engine.lost(connection):
            connection = self._connections[writes] = self._engine.connect()
            if writes and self._claimed is not None:
                self._engine.claim(connection, self._claimed)
        return connection

    def _begun(self, writes: bool, statements: tuple[str, ...]) -> Any:
        """A connection in a transaction. One that was lost while nobody used it is made again."""
        connection = self._connected(writes)
        try:
            return self._begin(connection, statements)
        except self._engine.failures:
            if not self._engine.lost(connection):
                raise
        return self._begin(self._connected(writes), statements)

    def _begin(self, connection: Any, statements: tuple[str, ...]) -> Any:
        try:
            for statement in statements:
                connection.execute(statement)
        except self._engine.failures:
            with suppress(self._engine.failures):
                connection.execute("ROLLBACK")
            raise
        return connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except self._engine.failures as error:
            if (ours := self._engine.explain(error)) is not None:
                raise ours from error
            raise


def private(folder: Path) -> Path:
    """The folder of a store, made for its owner alone if it is absent.

    Raises:
        UsageError: It can't be made, or others may read or write it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        mode = folder.stat().st_mode & 0o777
    except OSError as error:
        problem = Problem(str(folder), f"{error.strerror}.", "give a folder that you may use.")
        raise UsageError("Can't use this store.", [problem]) from error
    if mode & 0o077:
        problem = Problem(str(folder), f"Others may look into it (mode {mode:o}).", f"chmod 700 {folder}")
        raise UsageError("A store must be its owner's alone.", [problem])
    return folder


def is_store(folder: Path) -> bool:
    """Whether a folder is a store, or says where its database is."""
    return (folder / _LOCAL).exists() or (folder / _ELSEWHERE).exists()


def _engine(folder: Path, url: str | None) -> Engine:
    """The engine of a store: always the one that it began with, lest tokens be added where no server looks."""
    local, elsewhere = folder / _LOCAL, folder / _ELSEWHERE
    if url is None:
        if elsewhere.exists():
            problem = Problem(str(folder), "Its database is PostgreSQL.", "give its URL (--database).")
            raise UsageError("This store's database is elsewhere.", [problem])
        return Sqlite(local)
    if not url.startswith(("postgresql://", "postgres://")):
        problem = Problem(
            "database", "It is no PostgreSQL URL.", "give postgresql://USER@HOST/NAME, or none for SQLite."
        )
        raise UsageError("No such kind of database.", [problem])
    if local.exists():
        problem = Problem(str(folder), "Its database is SQLite.", "give no URL, or another folder.")
        raise UsageError("This store has a database of its own.", [problem])
    engine = Postgres(url)
    if not elsewhere.exists():
        files.write(elsewhere, b"postgresql\n", files.PRIVATE)
    return engine


def _migrate(transaction: Transaction, steps: Sequence[Step], engine: str) -> None:
    transaction.run("CREATE TABLE IF NOT EXISTS schema_version (version BIGINT NOT NULL)")
    row = transaction.one("SELECT MAX(version) FROM schema_version")
    version = int(row[0]) if row and row[0] is not None else 0
    if version > len(steps):
        problem = Problem("store", f"Its schema is {version}; this version knows {len(steps)}.", "update secure_infer.")
        raise BundleError("This store was made by a newer version.", [problem])
    for step in steps[version:]:
        for statement in (*step.both, *(step.sqlite if engine == "sqlite" else step.postgres)):
            transaction.run(statement)
    if version < len(steps):
        transaction.run("INSERT INTO schema_version VALUES (?)", len(steps))
