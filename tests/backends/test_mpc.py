"""The two-party protocol: exact on every operation, between real processes; and what it refuses, survives and hides."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secure_infer.backends.base import Program
from secure_infer.backends.mpc import MpcBackend
from secure_infer.backends.mpc.backend import setup, unpack_halves
from secure_infer.backends.mpc.plan import FIRST_PARTY, Plan
from secure_infer.backends.parties.messages import Share, unpack
from secure_infer.errors import (
    BundleError,
    DecryptionError,
    InvalidInput,
    KeyMismatch,
    MissingExtra,
    ProtocolError,
    UnsupportedNetwork,
    UsageError,
)
from secure_infer.graph import (
    OPS,
    Add,
    Conv2d,
    Graph,
    Linear,
    Lookup,
    Max,
    Node,
    Polynomial,
    QuantRelu,
    Reshape,
    Sign,
    Sum,
    TensorType,
    interpret,
)
from secure_infer.graph.types import Integers
from secure_infer.wire import frame
from tests.strategies import EXACT_OPS, graphs, inputs_for

pytest.importorskip("crypten")

from secure_infer.backends.mpc.cost import cost
from secure_infer.backends.mpc.dealer import Dealer
from secure_infer.backends.mpc.kernels import bilinear, matmul
from secure_infer.backends.parties.channel import Channel, Gate, new_identity
from secure_infer.backends.parties.seam import DEALER_NAME, PARTY_NAMES
from secure_infer.backends.parties.session import PartyRole, Session
from secure_infer.backends.parties.streams import Stream

BACKEND = MpcBackend()
RNG = np.random.default_rng(7)
VECTOR = TensorType((5,), -8, 7)
IMAGE = TensorType((4, 5, 6), -3, 3)


def ints(*shape: int, low: int = -9, high: int = 9) -> Integers:
    return RNG.integers(low, high + 1, shape)


def compiled(graph: Graph, **options: object) -> Program:
    return BACKEND.compile(graph, inputs_for(graph, 2), options)


def run_both(roles: list[PartyRole], messages: tuple[bytes, ...]) -> list[bytes]:
    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(lambda pair: pair[0].run(pair[1], b""), zip(roles, messages, strict=True)))


def failures_of_both(roles: list[PartyRole], messages: Sequence[bytes]) -> list[BaseException | None]:
    with ThreadPoolExecutor(2) as threads:
        futures = [threads.submit(role.run, message, b"") for role, message in zip(roles, messages, strict=True)]
    return [future.exception() for future in futures]


def predict(session: Session, program: Program, x: Integers) -> Integers:
    """Load, run, and check that the run cost what the plan says."""
    parts, plan = unpack_halves(program.servers)
    session.load(parts)
    roles = [PartyRole(session, party) for party in (0, 1)]
    client = BACKEND.client(program.client)
    y = client.decrypt(run_both(roles, client.encrypt(x, client.keygen())), client.keygen())
    expected = cost(plan, len(x))
    assert [role.statistics["rounds"] for role in roles] == [expected.rounds] * 2
    assert sum(role.statistics["bytes_sent"] for role in roles) == expected.bytes
    return y


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    session = Session(setup("dealer", 30.0))
    yield session
    session.close()


def alone(op: object, kind: TensorType) -> Graph:
    return Graph(kind, (Node("op", op, ("input",) * op.arity),), "op")


TINY = alone(Linear(ints(3, 5), ints(3)), VECTOR)

CASES = {
    "linear": alone(Linear(ints(3, 5), ints(3)), VECTOR),
    "linear, one output": alone(Linear(ints(1, 5), ints(1)), VECTOR),
    "conv": alone(Conv2d(ints(3, 4, 2, 3), ints(3)), IMAGE),
    "conv, all parameters": alone(Conv2d(ints(6, 2, 3, 2), ints(6), (1.0,), (2, 1), (1, 2), (1, 2), 2), IMAGE),
    "depthwise conv": alone(Conv2d(ints(4, 1, 3, 3), ints(4), (1.0,), (1, 2), (1, 1), groups=4), IMAGE),
    "add": alone(Add((3, 3)), VECTOR),
    "sum": alone(Sum((2, 3), (1, 2), (1, 1), 6), IMAGE),
    "max": alone(Max((2, 2), (2, 2)), IMAGE),
    "max, odd window": alone(Max((3, 1), (1, 2), (1, 0)), IMAGE),
    "max of one": alone(Max((1, 1), (1, 1)), IMAGE),
    "max, padded, values above zero": alone(Max((3, 3), (2, 2), (1, 1)), TensorType((1, 5, 5), 3, 90)),
    "max, padded, values below zero": alone(Max((3, 3), (2, 2), (1, 1)), TensorType((1, 5, 5), -300, -3)),
    "reshape": alone(Reshape((2, 60)), IMAGE),
    "sign": alone(Sign(ints(1)), VECTOR),
    "sign by channel": alone(Sign(ints(4, low=-3, high=3)), IMAGE),
    "sign, thresholds out of range": alone(Sign(np.array([-(2**63), 2**63 - 1, -8, 7, 8])), VECTOR),
    "relu": alone(QuantRelu(np.arange(-6, 8, 2), low=-3), VECTOR),
    "relu by channel": alone(QuantRelu(np.sort(ints(4, 3, low=-3, high=3)), low=1), IMAGE),
    "relu, equal thresholds": alone(QuantRelu(np.array([0, 0, 2])), VECTOR),
    "relu of no steps": alone(QuantRelu(np.zeros(0, dtype=np.int64), low=-4), VECTOR),
    "lookup": alone(Lookup(ints(16), -8), VECTOR),
    "lookup by channel": alone(Lookup(ints(4, 9), -4), IMAGE),
    "lookup of one": alone(Lookup(np.array([-7]), 2), TensorType((3,), 2, 2)),
    "polynomial": alone(Polynomial(np.array([5, -3, 2, 7]), 3), VECTOR),
    "polynomial by channel": alone(Polynomial(ints(4, 3), 2), IMAGE),
    "polynomial of degree 5, no shift": alone(Polynomial(ints(6)), VECTOR),
    "constant polynomial": alone(Polynomial(np.array([-5]), 1), VECTOR),
    "line": alone(Polynomial(np.array([1, -2]), 1), VECTOR),
    "shift of 62": alone(Polynomial(np.array([1, 2**55]), 62), VECTOR),
}


def test_every_operation_has_a_case() -> None:
    assert {graph.nodes[0].kind for graph in CASES.values()} == set(OPS) == set(BACKEND.ops)


@pytest.mark.parametrize("n", [1, 7])
@pytest.mark.parametrize("name", CASES)
def test_an_operation_is_exact(session: Session, name: str, n: int) -> None:
    graph = CASES[name]
    x = inputs_for(graph, n, seed=n)
    y = predict(session, compiled(graph), x)
    assert y.dtype == np.int64
    assert np.array_equal(y, interpret(graph, x))


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(graphs(EXACT_OPS | {"Polynomial"}), st.integers(1, 7), st.integers(0, 1000))
def test_a_network_is_exact(session: Session, graph: Graph, n: int, seed: int) -> None:
    x = inputs_for(graph, n, seed)
    assert np.array_equal(predict(session, compiled(graph), x), interpret(graph, x))


@pytest.mark.parametrize("bits", [7, 8, 15, 16, 31, 32, 40, 55])
def test_wide_accumulators_are_exact(session: Session, bits: int) -> None:
    big = 1 << (bits - 5)
    nodes = (
        Node("wide", Linear(ints(6, 5, low=-1, high=1) * big, ints(6)), ("input",)),
        Node("kept", Polynomial(np.array([0, 1])), ("wide",)),
        Node("sign", Sign(ints(6) * 3), ("wide",)),
        Node("steps", QuantRelu(np.array([-3, -2, 0, 1, 3]) * big + 1), ("wide",)),
        Node("small", Linear(ints(6, 6), ints(6)), ("sign",)),
        Node("sum", Add(), ("small", "steps")),
        Node("all", Add(), ("sum", "kept")),
    )
    for output in ("wide", "sign", "steps", "all"):
        graph = Graph(VECTOR, nodes, output)
        x = inputs_for(graph, 7, bits)
        assert np.array_equal(predict(session, compiled(graph), x), interpret(graph, x))


def test_the_same_model_again_and_other_batches(session: Session) -> None:
    """Later runs have their randomness dealt ahead; a change of batch size must not disturb that."""
    graph = alone(QuantRelu(np.arange(-6, 8, 2)), VECTOR)
    program = compiled(graph)
    parts, plan = unpack_halves(program.servers)
    session.load(parts)
    roles = [PartyRole(session, party) for party in (0, 1)]
    client = BACKEND.client(program.client)
    for n in (3, 3, 1, 3, 1, 7):
        x = inputs_for(graph, n, seed=n)
        y = client.decrypt(run_both(roles, client.encrypt(x, client.keygen())), client.keygen())
        assert np.array_equal(y, interpret(graph, x))
        assert roles[0].statistics["rounds"] == cost(plan, n).rounds


def test_queries_at_the_same_time_do_not_get_in_each_others_way(session: Session) -> None:
    """Callers interleave so that party 0 is asked in one order and party 1 in another."""
    graph = CASES["relu"]
    program = compiled(graph)
    session.load(unpack_halves(program.servers)[0])
    roles = [PartyRole(session, party) for party in (0, 1)]
    client = BACKEND.client(program.client)
    inputs = [inputs_for(graph, n, seed=n) for n in (1, 2, 3, 4)]
    messages = [client.encrypt(x, client.keygen()) for x in inputs]
    with ThreadPoolExecutor(8) as threads:
        first = [threads.submit(roles[0].run, message[0], b"") for message in messages]
        second = [threads.submit(roles[1].run, message[1], b"") for message in reversed(messages)][::-1]
        for x, *replies in zip(inputs, first, second, strict=True):
            y = client.decrypt([reply.result() for reply in replies], client.keygen())
            assert np.array_equal(y, interpret(graph, x))


def test_rounds_do_not_grow_with_batch_or_levels() -> None:
    few, many = (unpack_halves(compiled(alone(QuantRelu(np.arange(levels)), VECTOR)).servers)[1] for levels in (2, 15))
    assert cost(few, 1).rounds == cost(many, 100).rounds


def test_counts_and_primitives_share_their_keys(session: Session) -> None:
    program = compiled(CASES["relu"])
    measured = session.measure()
    assert set(measured) == set(program.counts)
    assert all(seconds > 0 for seconds in measured.values())


def test_simulate_is_the_interpreter() -> None:
    x = inputs_for(TINY, 3)
    assert np.array_equal(BACKEND.simulate(TINY, compiled(TINY), x, 0), interpret(TINY, x))


# What travels, and what it tells.


def test_shares_are_uniform_whatever_the_input() -> None:
    """Each byte value of each share is equally frequent: chi-square with 255 degrees of freedom, 6 sigma."""
    kind = TensorType((4096,), -8, 7)
    client = BACKEND.client(compiled(alone(Sign(), kind)).client)
    for value in (-8, 0, 7):
        x = np.full((2, 4096), value)
        first, second = (frame.unpack(message, "mpc-share").parts[0] for message in client.encrypt(x, client.keygen()))
        for share in (first, second):
            frequencies = np.bincount(np.frombuffer(share, dtype=np.uint8), minlength=256)
            expected = len(share) / 256
            assert abs(((frequencies - expected) ** 2 / expected).sum() - 255) < 6 * np.sqrt(2 * 255)
        total = np.frombuffer(first, dtype=np.int64) + np.frombuffer(second, dtype=np.int64)
        assert np.array_equal(total.reshape(x.shape), x)


def test_two_encryptions_of_one_input_share_nothing() -> None:
    client = BACKEND.client(compiled(TINY).client)
    x = inputs_for(TINY, 2)
    once, again = ([frame.unpack(m, "mpc-share") for m in client.encrypt(x, client.keygen())] for _ in range(2))
    for one, other in zip(once, again, strict=True):
        assert one.meta["session"] != other.meta["session"]
        assert not np.any(np.frombuffer(one.parts[0], np.int64) == np.frombuffer(other.parts[0], np.int64))


def test_replies_are_fresh_shares(session: Session) -> None:
    """Even a network that computes nothing returns shares that differ from those the client sent."""
    program = compiled(CASES["reshape"])
    parts, _ = unpack_halves(program.servers)
    session.load(parts)
    client = BACKEND.client(program.client)
    sent = client.encrypt(inputs_for(CASES["reshape"], 1), client.keygen())
    replies = run_both([PartyRole(session, party) for party in (0, 1)], sent)
    for message, reply in zip(sent, replies, strict=True):
        shares = [
            np.frombuffer(frame.unpack(data, kind).parts[0], np.int64)
            for data, kind in ((message, "mpc-share"), (reply, "mpc-reply"))
        ]
        assert not np.any(shares[0] == shares[1])


def test_the_half_of_party_1_does_not_depend_on_weights() -> None:
    """Two networks of one structure, with other weights, thresholds and tables, give one plan but for its name."""
    plans = []
    for seed in (0, 1):
        rng = np.random.default_rng(seed)
        signs = rng.permutation(np.tile([[1, -1]], 10).reshape(4, 5), axis=1)
        nodes = (
            Node("a", Linear(signs, np.zeros(4, dtype=np.int64)), ("input",)),
            Node("b", QuantRelu(np.sort(rng.integers(-9, 9, (4, 3)))), ("a",)),
            Node("c", Lookup(rng.integers(-5, 6, 4)), ("b",)),
            Node("d", Polynomial(rng.integers(-5, 6, 3), 2), ("c",)),
        )
        program = compiled(Graph(VECTOR, nodes, "d"))
        received = frame.unpack(program.servers[1], "mpc-server")
        assert len(received.parts) == 1
        plan = json.loads(received.parts[0])
        assert plan.pop("model") != ""
        plans.append(plan)
    assert plans[0] == plans[1]


def test_a_half_of_party_1_with_weights_is_refused() -> None:
    program = compiled(TINY)
    whole = frame.unpack(program.servers[0], "mpc-server")
    plan = json.loads(whole.parts[0])
    smuggled = [frame.pack("mpc-server", whole.parts, {"party": 1})]
    for change in (
        {"weight": [3, 5, *range(9)]},
        {"weight": [-3, 5]},
        {"weight": [3, 5], "bias": [1, 2, 3]},
        {"weight": [0.5, 5]},
        {"weight": "AAAA"},
        {},
    ):
        altered = json.loads(json.dumps(plan))
        altered["steps"][0]["parameters"] = change
        smuggled.append(frame.pack("mpc-server", [json.dumps(altered).encode()], {"party": 1}))
    altered = {**plan, "note": "weights"}
    smuggled.append(frame.pack("mpc-server", [json.dumps(altered).encode()], {"party": 1}))
    for half in smuggled:
        with pytest.raises(BundleError):
            BACKEND.servers([program.servers[0], half])


def test_malformed_halves_are_refused_before_any_process_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secure_infer.backends.parties.session.Session", None)
    program, other = compiled(TINY), compiled(TINY)
    for halves in (
        [],
        program.servers[:1],
        program.servers[::-1],
        [program.servers[0], other.servers[1]],
        [b"", b""],
        [program.servers[0], program.servers[1][:-1]],
        [program.client, program.client],
    ):
        with pytest.raises(BundleError):
            BACKEND.servers(halves)
    plan, *_ = frame.unpack(program.servers[0], "mpc-server").parts
    foreign = frame.unpack(compiled(CASES["conv"]).servers[0], "mpc-server").parts[1:]
    with pytest.raises(BundleError, match="do not fit the plan"):
        BACKEND.servers([frame.pack("mpc-server", [plan, *foreign], {"party": 0}), program.servers[1]])
    newer = json.loads(frame.unpack(program.servers[1], "mpc-server").parts[0])
    with pytest.raises(BundleError, match="schema"):
        Plan.from_bytes(json.dumps({**newer, "schema": 9}).encode())
    with pytest.raises(BundleError):
        BACKEND.client(program.servers[0])
    with pytest.raises(BundleError):
        BACKEND.client(frame.pack("mpc-client", [], {"model": "x"}))


# Options.


def test_first_party_needs_an_explicit_word() -> None:
    for options in (
        {"provider": "first-party"},
        {"provider": "first-party", "insecure_dev": False},
        {"provider": "TFP", "insecure_dev": True},
        {"ring": 32},
        {"timeout": 0},
        {"timeout": "soon"},
    ):
        with pytest.raises(UsageError):
            compiled(TINY, **options)
    guarantee = compiled(TINY, provider="first-party", insecure_dev=True).guarantee
    assert guarantee.security_bits is None
    assert "NOT SECURE" in guarantee.trust[0]
    assert "do not collude" in str(compiled(TINY).guarantee)


def test_first_party_runs_and_ends_with_its_parent() -> None:
    """Two processes without a dealer; they are gone when a parent that forgot to close them is."""
    script = """
