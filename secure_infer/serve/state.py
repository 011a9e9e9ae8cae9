"""All that a server remembers, in one folder that one server at a time may use."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from secure_infer.serve.accounts import Accounts
from secure_infer.serve.audit import Audit
from secure_infer.serve.budgets import Budgets
from secure_infer.serve.keystore import KeyStore, Quotas


class State:
    """Accounts, budgets, evaluation keys and audit log of one server. Threads may share it.

    Made by `State.open`. A process that is forked from this one does not hold the folder, and must not use the state.
    """

    accounts: Accounts
    budgets: Budgets
    keys: KeyStore
    audit: Audit

    @classmethod
    def open(cls, folder: str | Path, url: str | None = None, quotas: Quotas = Quotas()) -> State:
        """Open or make a store, for one server alone; requests that a dead server left are marked as interrupted.

        Args:
            folder: Evaluation keys, the lock and, without a URL, the database (`state.db`); made with mode 0700.
            url: `postgresql://...`; SQLite if None.
            quotas: How much of keys is kept.

        Raises:
            UsageError: Another server uses it; or a folder that can't be used.
            BundleError: A damaged or newer store.
            MissingExtra: PostgreSQL without psycopg.
            ProtocolError: PostgreSQL does not answer.
        """
        raise NotImplementedError

    def sweep(self) -> None:
        """Drop what has expired: unfinished uploads, stored replies, old counts. To be called now and then."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of the folder; once more does nothing."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
