"""All that a server remembers, in one folder that one server at a time may use."""

from __future__ import annotations

import fcntl
import os
import weakref
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from secure_infer import files
from secure_infer.errors import Problem, UsageError
from secure_infer.serve.accounts import Accounts
from secure_infer.serve.audit import Audit
from secure_infer.serve.budgets import Budgets
from secure_infer.serve.database import Database, private
from secure_infer.serve.instances import Instance
from secure_infer.serve.keyfiles import QUOTAS, Quotas
from secure_infer.serve.keystore import KeyStore
from secure_infer.serve.replies import KEEP, Keep


class State:
    """Accounts, budgets, evaluation keys and audit log of one server. Threads may share it; made by `State.open`.

    A process that is forked from this one does not hold the folder, and must not use the state.
    """

    def __init__(self, lock: Lock, database: Database, folder: Path, quotas: Quotas, keep: Keep) -> None:
        self._lock, self._database = lock, database
        self.audit = Audit(database, folder)
        self.audit.resume()
        self._instance = Instance(database, self.audit)
        self.accounts = Accounts(database)
        self.budgets = Budgets(database, self.audit, self._instance.number, keep)
        self.keys = KeyStore(folder / "keys", quotas)

    @classmethod
    def open(cls, folder: str | Path, url: str | None = None, quotas: Quotas = QUOTAS, keep: Keep = KEEP) -> State:
        """Open or make a store, for one server alone; requests that a dead server left are marked as interrupted.

        Args:
            folder: Evaluation keys, the lock and, without a URL, the database (`state.db`); made with mode 0700.
            url: `postgresql://...`; SQLite if None. Several servers may share a PostgreSQL database, none a folder.
            quotas: How much of keys is kept.
            keep: How long, and how much of, replies is kept for retries.

        Raises:
            UsageError: Another server uses it; or a folder that can't be used.
            BundleError: A damaged or newer store.
            MissingExtra: PostgreSQL without psycopg.
            ProtocolError: PostgreSQL does not answer.
        """
        place = private(Path(folder))
        lock = Lock(place / "lock")
        database = None
        try:
            database = Database.open(place, url)
            return cls(lock, database, place, quotas, keep)
        except BaseException:
            if database is not None:
                database.close()
            lock.release()
            raise

    def sweep(self) -> None:
        """Drop what has expired, and note what servers left that died. To be called now and then."""
        self.keys.sweep()
        self.budgets.sweep()
        self._instance.bury()
        self.audit.anchor()

    def close(self) -> None:
        """Let go of the folder; once more does nothing."""
        if not self._lock.held:
            return
        try:
            self._instance.end()
            self.audit.anchor()
        finally:
            self._database.close()
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class Lock:
    """A file that one process holds until it ends, however it ends.

    Raises:
        UsageError: Another holds it.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, files.PRIVATE)
        except OSError as error:
            problem = Problem(str(path), f"{error.strerror}.", "give a folder that you may use.")
            raise UsageError("Can't use this store.", [problem]) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._file, 20, 0).decode("ascii", "replace").strip() or "unknown"
            self.release()
            problem = Problem(str(path), f"Process {holder} holds it.", "stop that server, or give another folder.")
            raise UsageError("Another server uses this store.", [problem]) from error
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)
        # A forked worker that outlives this process must not keep the store from the next server.
        os.register_at_fork(after_in_child=partial(_let_go, weakref.ref(self)))

    @property
    def held(self) -> bool:
        """Whether this process holds it."""
        return self._file >= 0

    def release(self) -> None:
        """Let go; once more does nothing. In a forked process, its parent goes on holding the file."""
        descriptor, self._file = self._file, -1
        if descriptor >= 0:
            os.close(descriptor)


def _let_go(lock: weakref.ref[Lock]) -> None:
    if (held := lock()) is not None:
        held.release()
