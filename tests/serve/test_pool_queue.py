"""The queue before the workers: fair between clients, bounded, and fond of workers that have the keys hot."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_infer.errors import LimitExceeded
from secure_infer.serve.base import Job
from secure_infer.serve.pool_queue import PASSES, FairQueue, Ticket


def ticket(client: str, key: str = "") -> Ticket:
    loop = asyncio.new_event_loop()
    loop.close()
    return Ticket(Job("m", client, client.encode(), key), asyncio.Future(loop=loop))


def filled(tickets: Sequence[Ticket], workers: int = 1) -> FairQueue:
    queue = FairQueue(len(tickets), workers)
    for each in tickets:
        queue.put(each, 1.0)
    return queue


def emptied(queue: FairQueue, free: dict[int, Collection[str]], busy: Collection[Collection[str]] = ()) -> list[Ticket]:
    taken = []
    while (found := queue.take(free, busy)) is not None:
        taken.append(found[0])
    return taken


def test_clients_take_turns_however_many_requests_one_of_them_sends() -> None:
    queue = filled([ticket(client) for client in "aaaabbc"])
    assert "".join(each.job.client for each in emptied(queue, {0: ()})) == "abcabaa"
    assert not len(queue)


def test_a_full_queue_says_when_to_ask_again() -> None:
    queue = filled([ticket("a"), ticket("b")])
    with pytest.raises(LimitExceeded, match="2 requests are waiting") as caught:
        queue.put(ticket("c"), 7.5)
    assert caught.value.retry_after == 7.5


def test_what_is_discarded_is_not_run() -> None:
    tickets = [ticket("a"), ticket("a"), ticket("b")]
    queue = filled(tickets)
    queue.discard(tickets[0])
    queue.discard(tickets[0])
    assert emptied(queue, {0: ()}) == [tickets[1], tickets[2]]


def test_a_request_goes_to_the_worker_that_has_its_keys_hot() -> None:
    queue = filled([ticket("a", "x"), ticket("b", "y"), ticket("c", "new")], workers=3)
    free = {0: {"z", "w"}, 1: {"y"}, 2: {"x", "v"}}
    taken = [queue.take(free, []) for _ in range(3)]
    assert [(each[0].job.key_name, each[1]) for each in taken if each] == [("x", 2), ("y", 1), ("new", 1)]


def test_hot_keys_come_first_then_new_ones_then_those_of_a_busy_worker() -> None:
    queue = filled([ticket("a", "elsewhere"), ticket("b", "new"), ticket("c", "here")])
    assert [each.job.key_name for each in emptied(queue, {0: {"here"}}, [{"elsewhere"}])] == [
        "here",
        "new",
        "elsewhere",
    ]


def test_nobody_is_passed_over_for_ever() -> None:
    queue = FairQueue(100, 1)
    last = ticket("cold", "elsewhere")
    queue.put(last, 1.0)
    for turn in range(2 * PASSES):
        queue.put(ticket(f"hot {turn}", "here"), 1.0)
    order = emptied(queue, {0: {"here"}}, [{"elsewhere"}])
    assert order.index(last) == PASSES


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["", "x", "y", "z"])), max_size=30),
    st.lists(st.sets(st.sampled_from("xyz")), min_size=1, max_size=3),
)
def test_everything_is_run_once_and_in_order_within_a_client(
    requests: list[tuple[str, str]], hot: list[set[str]]
) -> None:
    tickets = [ticket(client, key) for client, key in requests]
    taken = emptied(filled(tickets, len(hot)), dict(enumerate(hot[1:])) or {0: set()}, hot[:1])
    assert len(taken) == len(tickets)
    for client in "abc":
        mine = [each for each in tickets if each.job.client == client]
        assert [each for each in taken if each.job.client == client] == mine
