"""Tokens: shown once, kept as hashes, refused when unknown, expired or revoked, and in force at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from secure_infer.errors import AccessDenied, UsageError
from secure_infer.serve.accounts import Accounts, Limits
from secure_infer.serve.database import Database
from tests.serve.stores import NOON, Clock, store, url

__all__ = ["store", "url"]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def accounts(store: Path, url: str | None, clock: Clock) -> Iterator[Accounts]:
    database = Database.open(store, url)
    yield Accounts(database, clock)
    database.close()


def denial(accounts: Accounts, token: str | None) -> str:
    with pytest.raises(AccessDenied) as caught:
        accounts.authenticate(token)
    return str(caught.value)


def test_a_token_stands_for_its_client(accounts: Accounts) -> None:
    limits = Limits(per_hour=3, per_day=10, cpu_per_day=7.5)
    token = accounts.add("ann", ["infer", "keys", "infer"], NOON + 60, limits)
    account = accounts.authenticate(token)
    assert (account.client, account.scopes, account.limits) == ("ann", {"infer", "keys"}, limits)
    assert account.expires == NOON + 60
    account.require("infer")
    with pytest.raises(AccessDenied, match="no scope 'metrics'"):
        account.require("metrics")


def test_missing_and_unknown_tokens_are_told_the_same(accounts: Accounts) -> None:
    token = accounts.add("ann", ["infer"])
    altered = token[:-1] + ("A" if token[-1] != "A" else "B")
    elsewhere = "si_" + "0" * 12 + token[15:]
    wrong = [None, "", "x", altered, elsewhere, token + " ", token.upper(), "\udcff", "'; DROP TABLE tokens; --", "%s"]
    assert len({denial(accounts, each) for each in wrong}) == 1


def test_expired_and_revoked_tokens_are_told_so(accounts: Accounts, clock: Clock) -> None:
    short, long = accounts.add("ann", ["infer"], NOON + 60), accounts.add("ann", ["infer"])
    clock.now = NOON + 59.9
    accounts.authenticate(short)
    clock.now = NOON + 60
    assert "expired" in denial(accounts, short)
    assert accounts.revoke(accounts.authenticate(long).token)
    assert "revoked" in denial(accounts, long)


def test_revoking_a_client_ends_all_its_tokens_once(accounts: Accounts) -> None:
    tokens = [accounts.add("ann", ["infer"]) for _ in range(3)]
    other = accounts.add("bob", ["infer"])
    assert len(accounts.revoke("ann")) == 3
    assert accounts.revoke("ann") == ()
    assert all("revoked" in denial(accounts, token) for token in tokens)
    assert accounts.authenticate(other).client == "bob"
    with pytest.raises(UsageError, match="nobody"):
        accounts.revoke("nobody")


def test_a_rotated_token_holds_through_its_grace(accounts: Accounts, clock: Clock) -> None:
    old = accounts.add("ann", ["infer"], NOON + 3600)
    name = accounts.authenticate(old).token
    new = accounts.rotate(name, grace_s=60)
    assert accounts.authenticate(new).expires == NOON + 3600
    assert accounts.authenticate(old).client == "ann"
    clock.now += 60
    assert "expired" in denial(accounts, old)
    assert accounts.authenticate(new).scopes == {"infer"}
    with pytest.raises(UsageError):
        accounts.rotate(name)


def test_limits_are_the_clients_and_stay_until_others_are_given(accounts: Accounts) -> None:
    first = accounts.add("ann", ["infer"], limits=Limits(per_hour=1))
    second = accounts.add("ann", ["keys"])
    assert accounts.authenticate(second).limits == Limits(per_hour=1)
    accounts.add("ann", ["keys"], limits=Limits(cpu_per_hour=2.0))
    assert accounts.authenticate(first).limits == Limits(cpu_per_hour=2.0) == accounts.limits("ann")
    assert accounts.limits("bob") is None


def test_all_that_is_wrong_is_said_at_once(accounts: Accounts) -> None:
    with pytest.raises(UsageError) as caught:
        accounts.add("../ann", ["infer", "root"], NOON, Limits(per_day=-1, cpu_per_day=float("nan")))
    assert [problem.where for problem in caught.value.problems] == [
        "client",
        "scopes",
        "expires",
        "per_day",
        "cpu_per_day",
    ]
    for name in ("", "anonymous", ".", "a/b", "a" * 65, "a\n", "ä"):
        with pytest.raises(UsageError):
            accounts.add(name, ["infer"])
    with pytest.raises(UsageError, match="scope"):
        accounts.add("ann", [])
    assert accounts.tokens() == []


def test_the_store_does_not_hold_tokens(store: Path) -> None:
    database = Database.open(store)
    token = Accounts(database).add("ann", ["infer"])
    database.close()
    held = b"".join(path.read_bytes() for path in store.iterdir())
    assert b"ann" in held
    assert token.encode() not in held
    assert token.rpartition("_")[2].encode()[:20] not in held
    assert all(path.stat().st_mode & 0o077 == 0 for path in store.iterdir())


def test_another_process_sees_changes_at_once(store: Path, url: str | None) -> None:
    server, command = Database.open(store, url), Database.open(store, url)
    token = Accounts(command).add("ann", ["infer"])
    assert Accounts(server).authenticate(token).client == "ann"
    Accounts(command).revoke("ann")
    with pytest.raises(AccessDenied, match="revoked"):
        Accounts(server).authenticate(token)
    server.close()
    command.close()
