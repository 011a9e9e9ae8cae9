"""Who may ask: clients, their tokens, scopes and limits. Without a token nobody may."""

from __future__ import annotations

import base64
import hashlib
import hmac
import math
import os
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass, field, fields

from secure_infer.errors import AccessDenied, Problem, UsageError
from secure_infer.serve.database import Database, Row, Transaction
from secure_infer.wire.api import SCOPES

CLIENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""What a client may be called; it names a folder, too."""
_TOKEN = re.compile(r"si_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")


@dataclass(frozen=True)
class Limits:
    """What a client may spend in each hour and each day; None is no limit."""

    per_hour: int | None = None
    per_day: int | None = None
    cpu_per_hour: float | None = None
    cpu_per_day: float | None = None


_LIMITS = tuple(item.name for item in fields(Limits))


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
        if scope not in self.scopes:
            problem = Problem(
                "token", f"It has no scope {scope!r}.", f"ask the server's owner for a token with {scope!r}."
            )
            raise AccessDenied("This token does not permit that.", [problem])


ANONYMOUS = Account("anonymous", frozenset(SCOPES))
"""Whoever asks a server that was told to do without tokens."""


@dataclass(frozen=True)
class Token:
    """What is kept of a token, which is not the token: times in seconds since 1970, and the limits of its client."""

    id: str
    client: str
    scopes: tuple[str, ...]
    made: float
    expires: float | None
    revoked: float | None
    limits: Limits = field(default_factory=Limits)


class Accounts:
    """Clients and tokens. A change by another process (`secure-infer token`) holds from the next request on.

    Args:
        database: Where they are kept.
        clock: Seconds since 1970.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database, self._clock = database, clock

    def authenticate(self, token: str | None) -> Account:
        """The account that a bearer token stands for.

        Raises:
            AccessDenied: No token or one that is unknown (one text for both), or one that has expired or was revoked
                (401).
        """
        match = _TOKEN.fullmatch(token or "")
        # An unknown name is looked up and compared like a known one, so that it takes as long.
        with self._database.reading() as query:
            found = _tokens(query, "WHERE tokens.id = ?", match[1] if match else "")
        kept, digest = found[0] if found else (None, _digest(""))
        genuine = hmac.compare_digest(digest, _digest(token or ""))
        if kept is None or match is None or not genuine:
            raise _denied("No token, or an unknown one.", "give a token of this server (Authorization: Bearer ...).")
        if kept.revoked is not None:
            raise _denied("It was revoked.", "ask the server's owner for a new one.")
        if kept.expires is not None and kept.expires <= self._clock():
            raise _denied("It has expired.", "ask the server's owner for a new one.")
        return Account(kept.client, frozenset(kept.scopes), kept.limits, kept.id, kept.expires)

    def add(
        self, client: str, scopes: Iterable[str], expires: float | None = None, limits: Limits | None = None
    ) -> str:
        """Make a token; this is the only time that it is seen.

        Args:
            client: Name of the client; made if it is new.
            scopes: What the token shall be good for.
            expires: Seconds since 1970; None is never.
            limits: For all tokens of this client, from now on; None leaves those that it has, at first none.

        Raises:
            UsageError: A name, scope, time or limit that can't be.
        """
        wanted = tuple(dict.fromkeys(scopes))
        _check(client, wanted, expires, limits, self._clock())
        with self._database.transaction() as transaction:
            self._client(transaction, client, limits)
            return self._insert(transaction, client, wanted, expires)

    def rotate(self, token_id: str, grace_s: float = 0.0) -> str:
        """A new token in the place of another, with its scopes and expiry; the old one ends, after a grace in seconds.

        Raises:
            UsageError: No such token, or one that is revoked or has expired.
        """
        now = self._clock()
        with self._database.transaction() as transaction:
            found = [kept for kept, _ in _tokens(transaction, "WHERE tokens.id = ?", token_id)]
            if not found or found[0].revoked is not None or (found[0].expires or now + 1) <= now:
                raise _no_token(token_id)
            old = found[0]
            ends = min(now + max(grace_s, 0.0), old.expires or math.inf)
            transaction.run("UPDATE tokens SET expires = ? WHERE id = ?", ends, token_id)
            return self._insert(transaction, old.client, old.scopes, old.expires)

    def revoke(self, name: str) -> tuple[str, ...]:
        """End a token, or all tokens of a client; returns the public names of those that were good till now.

        Raises:
            UsageError: There is no such token or client.
        """
        with self._database.transaction() as transaction:
            found = [kept for kept, _ in _tokens(transaction, "WHERE tokens.id = ? OR tokens.client = ?", name, name)]
            if not found:
                raise _no_token(name)
            ended = tuple(kept.id for kept in found if kept.revoked is None)
            for token_id in ended:
                transaction.run("UPDATE tokens SET revoked = ? WHERE id = ?", self._clock(), token_id)
            return ended

    def tokens(self) -> list[Token]:
        """All tokens that were ever made, the oldest first."""
        with self._database.reading() as query:
            return [kept for kept, _ in _tokens(query, "")]

    def limits(self, client: str) -> Limits | None:
        """What a client may spend; None if there is no such client."""
        with self._database.reading() as query:
            row = query.one(f"SELECT {', '.join(_LIMITS)} FROM clients WHERE name = ?", client)
        return Limits(*row) if row else None

    @staticmethod
    def _client(transaction: Transaction, client: str, limits: Limits | None) -> None:
        transaction.run("INSERT INTO clients (name) VALUES (?) ON CONFLICT (name) DO NOTHING", client)
        if limits is not None:
            columns = ", ".join(f"{name} = ?" for name in _LIMITS)
            transaction.run(f"UPDATE clients SET {columns} WHERE name = ?", *astuple(limits), client)

    def _insert(self, transaction: Transaction, client: str, scopes: tuple[str, ...], expires: float | None) -> str:
        public = os.urandom(6).hex()
        token = f"si_{public}_{base64.urlsafe_b64encode(os.urandom(32)).decode().rstrip('=')}"
        transaction.run(
            "INSERT INTO tokens (id, client, digest, scopes, made, expires) VALUES (?, ?, ?, ?, ?, ?)",
            *(public, client, _digest(token), " ".join(scopes), self._clock(), expires),
        )
        return token


