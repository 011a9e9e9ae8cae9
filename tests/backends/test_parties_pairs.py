"""Both shares of a query are there before either party works, and queries run one after another."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from secure_infer.backends.parties.pairs import Pairs
from secure_infer.errors import BundleError, Problem, ProtocolError


class Bench:
    """Pairs whose parties note what they are given."""

    def __init__(self, seconds: float = 5.0) -> None:
        self.gone: ProtocolError | None = None
        self.pairs, self.given = Pairs(seconds, 5.0, self.alive), list[tuple[int, bytes]]()
        self.threads = ThreadPoolExecutor(8)

    def alive(self) -> None:
        if self.gone:
            raise self.gone

    def bring(self, session: str, party: int, samples: int = 1) -> Future[None]:
        message = f"{session} {party}".encode()
        start = lambda to, data: self.given.append((to, data))  # noqa: E731 - what a worker is
        return self.threads.submit(self._work, session, party, samples, message, start)

    def _work(self, session: str, *given: Any) -> None:
        try:
            self.pairs.begin(session, *given)()
        except ProtocolError:
            self.pairs.end(session)
            raise


def told(run: Future[None]) -> str:
    with pytest.raises(ProtocolError) as caught:
        run.result(10)
    return str(caught.value)


def test_nobody_works_before_both_shares_are_there() -> None:
    bench = Bench()
    first = bench.bring("a", 1)
    time.sleep(0.05)
    assert bench.given == []
    assert not first.done()
    bench.bring("a", 0).result(5)
    first.result(5)
    assert sorted(bench.given) == [(0, b"a 0"), (1, b"a 1")]


def test_queries_run_one_after_another() -> None:
    bench = Bench()
    for run in [bench.bring("a", 0), bench.bring("a", 1)]:
        run.result(5)
    later = [bench.bring("b", 0), bench.bring("b", 1)]
    bench.pairs.end("a")
    time.sleep(0.05)
    assert len(bench.given) == 2
    bench.pairs.end("a")
    for run in later:
        run.result(5)
    assert len(bench.given) == 4


@pytest.mark.parametrize("early", [False, True])
def test_a_refused_share_is_told_to_the_holder_of_the_other(early: bool) -> None:
    bench, why = Bench(60.0), BundleError("The share can't be used.", [Problem("share", "It is short.", "mend it.")])
    if early:
        bench.pairs.refuse("a", 0, why)
    run = bench.bring("a", 1)
    threading.Timer(0.05, lambda: None if early else bench.pairs.refuse("a", 0, why)).start()
    assert "party 0 refused its share" in (text := told(run))
    assert "It is short." in text
    assert bench.given == []
    for run in [bench.bring("b", 0), bench.bring("b", 1)]:
        run.result(5)


def test_shares_that_do_not_fit_each_other_or_come_alone() -> None:
    bench = Bench(0.3)
    assert all("another shape" in told(run) for run in [bench.bring("a", 0, 1), bench.bring("a", 1, 2)])
    assert "party 1 was not given its share within 0.3 s" in told(bench.bring("b", 0))
    assert bench.given == []
    for run in [bench.bring("b", 0), bench.bring("b", 1)]:
        run.result(5)


def test_the_end_of_a_process_is_noticed_while_waiting() -> None:
    bench = Bench(60.0)
    run = bench.bring("a", 0)
    bench.gone = ProtocolError("The party 1 is gone.")
    assert "party 1 is gone" in told(run)
