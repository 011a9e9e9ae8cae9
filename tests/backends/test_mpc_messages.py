"""What travels between client and parties, and what it tells; halves and replies that are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from secure_infer.backends.mpc.backend import unpack_halves
from secure_infer.backends.mpc.plan import Plan
from secure_infer.errors import (
    BundleError,
    DecryptionError,
    InvalidInput,
)
from secure_infer.graph import (
    Graph,
    Linear,
    Lookup,
    Node,
    Polynomial,
    QuantRelu,
    Sign,
    TensorType,
)
from secure_infer.wire import frame
from tests.strategies import inputs_for

pytest.importorskip("crypten")

from secure_infer.backends.parties.session import PartyRole, Session
from tests.backends.mpc_networks import BACKEND, CASES, TINY, VECTOR, alone, compiled, run_all


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
    replies = run_all([PartyRole(session, party) for party in (0, 1)], sent)
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
    first, second = (run_all(roles, client.encrypt(inputs_for(TINY, 1), client.keygen())) for _ in range(2))
    for replies in ((first[0], second[1]), first[::-1], (first[0][:-1], first[1])):
        with pytest.raises(DecryptionError):
            client.decrypt(replies, client.keygen())
