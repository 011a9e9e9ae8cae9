"""One server to a store, whichever way the last one ended; forked workers do not hold it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from secure_infer.errors import AccessDenied, BundleError, UsageError
from secure_infer.serve import checkup
from secure_infer.serve.accounts import Accounts
from secure_infer.serve.database import Database
from secure_infer.serve.keyfiles import Quotas
from secure_infer.serve.state import State
from tests.serve.stores import DIGEST, account, request_id, sha256, store, url

__all__ = ["store", "url"]

_SERVER = """
import os, sys, time
from secure_infer.serve.state import State
state = State.open(sys.argv[1])
print("open", flush=True)
"""


def test_all_is_there_again_after_a_restart(store: Path, url: str | None) -> None:
    with State.open(store, url) as state:
        token = state.accounts.add("ann", ["infer"])
        admission = state.budgets.admit(account(), "digits", "", request_id(), DIGEST)
        state.budgets.settle(admission, b"reply", 2.0)
        state.keys.append("ann", sha256(b"keys"), 0, 4, [b"keys"])
        state.sweep()
    assert checkup.problems(store, url) == []
    with State.open(store, url) as state:
        assert state.accounts.authenticate(token).client == "ann"
        assert state.budgets.admit(account(), "digits", "", request_id(), DIGEST).reply == b"reply"
        assert state.budgets.spent("ann")["day"].cpu_s == 2.0
        assert state.keys.offset("ann", sha256(b"keys")) == (4, 4)
        assert state.audit.verify().seq == 1


def test_two_servers_on_one_store(store: Path) -> None:
    with State.open(store) as state:
        with pytest.raises(UsageError, match=f"Process {os.getpid()} holds it"):
            State.open(store)
        server = subprocess.run([sys.executable, "-c", _SERVER, store], capture_output=True, text=True, check=False)
        assert "Another server uses this store" in server.stderr
        state.close()
        state.close()
        State.open(store).close()


def test_tokens_are_made_beside_a_running_server(store: Path) -> None:
    with State.open(store) as state:
        database = Database.open(store)
        token = Accounts(database).add("ann", ["infer"])
        assert state.accounts.authenticate(token).client == "ann"
        Accounts(database).revoke("ann")
        with pytest.raises(AccessDenied):
            state.accounts.authenticate(token)
        database.close()


@pytest.mark.parametrize("worker", [False, True])
def test_a_killed_server_leaves_a_store_that_opens_at_once(store: Path, worker: bool) -> None:
    """Even if a forked worker outlives it."""
    rest = "sys.argv[2] == 'True' and (os.fork() or print('forked', flush=True)); time.sleep(60)"
    command = [sys.executable, "-c", _SERVER + rest, store, str(worker)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "open\n"
        if worker:
            assert server.stdout.readline() == "forked\n"
        with pytest.raises(UsageError):
            State.open(store)
        server.kill()
        server.wait()
        State.open(store).close()
    finally:
        os.killpg(server.pid, signal.SIGKILL) if worker else server.kill()
        server.wait()
        if server.stdout is not None:
            server.stdout.close()


def test_a_child_that_ends_does_not_unlock(store: Path) -> None:
    rest = "\nchild = os.fork()\nif child == 0: os._exit(0)\nos.waitpid(child, 0)\nState.open(sys.argv[1])"
    server = subprocess.run([sys.executable, "-c", _SERVER + rest, store], capture_output=True, text=True, check=False)
    assert (server.stdout, "Another server uses this store" in server.stderr) == ("open\n", True)


def test_a_store_that_fails_to_open_is_let_go(store: Path) -> None:
    store.mkdir(mode=0o700)
    (store / "state.db").write_bytes(b"no database" * 100)
    for _ in range(2):
        with pytest.raises(BundleError):
            State.open(store)
    (store / "state.db").unlink()
    State.open(store, quotas=Quotas(client_bytes=1)).close()


def test_a_checkup_finds_what_is_wrong(store: Path) -> None:
    with State.open(store) as state:
        state.budgets.settle(state.budgets.admit(account(), "digits", "", request_id(), DIGEST), b"reply")
        state.keys.append("ann", sha256(b"keys"), 0, 4, [b"keys"])
    assert checkup.problems(store) == []
    (key,) = store.rglob("*.key")
    key.write_bytes(b"else")
    key.with_name("stray").write_bytes(b"")
    database = Database.open(store)
    with database.transaction() as transaction:
        transaction.run("UPDATE usage SET requests = 2 WHERE unit = 'day'")
        transaction.run("DROP TRIGGER audit_no_update")
        transaction.run("UPDATE audit SET client = 'eve'")
    database.close()
    found = [problem.where for problem in checkup.problems(store)]
    assert found == ["record 1", "client ann", str(key), str(key.with_name("stray"))]
