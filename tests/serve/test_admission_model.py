"""Random histories of admissions, settlements, kills and clock steps, against a model of a few lines."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from secure_infer.errors import InvalidInput, LimitExceeded, ProtocolError
from secure_infer.serve import budgets, checkup
from secure_infer.serve.budgets import Admission
from tests.serve.stores import Books, Clock, account, fresh_url, request_id, sha256

PER_HOUR, PER_DAY = 4, 9
CLIENTS = st.sampled_from(["ann", "bob"])
NUMBERS = st.integers(0, 7)


class Requests(RuleBasedStateMachine):
    """What a client sees of a few requests that are sent again and again, in a few hours."""

    engine = "sqlite"

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp()) / "store"
        self.databases = fresh_url(self.engine)
        self.url = next(self.databases)
        self.clock = Clock()
        self.books = Books(self.folder, self.url, clock=self.clock)
        self.charges: dict[tuple[str, int], float] = {}
        self.states: dict[tuple[str, int], str] = {}
        self.runs: dict[tuple[str, int], int] = {}
        self.open: dict[tuple[str, int], Admission] = {}

    def ask(self, client: str, number: int, message: bytes = b"") -> Admission:
        limits = account(client, per_hour=PER_HOUR, per_day=PER_DAY)
        return self.books.budgets.admit(limits, "digits", "", request_id(number), sha256(message or bytes([number])))

    def spent(self, client: str, seconds: int) -> int:
        now = int(self.clock.now) // seconds
        return sum(int(at) // seconds == now for (who, _), at in self.charges.items() if who == client)

    @rule(client=CLIENTS, number=NUMBERS)
    def admit(self, client: str, number: int) -> None:
        name, state = (client, number), self.states.get((client, number))
        if state == "failed" and self.runs[name] >= budgets.RUNS:
            with pytest.raises(InvalidInput):
                self.ask(client, number)
            return
        over = self.spent(client, 3600) >= PER_HOUR or self.spent(client, 86400) >= PER_DAY
        if state is None and over:
            with pytest.raises(LimitExceeded):
                self.ask(client, number)
            return
        admission = self.ask(client, number)
        assert admission.kind == {"answered": "replay", "running": "running"}.get(state or "", "new")
        if admission.kind == "new":
            self.charges.setdefault(name, self.clock.now)
            self.runs[name] = self.runs.get(name, 0) + 1
            self.states[name], self.open[name] = "running", admission
        elif admission.kind == "replay":
            assert admission.reply == b"reply %d" % number

    @rule(client=CLIENTS, number=NUMBERS)
    def alter(self, client: str, number: int) -> None:
        if (client, number) in self.states:
            with pytest.raises(InvalidInput):
                self.ask(client, number, b"another message")

    @rule(client=CLIENTS, number=NUMBERS, fate=st.sampled_from(["answered", "failed", "full"]))
    def settle(self, client: str, number: int, fate: str) -> None:
        name = client, number
        if (admission := self.open.pop(name, None)) is None:
            return
        if fate == "answered":
            self.books.budgets.settle(admission, b"reply %d" % number)
        elif fate == "failed":
            self.books.budgets.settle(admission, ProtocolError("The worker died."))
        else:
            self.books.budgets.settle(admission, LimitExceeded("The queue is full."))
        self.states[name] = "failed" if fate == "full" else fate
        if fate == "full":
            self.runs[name] -= 1
            if admission.attempt == 1:
                del self.states[name], self.charges[name], self.runs[name]

    @rule(minutes=st.integers(1, 90))
    def wait(self, minutes: int) -> None:
        # Kept replies are dropped by time in tests of their own.
        self.clock.now += minutes * 60
        with self.books.database.transaction() as transaction:
            transaction.run("UPDATE replies SET kept = ?", self.clock.now)

    @rule()
    def die(self) -> None:
        """The process is killed: what it knew is gone, what it wrote is not."""
        self.books.database.close()
        self.books = Books(self.folder, self.url, clock=self.clock)
        for name in self.open:
            self.states[name] = "failed"
        self.open.clear()

    @invariant()
    def every_request_is_charged_once(self) -> None:
        for client in ("ann", "bob"):
            spent = self.books.budgets.spent(client)
            assert spent["hour"].requests == self.spent(client, 3600) <= PER_HOUR
            assert spent["day"].requests == self.spent(client, 86400) <= PER_DAY

    def teardown(self) -> None:
        self.books.database.close()
        found = checkup.problems(self.folder, self.url)
        next(self.databases, None)
        shutil.rmtree(self.folder.parent)
        assert found == []


TestRequests = Requests.TestCase
TestRequests.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