import numpy as np, json
from tests.backends.test_mpc import BACKEND, TINY, compiled, inputs_for, interpret, run_both
program = compiled(TINY, provider="first-party", insecure_dev=True)
roles = BACKEND.servers(program.servers)
client, x = BACKEND.client(program.client), inputs_for(TINY, 3)
y = client.decrypt(run_both(roles, client.encrypt(x, client.keygen())), client.keygen())
print(json.dumps([bool(np.array_equal(y, interpret(TINY, x))), list(roles[0]._session.processes.values())]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=200)
    exact, processes = json.loads(done.stdout.splitlines()[-1])
    assert exact
    assert len(processes) == 2
    assert not any(_alive(process) for process in processes)


def _alive(process: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, 0)
        return True
    return False


def test_numbers_too_wide_for_the_ring_are_refused() -> None:
    with pytest.raises(UnsupportedNetwork, match="shift"):
        compiled(alone(Polynomial(np.array([0, 1]), 63), VECTOR))
    with pytest.raises(UnsupportedNetwork, match="63 bits"):
        compiled(alone(Reshape((5,)), TensorType((5,), 0, 2**63 - 1)))


def test_without_crypten_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    program = compiled(TINY)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "crypten" else object())
    for act in (lambda: compiled(TINY), lambda: BACKEND.servers(program.servers), lambda: BACKEND.primitives(program)):
        with pytest.raises(MissingExtra, match=r"secure_infer\[mpc\]"):
            act()
    client = BACKEND.client(program.client)
    assert len(client.encrypt(inputs_for(TINY, 1), client.keygen())) == 2


