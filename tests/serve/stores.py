"""Stores for tests: on SQLite always, and on PostgreSQL where SECURE_INFER_TEST_POSTGRES names a server."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from secure_infer.serve.accounts import Account, Limits
from secure_infer.serve.audit import Audit
from secure_infer.serve.budgets import Budgets
from secure_infer.serve.database import Database
from secure_infer.serve.instances import Instance
from secure_infer.serve.replies import KEEP, Keep
from secure_infer.wire.api import SCOPES

SERVER = os.environ.get("SECURE_INFER_TEST_POSTGRES", "")
ENGINES = ["sqlite", pytest.param("postgres", marks=pytest.mark.skipif(not SERVER, reason="no PostgreSQL named"))]
NOON = 1_700_049_600.0
"""Noon of a day: half of its day and none of its hour has passed."""


def fresh_url(engine: str) -> Iterator[str | None]:
    """A database of one's own: None for SQLite, else a URL."""
    if engine == "sqlite":
        yield None
        return
    import psycopg

    name = f"secure_infer_{os.urandom(6).hex()}"
    with psycopg.connect(SERVER, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        yield SERVER.rpartition("/")[0] + f"/{name}"
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=ENGINES)
def url(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """Where a test's database is, once for each engine."""
    yield from fresh_url(request.param)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A folder that becomes a store."""
    return tmp_path / "store"


@dataclass
class Clock:
    """Time that stands still until a test moves it."""

    now: float = NOON

    def __call__(self) -> float:
        return self.now


@dataclass
class Books:
    """Budgets and audit log on a clock of the test, without the lock of a server."""

    folder: Path
    url: str | None = None
    keep: Keep = KEEP
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.database = Database.open(self.folder, self.url)
        self.audit = Audit(self.database, self.folder, self.clock)
        self.instance = Instance(self.database, self.audit, self.clock)
        self.budgets = Budgets(self.database, self.audit, self.instance.number, self.keep, self.clock)

    def outcomes(self) -> list[str]:
        """What the audit log says of each request."""
        return [record.event.outcome for record in self.audit.records()]


def account(client: str = "ann", **limits: float) -> Account:
    """An account with these limits."""
    return Account(client, frozenset(SCOPES), Limits(**limits))  # type: ignore[arg-type]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


DIGEST = sha256(b"message")


def request_id(number: int = 0) -> str:
    return f"{number:032x}"
