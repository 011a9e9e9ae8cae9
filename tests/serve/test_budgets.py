"""Every request is charged once, answered again from what is kept, and counted whatever happens in between."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from secure_infer.errors import InvalidInput, KeyMismatch, LimitExceeded, ProtocolError
from secure_infer.serve import budgets, checkup
from secure_infer.serve.budgets import Admission
from secure_infer.serve.replies import Keep
from tests.serve.stores import DIGEST, NOON, Books, account, request_id, sha256, store, url

__all__ = ["store", "url"]

KEY = "ab" * 32


@pytest.fixture
def books(store: Path, url: str | None) -> Iterator[Books]:
    opened = Books(store, url, Keep(seconds=600, total_bytes=100))
    yield opened
    opened.database.close()
    assert checkup.problems(store, url) == []


def admit(books: Books, number: int = 0, **limits: float) -> Admission:
    return books.budgets.admit(account(**limits), "digits", KEY, request_id(number), DIGEST, 7)


def counts(books: Books) -> tuple[int, int]:
    spent = books.budgets.spent("ann")
    return spent["hour"].requests, spent["day"].requests


def test_a_request_is_charged_once_and_replayed(books: Books) -> None:
    first = admit(books)
    assert (first.kind, admit(books).kind) == ("new", "running")
    books.budgets.settle(first, b"reply", 1.5)
    again = admit(books)
    assert (again.kind, again.reply) == ("replay", b"reply")
    books.budgets.settle(again, b"other", 1.0)  # a replay has nothing to settle
    books.budgets.settle(first, b"other", 1.0)  # nor has a request that was settled
    assert admit(books).reply == b"reply"
    assert counts(books) == (1, 1)
    assert books.budgets.spent("ann")["day"].cpu_s == 1.5
    event = next(books.audit.records()).event
    assert (event.client, event.model, event.key_name, event.request_id) == ("ann", "digits", KEY, request_id())
    assert (event.received, event.sent, event.outcome, event.cpu_ms) == (7, 5, "ok", 1500)
    assert books.outcomes() == ["ok"]


@pytest.mark.parametrize(
    ("limits", "resets"), [({"per_hour": 2}, 3600), ({"per_day": 2}, 43200), ({"per_hour": 2, "per_day": 2}, 43200)]
)
def test_a_spent_budget_says_when_it_is_new(books: Books, limits: dict[str, int], resets: int) -> None:
    for number in range(2):
        books.budgets.settle(admit(books, number, **limits), b"reply")
    for number in range(2, 5):
        with pytest.raises(LimitExceeded, match="budget") as caught:
            admit(books, number, **limits)
        assert caught.value.retry_after == resets
    assert admit(books, 0, **limits).kind == "replay"  # a retry costs nothing
    assert books.budgets.admit(account("bob", **limits), "digits", KEY, request_id(), DIGEST).kind == "new"
    assert books.outcomes().count("refused: budget") == 1
    books.clock.now += resets - 0.5
    with pytest.raises(LimitExceeded):
        admit(books, 5, **limits)
    books.clock.now += 0.5
    assert admit(books, 5, **limits).kind == "new"


def test_cpu_seconds_are_a_budget_too(books: Books) -> None:
    limits = {"cpu_per_hour": 10.0}
    books.budgets.settle(admit(books, 0, **limits), b"reply", 6.0)
    running = admit(books, 1, **limits)
    with pytest.raises(LimitExceeded) as caught:  # 6 s spent, 6 s expected of the one under way
        admit(books, 2, **limits)
    assert caught.value.retry_after == 1.0
    books.budgets.settle(running, b"reply", 2.0)
    books.budgets.settle(admit(books, 2, **limits), b"reply", 2.0)
    with pytest.raises(LimitExceeded) as caught:
        admit(books, 3, **limits)
    assert caught.value.retry_after == 3600


def test_an_id_is_for_one_message(books: Books) -> None:
    books.budgets.settle(admit(books), b"reply")
    other = account(), "digits", KEY, request_id(), sha256(b"another message")
    for _ in range(3):
        with pytest.raises(InvalidInput, match="another message"):
            books.budgets.admit(*other)
    with pytest.raises(InvalidInput, match="another message"):
        books.budgets.admit(account(), "digits", "cd" * 32, request_id(), DIGEST)
    assert books.budgets.admit(account("bob"), *other[1:]).kind == "new"  # ids are a client's own
    assert counts(books) == (1, 1)
    assert books.outcomes() == ["ok", "refused: request id used before"]


@pytest.mark.parametrize("bad", ["", "0" * 31, "0" * 33, "G" * 32, "A" * 32, "0" * 31 + "\n", "'; --" + "0" * 27])
def test_what_is_no_request_id(books: Books, bad: str) -> None:
    with pytest.raises(InvalidInput, match="hexadecimal"):
        books.budgets.admit(account(), "digits", KEY, bad, DIGEST)


def test_a_failed_request_is_run_again_for_its_one_charge(books: Books) -> None:
    for attempt in range(1, budgets.RUNS + 1):
        admission = admit(books)
        assert (admission.kind, admission.attempt) == ("new", attempt)
        books.budgets.settle(admission, ProtocolError("The worker died."), 0.5)
    with pytest.raises(InvalidInput, match="run 5 times"):
        admit(books)
    assert counts(books) == (1, 1)
    assert books.budgets.spent("ann")["hour"].cpu_s == 0.5 * budgets.RUNS
    assert books.outcomes() == ["failed: ProtocolError"] * budgets.RUNS


def test_a_request_that_no_worker_took_is_not_charged(books: Books) -> None:
    admission = admit(books, per_hour=1)
    books.clock.now += 3600  # the charge goes back to where it was made
    books.budgets.settle(admission, LimitExceeded("The queue is full.", retry_after=1.0))
    books.clock.now -= 3600
    assert counts(books) == (0, 0)
    assert admit(books, per_hour=1).kind == "new"


def test_a_full_queue_is_no_failed_run(books: Books) -> None:
    books.budgets.settle(admit(books), KeyMismatch("Other keys."))
    for _ in range(budgets.RUNS + 1):
        books.budgets.settle(admit(books), LimitExceeded("The queue is full."))
    assert admit(books).attempt == 2
    assert counts(books) == (1, 1)


def test_an_older_attempt_can_not_settle_a_newer(books: Books) -> None:
    first = admit(books)
    books.budgets.settle(first, ProtocolError("The worker died."))
    second = admit(books)
    books.budgets.settle(first, b"late")
    assert admit(books).kind == "running"
    books.budgets.settle(second, b"reply")
    assert admit(books).reply == b"reply"


def test_replies_are_kept_for_a_time_and_within_bounds(books: Books) -> None:
    for number in range(4):
        books.clock.now = NOON + number
        books.budgets.settle(admit(books, number), bytes(30))
    assert [admit(books, number).kind for number in (1, 2, 3)] == ["replay"] * 3
    with pytest.raises(InvalidInput, match="no longer kept"):
        admit(books, 0)  # made room for the last
    books.budgets.settle(admit(books, 4), bytes(101))
    with pytest.raises(InvalidInput, match="no longer kept"):
        admit(books, 4)  # larger than all that is kept
    books.clock.now = NOON + 603
    with pytest.raises(InvalidInput, match="no longer kept"):
        admit(books, 3)
    books.budgets.sweep()
    with books.database.reading() as query:
        assert query.one("SELECT COUNT(*) FROM replies") == (0,)


def test_old_requests_are_forgotten_with_their_counts(books: Books, store: Path) -> None:
    books.budgets.settle(admit(books, 0), b"reply")
    books.clock.now += 9 * 86400
    running = admit(books, 1)
    books.budgets.sweep()
    with books.database.reading() as query:
        assert query.all("SELECT id FROM requests") == [(request_id(1),)]
        assert len(query.all("SELECT start FROM usage")) == 2
    books.budgets.settle(running, b"reply")
    assert len(books.outcomes()) == 2  # the log forgets nothing


def test_what_is_older_than_a_week_goes_by_whole_days(books: Books, store: Path, url: str | None) -> None:
    times = [NOON + 3600 * hours for hours in range(0, 12 * 24, 7)]
    for number, books.clock.now in enumerate(times):
        books.budgets.settle(admit(books, number), b"reply")
    for _ in range(6):
        books.clock.now += 5 * 3600
        books.budgets.sweep()
        assert checkup.problems(store, url) == []
        with books.database.reading() as query:
            ages = [books.clock.now - row[0] for row in query.all("SELECT charged FROM requests")]
        assert max(ages) < 8 * 86400
        assert sum(age <= 7 * 86400 for age in ages) == sum(books.clock.now - at <= 7 * 86400 for at in times)


def test_what_a_dead_server_left_is_interrupted_and_free(store: Path, url: str | None) -> None:
    dead = Books(store, url)
    admit(dead, 0)
    dead.budgets.settle(admit(dead, 1), b"reply")
    dead.database.close()  # and no more: as after a kill
    books = Books(store, url)
    if url is None:
        assert books.outcomes() == ["ok", "interrupted"]
    until = time.monotonic() + 30
    while (again := admit(books, 0)).kind == "running":  # PostgreSQL ends a session a moment after its client
        assert time.monotonic() < until
    assert (again.kind, again.attempt, admit(books, 1).reply) == ("new", 2, b"reply")
    books.budgets.settle(again, b"reply")
    assert counts(books) == (2, 2)
    books.database.close()
    assert checkup.problems(store, url) == []


def test_a_living_server_of_the_same_database_is_left_alone(store: Path, url: str | None, tmp_path: Path) -> None:
    if url is None:
        pytest.skip("the folder's lock keeps a second server away")
    first, second = Books(store, url), Books(tmp_path / "other", url)
    admission = admit(first)
    assert second.instance.bury() == 0
    assert admit(second).kind == "running"
    first.budgets.settle(admission, b"reply")
    assert admit(second).reply == b"reply"
    admit(second, 1)
    second.database.close()
    until = time.monotonic() + 30
    while not (buried := first.instance.bury()):  # PostgreSQL ends a session a moment after its client
        assert time.monotonic() < until
    assert buried == 1
    assert admit(first, 1).attempt == 2
    first.database.close()


def test_a_settlement_that_fails_leaves_a_request_that_can_be_run_again(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    admission = admit(books)
    with monkeypatch.context() as patch:
        patch.setattr(books.audit, "append", lambda *_: (_ for _ in ()).throw(LimitExceeded("The disk is full.")))
        with pytest.raises(LimitExceeded):
            books.budgets.settle(admission, b"reply", 1.0)
        with pytest.raises(LimitExceeded):
            books.budgets.admit(account(per_day=0), "digits", KEY, request_id(9), DIGEST)
    assert books.budgets.spent("ann")["hour"].cpu_s == 0
    again = admit(books)
    assert (again.kind, again.attempt) == ("new", 2)
    books.budgets.settle(again, b"reply")
    assert counts(books) == (1, 1)


def test_threads_share_a_budget_to_the_last_request(books: Books) -> None:
    kinds: list[str] = []

    def ask(offset: int) -> None:
        for number in range(10):
            try:
                admission = admit(books, offset + number, per_hour=23)
                books.budgets.settle(admission, b"reply")
                kinds.append(admission.kind)
            except LimitExceeded:
                kinds.append("refused")

    threads = [threading.Thread(target=ask, args=(100 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (kinds.count("new"), kinds.count("refused")) == (23, 17)
    assert counts(books) == (23, 23)


def test_threads_that_send_the_same_request_run_it_once(books: Books) -> None:
    together, kinds = threading.Barrier(6), list[str]()

    def ask() -> None:
        together.wait()
        kinds.append(admit(books).kind)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(kinds) == ["new"] + ["running"] * 5
    assert counts(books) == (1, 1)