def test_the_client_loads_no_crypto_library() -> None:
    half = compiled(TINY).client
    script = f"""
import sys, numpy as np
from secure_infer.backends.mpc import MpcBackend
client = MpcBackend().client({half!r})
client.encrypt(np.zeros((1, 5), dtype=np.int64), client.keygen())
assert not {{"torch", "crypten", "cryptography"}} & set(sys.modules), "a crypto library was loaded"
"""
    subprocess.run([sys.executable, "-c", script], check=True)


# Bad input, and failures.


def test_a_client_refuses_bad_input_and_bad_replies() -> None:
    program = compiled(TINY)
    client = BACKEND.client(program.client)
    for x in (
        np.zeros(5, dtype=np.int64),
        np.zeros((1, 6), dtype=np.int64),
        np.zeros((0, 5), dtype=np.int64),
        np.zeros((1, 5)),
        np.full((1, 5), 8),
        np.full((1, 5), -9),
    ):
        with pytest.raises(InvalidInput):
            client.encrypt(x, client.keygen())
    messages = client.encrypt(inputs_for(TINY, 1), client.keygen())
    for replies in (messages, [], [b"garbage"] * 2, messages[:1]):
        with pytest.raises(DecryptionError):
            client.decrypt(replies, client.keygen())


def test_replies_of_two_queries_do_not_mix(session: Session) -> None:
    program = compiled(TINY)
    session.load(unpack_halves(program.servers)[0])
    client = BACKEND.client(program.client)
    roles = [PartyRole(session, party) for party in (0, 1)]
    first, second = (run_both(roles, client.encrypt(inputs_for(TINY, 1), client.keygen())) for _ in range(2))
    for replies in ((first[0], second[1]), first[::-1], (first[0][:-1], first[1])):
        with pytest.raises(DecryptionError):
            client.decrypt(replies, client.keygen())


