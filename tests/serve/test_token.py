"""`secure-infer token` and `secure-infer audit`, beside a running server and without one."""

from __future__ import annotations

import json
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from secure_infer.errors import AccessDenied
from secure_infer.serve.accounts import Limits
from secure_infer.serve.audit import Event
from secure_infer.serve.state import State
from tests.cli.command import call
from tests.serve.stores import store, url

__all__ = ["store", "url"]

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def no_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SECURE_INFER_DATABASE", raising=False)


def run(capsys: Capture, *words: object) -> Any:
    code, out, err = call(capsys, *words, "--json")
    assert code == 0, out + err
    return json.loads(out)


def fail(capsys: Capture, code: int, *words: object) -> str:
    found, out, err = call(capsys, *words)
    assert found == code, out + err
    assert "Traceback" not in err
    return " ".join(err.split())


def test_a_token_is_alone_on_standard_output_and_works(store: Path, capsys: Capture) -> None:
    code, out, err = call(capsys, "token", "add", "ann", "--store", store, "--expires", "12h", "--per-day", 7)
    assert code == 0
    assert out.strip() not in err
    with State.open(store) as state:
        account = state.accounts.authenticate(out.strip())
    assert (account.client, account.scopes) == ("ann", {"models", "keys", "infer"})
    assert account.limits == Limits(per_day=7)
    assert account.expires == pytest.approx(time.time() + 12 * 3600, abs=60)


def test_tokens_while_a_server_runs(store: Path, url: str | None, capsys: Capture) -> None:
    where = ("--store", store, *(("--database", url) if url else ()))
    with State.open(store, url) as state:
        made = run(
            capsys, "token", "add", "ann", *where, "--scope", "infer", "--scope", "metrics", "--expires", "never"
        )
        account = state.accounts.authenticate(made["token"])
        assert (account.scopes, account.expires) == ({"infer", "metrics"}, None)
        state.budgets.admit(account, "digits", "", "0" * 32, "0" * 64)
        (listed,) = run(capsys, "token", "list", *where)["tokens"]
        assert (listed["id"], listed["today"]["requests"], listed["state"]) == (made["id"], 1, "good")
        rotated = run(capsys, "token", "rotate", made["id"], *where)
        with pytest.raises(AccessDenied, match="expired"):
            state.accounts.authenticate(made["token"])
        assert state.accounts.authenticate(rotated["token"]).client == "ann"
        revoked = run(capsys, "token", "revoke", "ann", *where)["revoked"]
        assert sorted(revoked) == sorted([made["id"], rotated["id"]])
        with pytest.raises(AccessDenied, match="revoked"):
            state.accounts.authenticate(rotated["token"])


def test_limits_are_added_to_and_lifted(store: Path, capsys: Capture) -> None:
    def limits(*words: object) -> dict[str, float]:
        found = run(capsys, "token", "add", "ann", "--store", store, *words)["limits"]
        return {name: limit for name, limit in found.items() if limit is not None}

    assert limits() == {"per_day": 1000}
    assert limits("--cpu-per-day", 60.5) == {"per_day": 1000, "cpu_per_day": 60.5}
    assert limits("--per-hour", 0, "--per-day", 5) == {"per_hour": 0, "per_day": 5, "cpu_per_day": 60.5}
    assert limits("--no-limits") == {}
    assert limits() == {}
    assert "can't go together" in fail(
        capsys, 2, "token", "add", "ann", "--store", store, "--no-limits", "--per-hour", 1
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("frob",), "give one of add, list"),
        (("add",), "None is given"),
        (("list", "ann"), "takes no name"),
        (("add", "ann", "--scope", "root"), "'root' is no scope"),
        (("add", "ann", "--expires", "soon"), "'soon' is no duration"),
        (("add", "ann", "--expires", "2020-01-01"), "has passed"),
        (("add", "ann", "--per-day", "-1"), "--per-day"),
        (("rotate", "ffffffffffff"), "No store of a server"),
        (("list",), "No store of a server"),
    ],
)
def test_what_is_refused(store: Path, capsys: Capture, words: tuple[str, ...], says: str) -> None:
    assert says in fail(capsys, 2, "token", *words, "--store", store)


def test_people_can_read_the_list(store: Path, capsys: Capture) -> None:
    token = run(capsys, "token", "add", "ann", "--store", store, "--expires", "2100-01-31")["token"]
    code, out, _ = call(capsys, "token", "list", "--store", store)
    assert code == 0
    assert all(word in out for word in ("ann", "good", "2100-01-31", "1000 a day", "today 0 requests"))
    assert token not in out


def test_audit_of_a_running_server(store: Path, url: str | None, capsys: Capture) -> None:
    where = (store, *(("--database", url) if url else ()))
    with State.open(store, url) as state:
        for client in ("ann", "bob", "ann"):
            state.audit.record(Event(client, "upload", received=5))
        verdict = run(capsys, "audit", "verify", *where)
        assert (verdict["whole"], verdict["records"], verdict["anchored"]) == (True, 3, True)
        code, out, _ = call(capsys, "audit", "show", *where, "--client", "ann", "--last", 1, "--json")
        (record,) = map(json.loads, out.splitlines())
        assert (code, record["seq"], record["event"]["received"]) == (0, 3, 5)
        assert len(call(capsys, "audit", "show", *where, "--last", 0)[1].splitlines()) == 3
        state.audit.record(Event("ann", "delete"))
        assert run(capsys, "audit", "verify", *where, "--expect", verdict["head"])["records"] == 4


def test_a_broken_log_is_exit_code_6_and_named(store: Path, capsys: Capture) -> None:
    with State.open(store) as state:
        for _ in range(5):
            state.audit.record(Event("ann", "upload"))
    head = run(capsys, "audit", "verify", store)["head"]
    with sqlite3.connect(store / "state.db") as database:
        database.execute("DROP TRIGGER audit_no_delete")
        database.execute("DELETE FROM audit WHERE seq = 5")
    database.close()
    assert "record 5: It is missing" in fail(capsys, 6, "audit", "verify", store)
    (store / "audit.head").unlink()
    code, out, err = call(capsys, "audit", "verify", store)
    assert (code, "4 records" in out, "no anchor" in err) == (0, True, True)
    assert "record 5: It is missing" in fail(capsys, 6, "audit", "verify", store, "--expect", head)
    assert "no NUMBER:SHA256" in fail(capsys, 2, "audit", "verify", store, "--expect", "x")
    assert "No store" in fail(capsys, 2, "audit", "verify", store / "nowhere")
    assert "No such action" in fail(capsys, 2, "audit", "frob", store)
