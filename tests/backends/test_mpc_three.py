"""Three computing parties under CrypTen: exact and as dear as counted; who learns what; failures; roles apart."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secure_infer.backends.mpc.backend import setup, unpack_halves
from secure_infer.backends.mpc.plan import Plan
from secure_infer.backends.parties.messages import unpack
from secure_infer.errors import BundleError, DecryptionError, ProtocolError, UsageError
from secure_infer.graph import Graph, Linear, Node, Polynomial, QuantRelu, Sign, TensorType, interpret
from secure_infer.graph.types import Integers
from secure_infer.wire import frame
from secure_infer.wire.transport import InProcess
from tests.strategies import EXACT_OPS, graphs, inputs_for

pytest.importorskip("crypten")

from secure_infer.backends.mpc.cost import cost
from secure_infer.backends.mpc.dealer import Dealer, pairwise_and
from secure_infer.backends.parties.seam import Setup
from secure_infer.backends.parties.session import PartyRole, Session
from secure_infer.backends.parties.streams import Stream
from tests.backends.mpc_networks import (
    BACKEND,
    CASES,
    TINY,
    VECTOR,
    alone,
    compiled,
    failures_of_all,
    ints,
    predict,
    run_all,
)

THREE = (0, 1, 2)


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    session = Session(setup("dealer", 30.0, 3))
    yield session
    session.close()


@pytest.mark.parametrize("name", CASES)
def test_an_operation_is_exact(session: Session, name: str) -> None:
    """And costs what its plan says; see `predict`."""
    graph = CASES[name]
    x = inputs_for(graph, 7, seed=7)
    assert np.array_equal(predict(session, compiled(graph, parties=3), x), interpret(graph, x))


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(graphs(EXACT_OPS | {"Polynomial"}), st.integers(1, 7), st.integers(0, 1000))
def test_a_network_is_exact(session: Session, graph: Graph, n: int, seed: int) -> None:
    x = inputs_for(graph, n, seed)
    assert np.array_equal(predict(session, compiled(graph, parties="3"), x), interpret(graph, x))


@pytest.mark.parametrize("bits", [7, 15, 31, 55])
def test_wide_accumulators_are_exact(session: Session, bits: int) -> None:
    big = 1 << (bits - 5)
    nodes = (
        Node("wide", Linear(ints(6, 5, low=-1, high=1) * big, ints(6)), ("input",)),
        Node("shifted", Polynomial(np.array([1, 1]), bits - 5), ("wide",)),
        Node("sign", Sign(ints(6) * 3), ("wide",)),
        Node("steps", QuantRelu(np.array([-3, -2, 0, 1, 3]) * big + 1), ("wide",)),
    )
    for output in ("shifted", "sign", "steps"):
        graph = Graph(VECTOR, nodes, output)
        x = inputs_for(graph, 7, bits)
        assert np.array_equal(predict(session, compiled(graph, parties=3), x), interpret(graph, x))


def test_the_dealer_deals_ahead_and_other_batches_do_not_disturb_it(session: Session) -> None:
    graph = alone(QuantRelu(np.arange(-6, 8, 2)), VECTOR)
    program = compiled(graph, parties=3)
    parts, plan = unpack_halves(program.servers)
    session.load(parts)
    roles, client = [PartyRole(session, party) for party in THREE], BACKEND.client(program.client)
    for n in (3, 3, 1, 3):
        x = inputs_for(graph, n, seed=n)
        y = client.decrypt(run_all(roles, client.encrypt(x, client.keygen())), client.keygen())
        assert np.array_equal(y, interpret(graph, x))
        assert roles[0].statistics["bytes_from_dealer"] == cost(plan, n).dealer_bytes
        assert roles[1].statistics["bytes_from_dealer"] == roles[2].statistics["bytes_from_dealer"] == 0
    assert set(session.measure()) == set(program.counts)


def test_a_plan_of_two_names_no_number_and_costs_a_round_less_an_activation() -> None:
    nodes = (
        Node("a", Linear(np.ones((128, 784), dtype=np.int64), np.zeros(128, dtype=np.int64)), ("input",)),
        Node("b", Sign(), ("a",)),
    )
    graph = Graph(TensorType((784,), 0, 255), nodes, "b")
    two, three = (unpack_halves(compiled(graph, parties=parties).servers)[1] for parties in (2, 3))
    assert json.loads(two.to_bytes()).keys() ^ json.loads(three.to_bytes()).keys() == {"parties"}
    assert (cost(two).rounds, cost(three).rounds) == (9, 10)
    assert cost(three).bytes > 2 * cost(two).bytes


# What is dealt and who learns it.


@pytest.mark.parametrize("kind", ["and", "mul", "own and", "bit", "product"])
def test_what_is_dealt_to_three_fits(kind: str) -> None:
    keys = [bytes([n]) * 32 for n in THREE]
    dealer, streams = Dealer([Stream(key) for key in keys]), [Stream(key) for key in keys]
    size = [3, 4]
    requests = {
        "and": {"sizes": [size, size]},
        "mul": {"sizes": [size, size]},
        "product": {"name": "w", "spec": {"map": "linear"}, "size": size},
    }
    if kind == "product":
        dealer.answer({"kind": "mask", "name": "w", "size": size})
        mask = streams[0].words(size)
    first = dealer.answer({"kind": kind, **requests.get(kind, {"size": size})})
    assert first is not None
    if kind in ("and", "mul"):
        a, b = zip(*((stream.words(size), stream.words(size)) for stream in streams), strict=True)
        parts = [first, *(stream.words(size) for stream in streams[1:])]
        if kind == "and":
            assert np.array_equal((a[0] ^ a[1] ^ a[2]) & (b[0] ^ b[1] ^ b[2]), parts[0] ^ parts[1] ^ parts[2])
        else:
            assert np.array_equal(sum(a) * sum(b), sum(parts))
    elif kind == "own and":
        a = [stream.words(size) for stream in streams]
        parts = [first, *(stream.words(size) for stream in streams[1:])]
        assert np.array_equal(pairwise_and(a), parts[0] ^ parts[1] ^ parts[2])
    elif kind == "bit":
        bits = streams[0].bits(size) ^ streams[1].bits(size) ^ streams[2].bits(size)
        assert np.array_equal(bits, first + streams[1].words(size) + streams[2].words(size))
    else:
        a = [stream.words(size) for stream in streams[1:]]
        parts = [first, *(stream.words([3, 3]) for stream in streams[1:])]
        assert np.array_equal(sum(a) @ mask.T, sum(parts))


def test_the_pairs_of_three_words_are_their_majority() -> None:
    bits = [np.array(column, dtype=np.int64) for column in zip(*itertools.product((0, 1), repeat=3), strict=True)]
    assert np.array_equal(pairwise_and(bits), (sum(bits) >= 2).astype(np.int64))


def test_the_guarantee_says_who_may_collude() -> None:
    guarantee = compiled(TINY, parties=3).guarantee
    assert guarantee.scheme.startswith("3-party")
    assert "any two of party 0, party 1 and party 2 together, or the dealer alone" in guarantee.adversary
    assert "the dealer with any one of them, or all three together, can read the input" in guarantee.trust[0]
    insecure = compiled(TINY, parties=3, provider="first-party", insecure_dev=True).guarantee
    assert insecure.security_bits is None and "NOT SECURE" in insecure.trust[0]


def test_only_party_0_holds_weights() -> None:
    program = compiled(TINY, parties=3)
    assert [len(frame.unpack(half, "mpc-server").parts) for half in program.servers] == [3, 1, 1]
    whole = frame.unpack(program.servers[0], "mpc-server")
    with pytest.raises(BundleError):
        BACKEND.party_half(frame.pack("mpc-server", whole.parts, {"party": 2}), 2)


def recorded(folder: Path, graph: Graph, x: Integers) -> tuple[list[Integers], dict[str, bytes]]:
    """Shares of `x`, and what parties told each other when a model was loaded and in two runs on these shares."""
    program = compiled(graph, parties=3)
    client = BACKEND.client(program.client)
    messages = client.encrypt(x, client.keygen())
    session = Session(Setup("tests.backends.recording_party", 30.0, settings={"folder": str(folder)}, parties=3))
    try:
        session.load(unpack_halves(program.servers)[0])
        for _ in range(2):
            replies = run_all([PartyRole(session, party) for party in THREE], messages)
            assert np.array_equal(client.decrypt(replies, client.keygen()), interpret(graph, x))
    finally:
        session.close()
    shares = [
        unpack(m, "mpc-share", unpack_halves(program.servers)[1].model, i, x.shape[1:]).values
        for i, m in enumerate(messages)
    ]
    return shares, {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_uniform(data: bytes) -> None:
    """Each byte value is equally frequent: chi-square with 255 degrees of freedom, 6 sigma."""
    frequencies, expected = np.bincount(np.frombuffer(data, np.uint8), minlength=256), len(data) / 256
    assert len(data) > 10_000
    assert abs(((frequencies - expected) ** 2 / expected).sum() - 255) < 6 * np.sqrt(2 * 255)


def test_masked_inputs_and_weights_tell_no_coalition_of_two_anything(tmp_path: Path) -> None:
    """What a coalition makes of a masked share with all that it knows is uniform, though input and weights are not."""
    graph = alone(Linear(np.ones((8, 512), dtype=np.int64), np.zeros(8, dtype=np.int64)), TensorType((512,), -8, 7))
    shares, told = recorded(tmp_path, graph, np.full((32, 512), 7))
    masks = [
        [
            shares[party].astype(np.int16).reshape(-1) - np.frombuffer(told[f"{run}-{party}-0"], np.int16)
            for run in (0, 1)
        ]
        for party in (1, 2)
    ]
    for mask in (masks[0][0], masks[1][0], masks[0][0] - masks[1][0], *(one - other for one, other in masks)):
        assert_uniform(mask.tobytes())
    assert told["load-0-1"] == told["load-0-2"]
    assert_uniform(told["load-0-1"][32:])  # what follows the digest of the plan: the weights


def test_opened_bits_are_masked_afresh_in_every_run(tmp_path: Path) -> None:
    """What the parties open differs between two runs on the same shares as uniform bytes do."""
    graph = alone(Sign(np.zeros(512, dtype=np.int64)), TensorType((512,), -8, 7))
    _, told = recorded(tmp_path, graph, np.full((32, 512), -8))
    for one, other in itertools.permutations(THREE, 2):
        first, second = (np.frombuffer(told[f"{run}-{one}-{other}"], np.uint8) for run in (0, 1))
        assert_uniform((first ^ second).tobytes())


# Bad input and failures.


def test_wrong_numbers_of_anything_are_refused(session: Session) -> None:
    for parties in (1, 4, 2.5, True, "two", None):
        with pytest.raises(UsageError, match="Expected 2 or 3"):
            compiled(TINY, parties=parties)
    program, two = compiled(TINY, parties=3), compiled(TINY)
    for halves, said in (
        (program.servers[:2], "Expected 3 server halves, got 2"),
        ([*two.servers, program.servers[2]], "Expected 2 server halves, got 3"),
        ([*program.servers[:2], program.servers[1]], "not the half of party 2"),
        ([*program.servers[:2], compiled(TINY, parties=3).servers[2]], "different models"),
    ):
        with pytest.raises(BundleError, match=said):
            BACKEND.servers(halves)
    plan = json.loads(frame.unpack(program.servers[1], "mpc-server").parts[0])
    for parties in (1, 4, "3", True):
        with pytest.raises(BundleError):
            Plan.from_bytes(json.dumps({**plan, "parties": parties}).encode())
    session.load(unpack_halves(program.servers)[0])
    client, x = BACKEND.client(program.client), inputs_for(TINY, 2)
    roles = [PartyRole(session, party) for party in THREE]
    transport = InProcess(b"", roles)
    for messages in (client.encrypt(x, client.keygen())[:2], BACKEND.client(two.client).encrypt(x, client.keygen())):
        with pytest.raises(UsageError, match="3 server parties"):
            transport.infer(messages, transport.upload(b""))
    replies = run_all(roles, client.encrypt(x, client.keygen()))
    for wrong in (replies[:2], [*replies, replies[2]], [replies[0], replies[2], replies[1]]):
        with pytest.raises(DecryptionError):
            client.decrypt(wrong, client.keygen())


def test_a_bad_share_at_one_party_leaves_all_usable(session: Session) -> None:
    program = compiled(TINY, parties=3)
    session.load(unpack_halves(program.servers)[0])
    client, x = BACKEND.client(program.client), inputs_for(TINY, 2)
    roles = [PartyRole(session, party) for party in THREE]
    for party in THREE:
        messages = list(client.encrypt(x, client.keygen()))
        messages[party] = messages[party - 1]
        failures = failures_of_all(roles, messages)
        assert isinstance(failures.pop(party), BundleError)
        assert all(f"party {party} refused its share" in str(failure) for failure in failures)
    messages = client.encrypt(x, client.keygen())
    assert np.array_equal(client.decrypt(run_all(roles, messages), client.keygen()), interpret(TINY, x))


LONG = alone(QuantRelu(np.arange(-6, 8, 2)), TensorType((600,), -8, 7))
VICTIMS = ("party 2", "party 0", "party 1", "dealer")


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.full) for seed in range(1, 20))])
def test_a_kill_at_any_moment_is_a_clear_error_in_time(seed: int) -> None:
    """Any of the four processes is killed while queries run: each query ends, right or with a named role."""
    rng, timeout = random.Random(seed), 4.0
    program = compiled(LONG, timeout=timeout, parties=3)
    roles = BACKEND.servers(program.servers)
    client, x = BACKEND.client(program.client), inputs_for(LONG, 100)
    victim, processes = VICTIMS[seed % 4], dict(roles[0]._session.processes)
    try:
        killer = threading.Timer(rng.uniform(0, 1.5), os.kill, (processes[victim], signal.SIGKILL))
        killer.start()
        failures: list[BaseException | None] = []
        while not any(failures):
            started = time.monotonic()
            with ThreadPoolExecutor(3) as threads:
                messages = client.encrypt(x, client.keygen())
                runs = [threads.submit(role.run, m, b"") for role, m in zip(roles, messages, strict=True)]
            failures = [run.exception() for run in runs]
            assert time.monotonic() - started < 3 * timeout
            if not any(failures):
                assert np.array_equal(
                    client.decrypt([run.result() for run in runs], client.keygen()), interpret(LONG, x)
                )
        killer.join()
        assert all(isinstance(failure, ProtocolError) for failure in failures if failure)
        assert victim in " ".join(map(str, failures))
    finally:
        roles[0].close()
    for process in processes.values():
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