def test_refused_messages_leave_the_parties_usable(session: Session) -> None:
    program, other = compiled(TINY), compiled(TINY)
    session.load(unpack_halves(program.servers)[0])
    roles = [PartyRole(session, party) for party in (0, 1)]
    client, stranger = BACKEND.client(program.client), BACKEND.client(other.client)
    good, x = client.encrypt(inputs_for(TINY, 2), client.keygen()), inputs_for(TINY, 2)
    whole = frame.unpack(good[0], "mpc-share")
    for message, error in (
        (stranger.encrypt(x, stranger.keygen())[0], KeyMismatch),
        (good[1], BundleError),
        (b"garbage", BundleError),
        (b"", BundleError),
        (good[0][:-8], BundleError),
        (frame.pack("mpc-share", [whole.parts[0][:-8]], whole.meta), BundleError),
        (frame.pack("mpc-share", [whole.parts[0]], {**whole.meta, "shape": [2, -5]}), BundleError),
        (frame.pack("mpc-share", [whole.parts[0]], {**whole.meta, "shape": [5, 2]}), BundleError),
        (frame.pack("mpc-share", [whole.parts[0]], {**whole.meta, "shape": None}), BundleError),
        (frame.pack("mpc-share", [whole.parts[0]], {**whole.meta, "session": "../../x"}), BundleError),
        (frame.pack("mpc-share", [], whole.meta), BundleError),
    ):
        with pytest.raises(error):
            roles[0].run(message, b"")
    uneven = [
        Share(share.model, share.session, party, share.values[: 2 - party]).pack("mpc-share")
        for party, share in enumerate(
            unpack(m, "mpc-share", whole.meta["model"], party, (5,))
            for party, m in enumerate(client.encrypt(x, client.keygen()))
        )
    ]
    failures = failures_of_both(roles, uneven)
    assert all("share of another shape" in str(failure) for failure in failures)
    y = client.decrypt(run_both(roles, good), client.keygen())
    assert np.array_equal(y, interpret(TINY, x))


