"""Two servers and a dealer as processes with TLS: exact, at the cost of the plan, and clear when a role is gone."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from secure_infer.backends.base import Program
from secure_infer.backends.mpc_fss import MpcFssBackend
from secure_infer.backends.mpc_fss.backend import unpack_halves
from secure_infer.backends.mpc_fss.cost import cost
from secure_infer.backends.parties.session import PartyRole
from secure_infer.errors import BundleError, KeyMismatch, ProtocolError, SecureInferError, UsageError
from secure_infer.graph import Graph, Linear, Max, Node, QuantRelu, Reshape, Sign, TensorType, interpret
from secure_infer.wire import frame

BACKEND = MpcFssBackend()
RNG = np.random.default_rng(5)
NOTHING = np.zeros(1, dtype=np.int64)
TIMEOUT = 10.0
GRAPH = Graph(
    TensorType((12,), -8, 7),
    (
        Node("a", Linear(RNG.integers(-3, 4, (16, 12)), RNG.integers(-9, 9, 16)), ("input",)),
        Node("b", QuantRelu(np.sort(RNG.integers(-40, 60, (16, 3)), axis=1)), ("a",)),
        Node("c", Reshape((1, 4, 4)), ("b",)),
        Node("d", Max((2, 2), (2, 2)), ("c",)),
        Node("e", Reshape((4,)), ("d",)),
        Node("f", Linear(RNG.integers(-3, 4, (3, 4)), RNG.integers(-9, 9, 3)), ("e",)),
    ),
    "f",
)


def compiled(**options: object) -> Program:
    return BACKEND.compile(GRAPH, np.zeros((1, 12), dtype=np.int64), {"timeout": TIMEOUT, "ahead": 4, **options})


def inputs(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-8, 8, (n, 12))


def run_both(roles: Sequence[PartyRole], messages: Sequence[bytes]) -> list[bytes | BaseException]:
    with ThreadPoolExecutor(2) as threads:
        runs = [threads.submit(role.run, message, b"") for role, message in zip(roles, messages, strict=True)]
    return [run.exception() or run.result() for run in runs]


def ask(program: Program, roles: Sequence[PartyRole], x: np.ndarray) -> np.ndarray:
    client = BACKEND.client(program.client)
    replies = run_both(roles, client.encrypt(x, client.keygen()))
    for reply in replies:
        if isinstance(reply, BaseException):
            raise reply
    return np.asarray(client.decrypt(replies, client.keygen()))


@pytest.fixture(scope="module", params=["outsourced", "owner"])
def started(request: pytest.FixtureRequest) -> Iterator[tuple[Program, Sequence[PartyRole]]]:
    program = compiled(mode=request.param)
    roles = BACKEND.servers(program.servers)
    yield program, roles
    roles[0].close()


def test_batches_are_exact_at_the_cost_of_the_plan(started: tuple[Program, Sequence[PartyRole]]) -> None:
    """A batch larger than the stock has more dealt at once."""
    program, roles = started
    _, plan = unpack_halves(program.servers)
    used: list[int] = []
    for seed, n in enumerate((1, 1, 3, 9, 1, 2)):
        x = inputs(n, seed)
        assert np.array_equal(ask(program, roles, x), interpret(GRAPH, x))
        expected = cost(plan, n)
        assert [role.statistics["rounds"] for role in roles] == [expected.rounds] * 2
        assert sum(role.statistics["bytes_sent"] for role in roles) == expected.bytes
        assert [role.statistics["first_item"] for role in roles] == [sum(used)] * 2
        used.append(n)


def test_the_second_large_batch_finds_its_correlations_in_stock(
    started: tuple[Program, Sequence[PartyRole]],
) -> None:
    program, roles = started
    dealt = []
    for seed in (0, 1):
        x = inputs(20, seed)
        assert np.array_equal(ask(program, roles, x), interpret(GRAPH, x))
        dealt.append(roles[1].statistics["bytes_from_dealer"])
    assert dealt[0] > dealt[1] == 0


def test_shares_that_do_not_fit_are_refused(started: tuple[Program, Sequence[PartyRole]]) -> None:
    program, roles = started
    client = BACKEND.client(program.client)
    first, second = client.encrypt(inputs(1), client.keygen())
    other = frame.unpack(first, "mpc-share")
    short = frame.pack("mpc-share", [other.parts[0][:-8]], other.meta)
    foreign = frame.pack("mpc-share", other.parts, {**other.meta, "model": "f" * 32})
    for bad, kind in ((second, BundleError), (short, BundleError), (foreign, KeyMismatch), (b"", BundleError)):
        assert all(isinstance(each, kind) for each in run_both(roles[:1], [bad]))
    started = time.monotonic()
    for bad, kind in ((short, BundleError), (foreign, KeyMismatch)):
        refused, told = run_both(roles, [bad, second])
        assert isinstance(refused, kind)
        assert isinstance(told, ProtocolError)
        assert "party 0 refused its share" in str(told)
    assert time.monotonic() - started < TIMEOUT / 2
    x = inputs(2)
    assert np.array_equal(ask(program, roles, x), interpret(GRAPH, x))


def test_a_replayed_query_spends_fresh_correlations(started: tuple[Program, Sequence[PartyRole]]) -> None:
    program, roles = started
    client = BACKEND.client(program.client)
    messages = client.encrypt(inputs(1), client.keygen())
    items, replies = [], []
    for _ in range(2):
        replies.append(run_both(roles, messages))
        items.append(roles[0].statistics["first_item"])
    assert items[0] < items[1]
    assert replies[0][0] != replies[1][0]
    with pytest.raises(SecureInferError, match="different runs"):
        client.decrypt([replies[0][0], replies[1][1]], client.keygen())


def kill_one(name: str, delay: float, seed: int) -> None:
    """Kill a process in the middle of queries: both parties say so in time, or have answered; all is over after it."""
    program = compiled()
    roles = BACKEND.servers(program.servers)
    session = roles[0]._session
    x = inputs(2, seed)
    killer = threading.Timer(delay, os.kill, (session.processes[name], signal.SIGKILL))
    try:
        killer.start()
        started, used, ended = time.monotonic(), [], False
        for _ in range(400):
            client = BACKEND.client(program.client)
            replies = run_both(roles, client.encrypt(x, client.keygen()))
            failures = [reply for reply in replies if isinstance(reply, BaseException)]
            if failures:
                assert all(isinstance(failure, ProtocolError) for failure in failures)
                assert all(failure.problems for failure in failures)
                ended = True
                break
            assert np.array_equal(client.decrypt(replies, client.keygen()), interpret(GRAPH, x))
            assert roles[0].statistics["first_item"] == roles[1].statistics["first_item"]
            used.append(roles[0].statistics["first_item"])
        assert ended
        assert time.monotonic() - started < delay + 3 * TIMEOUT
        assert used == sorted(set(used))
    finally:
        killer.cancel()
        session.close()


@pytest.mark.parametrize("name", ["party 0", "party 1", "dealer"])
def test_a_role_that_is_killed_ends_the_session_clearly(name: str) -> None:
    kill_one(name, 0.1, seed=0)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(50))
def test_roles_that_are_killed_at_random_points(seed: int) -> None:
    draw = random.Random(seed)
    kill_one(draw.choice(["party 0", "party 1", "dealer"]), draw.random() * 0.3, seed)


def test_an_exhausted_stock_says_how_to_have_more_dealt() -> None:
    program = compiled()
    roles = BACKEND.servers(program.servers)
    try:
        os.kill(roles[0]._session.processes["dealer"], signal.SIGKILL)
        x = inputs(1)
        assert np.array_equal(ask(program, roles, x), interpret(GRAPH, x))  # from what is in stock
        with pytest.raises(ProtocolError, match="exhausted") as caught:
            ask(program, roles, inputs(9))
        assert "--role dealer" in str(caught.value)
    finally:
        roles[0].close()


def test_halves_that_are_not_ours_are_refused() -> None:
    program, other = compiled(), compiled(mode="owner")
    plan, part = frame.unpack(program.servers[1], "mpc-fss-server").parts
    for halves in (
        [],
        program.servers[::-1],
        [program.servers[0], other.servers[1]],
        [program.servers[0], frame.pack("mpc-fss-server", [plan, part[:-2]], {"party": 1})],
        [program.client, program.client],
    ):
        with pytest.raises(BundleError):
            BACKEND.servers(halves)


def test_no_half_alone_holds_the_weights() -> None:
    """Compiled twice, the halves have no word in common but the plan's; a half of party 0 is a key."""
    one, two = (frame.unpack(compiled().servers[1], "mpc-fss-server").parts[1] for _ in (0, 1))
    same = np.count_nonzero(np.frombuffer(one, np.uint16) == np.frombuffer(two, np.uint16))
    assert same < 5
    assert len(frame.unpack(compiled().servers[0], "mpc-fss-server").parts[1]) == 32
    assert frame.unpack(compiled(mode="owner").servers[1], "mpc-fss-server").parts[1] == b""


def test_options_are_checked() -> None:
    for options in (
        {"mode": "both"},
        {"ahead": 0},
        {"ahead": "many"},
        {"timeout": 0},
        {"timeout": "soon"},
        {"x": 1},
        {"fuse": -1},
        {"round_trip": -1},
        {"round_trip": "far"},
    ):
        with pytest.raises(UsageError):
            compiled(**options)
    assert "neither" in BACKEND.options["mode"]
    assert "do not collude" in str(compiled().guarantee)


def test_a_network_of_signs_takes_one_round_each() -> None:
    nodes = (Node("a", Sign(), ("input",)), Node("b", Sign(np.ones(1, dtype=np.int64)), ("a",)))
    program = BACKEND.compile(Graph(TensorType((12,), -8, 7), nodes, "b"), np.zeros((1, 12), np.int64), {})
    assert program.counts["rounds"] == 2