def _tokens(query: Transaction, where: str, *values: str) -> list[tuple[Token, str]]:
    limits = ", ".join(f"clients.{name}" for name in _LIMITS)
    rows = query.all(
        "SELECT tokens.id, tokens.client, tokens.scopes, made, expires, revoked, digest, "
        f"{limits} FROM tokens JOIN clients ON clients.name = tokens.client {where} ORDER BY made, tokens.id",
        *values,
    )
    return [(_token(row, Limits(*row[7:])), str(row[6])) for row in rows]


def _token(row: Row, limits: Limits) -> Token:
    name, client, scopes, made, expires, revoked = row[:6]
    return Token(name, client, tuple(scopes.split()), made, expires, revoked, limits)


def _digest(token: str) -> str:
    # The token is 256 random bits: there is nothing to guess, so a slow hash would only be slow.
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _denied(what: str, fix: str) -> AccessDenied:
    return AccessDenied("Access denied.", [Problem("token", what, fix)])


def _no_token(name: str) -> UsageError:
    problem = Problem("token", f"No live token and no client is called {name!r}.", "see `secure-infer token list`.")
    return UsageError("No such token.", [problem])


def _check(client: str, scopes: tuple[str, ...], expires: float | None, limits: Limits | None, now: float) -> None:
    problems = []
    if not CLIENT_NAME.fullmatch(client) or client == ANONYMOUS.client:
        fix = "use 1 to 64 letters, digits, dots, dashes or underscores, beginning with a letter or digit."
        problems.append(Problem("client", f"{client[:80]!r} can't be a name (or is reserved).", fix))
    for scope in [scope for scope in scopes if scope not in SCOPES] or ([] if scopes else [""]):
        problems.append(Problem("scopes", f"{scope!r} is no scope.", f"give some of {', '.join(SCOPES)}."))
    if expires is not None and not now < expires < math.inf:
        problems.append(Problem("expires", "That time has passed, or is none.", "give a time to come."))
    for name, limit in zip(_LIMITS, astuple(limits or Limits()), strict=True):
        if limit is not None and not 0 <= limit < 2**53:
            problems.append(Problem(name, f"{limit} is no limit.", "give a number from 0 on."))
    if problems:
        raise UsageError("No such token can be made.", problems)