def test_a_party_that_is_run_alone_gives_up_and_stays_usable() -> None:
    graph = CASES["relu"]
    program = compiled(graph, timeout=3)
    roles = BACKEND.servers(program.servers)
    client, x = BACKEND.client(program.client), inputs_for(graph, 2)
    try:
        for party in (0, 1):
            with pytest.raises(ProtocolError, match=f"party {1 - party} was silent for 3 s"):
                roles[party].run(client.encrypt(x, client.keygen())[party], b"")
        messages = client.encrypt(x, client.keygen())
        assert np.array_equal(client.decrypt(run_both(roles, messages), client.keygen()), interpret(graph, x))
        processes = list(roles[0]._session.processes.values())
        os.kill(roles[0]._session.processes["dealer"], signal.SIGKILL)
        failures = failures_of_both(roles, client.encrypt(x, client.keygen()))
        assert all(isinstance(failure, ProtocolError) for failure in failures)
        assert all("dealer" in str(failure) for failure in failures)
    finally:
        roles[1].close()
    assert not any(_alive(process) for process in processes)
    roles[0].close()
    with pytest.raises(ProtocolError, match="closed"):
        roles[0].run(b"", b"")


@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.full)])
def test_a_killed_party_is_named(victim: int) -> None:
    program = compiled(TINY)
    roles = BACKEND.servers(program.servers)
    client = BACKEND.client(program.client)
    messages = client.encrypt(inputs_for(TINY, 1), client.keygen())
    try:
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(roles[1 - victim].run, messages[1 - victim], b"")
            time.sleep(0.3)
            started = time.monotonic()
            os.kill(roles[0]._session.processes[f"party {victim}"], signal.SIGKILL)
            with pytest.raises(ProtocolError, match=f"party {victim}"):
                waiting.result(20)
            assert time.monotonic() - started < 10
        with pytest.raises(ProtocolError, match=f"party {victim} is gone"):
            roles[victim].run(messages[victim], b"")
    finally:
        roles[0].close()


