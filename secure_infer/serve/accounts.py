"""Who may ask: clients, their tokens, scopes and limits. Without a token nobody may."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from secure_infer.serve.database import Database
from secure_infer.wire.api import SCOPES


@dataclass(frozen=True)
class Limits:
    """What a client may spend in each hour and each day; None is no limit."""

    per_hour: int | None = None
    per_day: int | None = None
    cpu_per_hour: float | None = None
    cpu_per_day: float | None = None


@dataclass(frozen=True)
class Account:
    """A client that has shown a token.

    Attributes:
        client: Name of the client: budgets, evaluation keys and audit records are kept by it.
        scopes: What the token is good for, of `api.SCOPES`.
        limits: What the client may spend.
        token: Public name of the token; empty for the anonymous account.
        expires: Seconds since 1970; None is never.
    """

    client: str
    scopes: frozenset[str]
    limits: Limits = Limits()
    token: str = ""
    expires: float | None = None

    def require(self, scope: str) -> None:
        """Let pass a token that has this scope.

        Raises:
            AccessDenied: It has not (403).
        """
        raise NotImplementedError


ANONYMOUS = Account("anonymous", frozenset(SCOPES))
"""Whoever asks a server that was told to do without tokens."""


class Accounts:
    """Clients and tokens. A change by another process (`secure-infer token`) holds from the next request on."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def authenticate(self, token: str | None) -> Account:
        """The account that a bearer token stands for.

        Raises:
            AccessDenied: No token or one that is unknown (one text for both), or one that has expired or was revoked (401).
        """
        raise NotImplementedError

    def add(
        self, client: str, scopes: Iterable[str], expires: float | None = None, limits: Limits | None = None
    ) -> str:
        """Make a token; this is the only time that it is seen. Limits, if given, hold for all tokens of the client."""
        raise NotImplementedError