# Randomness and the dealer, without processes.


def test_crypten_draws_from_aes_only() -> None:
    """Seeding torch changes nothing, torch's generators raise, and equal keys give equal sharings of zero."""
    script = """
import warnings; warnings.simplefilter("ignore")
import crypten, torch
from crypten.mpc.primitives import arithmetic, binary
from crypten.mpc.provider import tfp_provider, ttp_provider
from secure_infer.backends.mpc import randomness
randomness.install(crypten.generators, b"a" * 32, b"b" * 32)
drawn = []
for module in (arithmetic, binary, tfp_provider, ttp_provider, crypten.common.rng):
    for name in ("generate_random_ring_element", "generate_kbit_random_tensor"):
        if hasattr(module, name):
            torch.manual_seed(1)
            drawn.append(tuple(getattr(module, name)((4,)).tolist()))
assert len(drawn) == len(set(drawn)) == 8, drawn
bits = binary.generate_kbit_random_tensor((1000,), bitlength=1)
assert 400 < int(bits.sum()) < 600
zero = arithmetic.ArithmeticSharedTensor.PRZS((3,)).share
previous, following = randomness.Stream(b"a" * 32), randomness.Stream(b"b" * 32)
assert zero.tolist() == (previous.words((3,)) - following.words((3,))).tolist()
for draw in (lambda: torch.randint(0, 2, (3,)), lambda: torch.rand(3), lambda: torch.empty(3).random_()):
    try:
        draw()
    except RuntimeError as error:
        assert "AES" in str(error)
    else:
        raise SystemExit("torch still draws")
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=200)


def test_a_stream_depends_on_its_key_alone() -> None:
    same, also, other = Stream(b"k" * 32), Stream(b"k" * 32), Stream(b"l" * 32)
    words = same.words((1000, 3))
    assert np.array_equal(words, also.words((1000, 3)))
    assert not np.any(words == other.words((1000, 3)))
    assert abs(np.unpackbits(words.view(np.uint8)).mean() - 0.5) < 0.01
    assert same.words(()).shape == ()
    assert same.words((0, 4)).shape == (0, 4)
    assert set(same.bits((50,))) == {0, 1}


@pytest.fixture
def dealt() -> tuple[Dealer, Stream, Stream]:
    keys = (b"0" * 32, b"1" * 32)
    return Dealer([Stream(key) for key in keys]), Stream(keys[0]), Stream(keys[1])


@pytest.mark.parametrize("sizes", [[[3], [3]], [[4], [2, 4]], [[2, 1, 3], [5, 3]]])
@pytest.mark.parametrize("kind", ["and", "mul"])
def test_triples_multiply(dealt: tuple[Dealer, Stream, Stream], kind: str, sizes: list[list[int]]) -> None:
    dealer, first, second = dealt
    c0 = dealer.answer({"kind": kind, "sizes": sizes})
    (a0, b0), (a1, b1) = ([stream.words(size) for size in sizes] for stream in (first, second))
    c1 = second.words(c0.shape)
    if kind == "and":
        assert np.array_equal((a0 ^ a1) & (b0 ^ b1), c0 ^ c1)
    else:
        assert np.array_equal((a0 + a1) * (b0 + b1), c0 + c1)


def test_bits_and_products_fit(dealt: tuple[Dealer, Stream, Stream]) -> None:
    dealer, first, second = dealt
    c0 = dealer.answer({"kind": "bit", "size": [9, 5]})
    bits = first.bits((9, 5)) ^ second.bits((9, 5))
    assert np.array_equal(bits, c0 + second.words((9, 5)))
    assert dealer.answer({"kind": "mask", "name": "w", "size": [4, 6]}) is None
    mask = first.words((4, 6))
    for _ in range(2):
        c0 = dealer.answer({"kind": "product", "name": "w", "spec": {"map": "linear"}, "size": [3, 6]})
        a = second.words((3, 6))
        assert np.array_equal(c0 + second.words((3, 4)), a @ mask.T)
    dealer.answer({"kind": "forget"})
    with pytest.raises(KeyError):
        dealer.answer({"kind": "product", "name": "w", "spec": {"map": "linear"}, "size": [3, 6]})


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32), st.integers(8, 12), st.sampled_from([1, 7, 512, 513, 1100]), st.booleans())
def test_products_of_matrices_are_exact(seed: int, rows: int, depth: int, small: bool) -> None:
    rng = np.random.default_rng(seed)
    a = rng.integers(-(2**63), 2**63 - 1, (rows, depth), endpoint=True)
    bound = 2**21 if small else 2**63
    b = rng.integers(-bound, bound - 1, (depth, 9), endpoint=True)
    assert np.array_equal(matmul(a, b), a @ b)


def test_convolutions_wrap_around() -> None:
    op = CASES["conv, all parameters"].nodes[0].op
    spec = {"map": "conv", "stride": op.stride, "padding": op.padding, "dilation": op.dilation, "groups": op.groups}
    low, high = np.iinfo(np.int64).min, np.iinfo(np.int64).max
    x, w = RNG.integers(low, high, (3, *IMAGE.shape)), RNG.integers(low, high, op.weight.shape)
    wide = Conv2d(w.astype(object), np.zeros(6, dtype=object), (1.0,), op.stride, op.padding, op.dilation, op.groups)
    expected = _convolve_slowly(wide, x.astype(object))
    assert np.array_equal(bilinear(spec, x, w), expected)


def _convolve_slowly(op: Conv2d, x: np.ndarray) -> Integers:
    """Straight from the definition, in Python integers, reduced modulo 2^64 at the end."""
    outputs, inputs, height, width = op.weight.shape
    padded = np.pad(x, ((0, 0), (0, 0), (op.padding[0],) * 2, (op.padding[1],) * 2), constant_values=0)
    rows = (padded.shape[2] - op.dilation[0] * (height - 1) - 1) // op.stride[0] + 1
    columns = (padded.shape[3] - op.dilation[1] * (width - 1) - 1) // op.stride[1] + 1
    result = np.zeros((len(x), outputs, rows, columns), dtype=np.int64)
    for n, o, i, j in np.ndindex(result.shape):
        start = o // (outputs // op.groups) * inputs
        window = padded[n, start : start + inputs, i * op.stride[0] :, j * op.stride[1] :]
        window = window[:, :: op.dilation[0], :: op.dilation[1]][:, :height, :width]
        total = int((window * op.weight[o]).sum())
        result[n, o, i, j] = (total + 2**63) % 2**64 - 2**63
    return result


# The channel, between threads.


def _connected(timeout: float = 5.0) -> tuple[Channel, Channel]:
    identities = {name: new_identity(name) for name in ("party 0", "party 1")}
    gates = [
        Gate(identities[mine], {theirs: identities[theirs].certificate}, timeout)
        for mine, theirs in (("party 0", "party 1"), ("party 1", "party 0"))
    ]
    with ThreadPoolExecutor(1) as threads:
        accepted = threads.submit(lambda: [gates[0].accept("party 1") for _ in range(2)])
        called = [gates[1].call("party 0", ("127.0.0.1", gates[0].port)) for _ in range(2)]
        inbound, outbound = accepted.result()
    for gate in gates:
        gate.close()
    return Channel("party 1", inbound, outbound), Channel("party 0", called[1], called[0])


@pytest.mark.parametrize("size", [0, 1, 1 << 15, (1 << 15) + 1, 20_000_000])
def test_both_sides_can_send_at_once(size: int) -> None:
    left, right = _connected()
    data = [os.urandom(size), os.urandom(size)]
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(right.exchange, data[1], size)
        assert left.exchange(data[0], size) == data[1]
        assert other.result() == data[0]
    assert left.bytes_sent == right.bytes_sent == left.bytes_received == size + 8
    for channel in (left, right):
        channel.close()


def test_a_message_of_another_size_is_refused() -> None:
    left, right = _connected()
    left.send(b"four")
    with pytest.raises(ProtocolError, match="sent 4 bytes where 5 were due"):
        right.receive(5)
    left.close()
    with pytest.raises(ProtocolError, match="party 0 closed the connection"):
        right.receive(5)
    right.close()


def test_a_silent_peer_is_not_waited_for_forever() -> None:
    left, right = _connected(0.2)
    with pytest.raises(ProtocolError, match=r"was silent for 0\.2 s"):
        left.receive(1)
    left.close()
    right.close()


def test_strangers_are_turned_away() -> None:
    """A caller with a certificate of its own making, and one that does not speak TLS, do not get in; the peer does."""
    mine, peer, stranger = (new_identity(name) for name in ("party 0", "party 1", "party 1"))
    with contextlib.ExitStack() as stack:
        gate = stack.enter_context(contextlib.closing(Gate(mine, {"party 1": peer.certificate}, 5.0)))
        outside, inside = (
            stack.enter_context(contextlib.closing(Gate(identity, {"party 0": mine.certificate}, 5.0)))
            for identity in (stranger, peer)
        )
        threads = stack.enter_context(ThreadPoolExecutor(1))
        accepted = threads.submit(gate.accept, "party 1")
        with socket.create_connection(("127.0.0.1", gate.port)) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        # Under TLS 1.3 a client learns that it was refused only when it reads.
        with contextlib.suppress(ProtocolError, OSError), outside.call("party 0", ("127.0.0.1", gate.port)) as refused:
            assert not refused.recv(1)
        inside.call("party 0", ("127.0.0.1", gate.port)).close()
        accepted.result(10).close()


def test_an_impostor_that_listens_is_not_talked_to() -> None:
    mine, peer, stranger = (new_identity(name) for name in ("party 0", "party 1", "party 1"))
    with contextlib.ExitStack() as stack:
        impostor = stack.enter_context(contextlib.closing(Gate(stranger, {"party 0": mine.certificate}, 1.0)))
        gate = stack.enter_context(contextlib.closing(Gate(mine, {"party 1": peer.certificate}, 5.0)))
        threads = stack.enter_context(ThreadPoolExecutor(1))
        accepted = threads.submit(impostor.accept, "party 0")
        with pytest.raises(ProtocolError, match="does not hold the certificate"):
            gate.call("party 1", ("127.0.0.1", impostor.port))
        with pytest.raises(ProtocolError, match="did not connect"):
            accepted.result()


def test_secrets_do_not_print() -> None:
    identity = new_identity("party 0")
    assert "PRIVATE" not in repr(identity)
    assert "hidden" in repr(identity)


def test_a_session_needs_a_provider_we_know() -> None:
    plan = json.loads(unpack_halves(compiled(TINY).servers)[1].to_bytes())
    assert plan["provider"] != FIRST_PARTY
    with pytest.raises(BundleError):
        Plan.from_bytes(json.dumps({**plan, "provider": "TFP"}).encode())


# The documents.

PROTOCOL = Path(__file__).parents[2] / "protocols" / "mpc"


def test_the_figures_of_the_protocol_document_are_what_its_example_prints(capsys: pytest.CaptureFixture[str]) -> None:
    text = (PROTOCOL / "PROTOCOL.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (printed,) = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    exec(example, {})
    assert capsys.readouterr().out == printed


def test_the_protocol_file_agrees_with_the_code() -> None:
    data = tomllib.loads((PROTOCOL / "protocol.toml").read_text())
    assert (data["name"], data["parties"], data["exact"]) == (BACKEND.name, BACKEND.parties, BACKEND.exact)
    assert set(data["options"]) == set(BACKEND.options)
    parameters = compiled(TINY, **data["options"]).parameters
    assert (parameters["provider"], parameters["timeout"]) == (data["options"]["provider"], data["options"]["timeout"])
    assert [role["name"] for role in data["roles"]] == ["client", *PARTY_NAMES, DEALER_NAME]
