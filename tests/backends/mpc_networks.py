"""Small networks with every operation in every form, and ways to run all parties of the CrypTen backend."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from secure_infer.backends.base import Program
from secure_infer.backends.mpc import MpcBackend
from secure_infer.backends.mpc.backend import unpack_halves
from secure_infer.graph import (
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
)
from secure_infer.graph.types import Integers
from tests.strategies import inputs_for

pytest.importorskip("crypten")

from secure_infer.backends.mpc.cost import cost
from secure_infer.backends.parties.session import PartyRole, Session

BACKEND = MpcBackend()
RNG = np.random.default_rng(7)
VECTOR = TensorType((5,), -8, 7)
IMAGE = TensorType((4, 5, 6), -3, 3)


def ints(*shape: int, low: int = -9, high: int = 9) -> Integers:
    return RNG.integers(low, high + 1, shape)


def compiled(graph: Graph, **options: object) -> Program:
    return BACKEND.compile(graph, inputs_for(graph, 2), options)


def run_all(roles: list[PartyRole], messages: tuple[bytes, ...]) -> list[bytes]:
    with ThreadPoolExecutor(len(roles)) as threads:
        return list(threads.map(lambda pair: pair[0].run(pair[1], b""), zip(roles, messages, strict=True)))


def failures_of_all(roles: list[PartyRole], messages: Sequence[bytes]) -> list[BaseException | None]:
    with ThreadPoolExecutor(len(roles)) as threads:
        futures = [threads.submit(role.run, message, b"") for role, message in zip(roles, messages, strict=True)]
    return [future.exception() for future in futures]


def predict(session: Session, program: Program, x: Integers) -> Integers:
    """Load, run, and check that the run cost what the plan says."""
    parts, plan = unpack_halves(program.servers)
    session.load(parts)
    roles = [PartyRole(session, party) for party in range(plan.parties)]
    client = BACKEND.client(program.client)
    y = client.decrypt(run_all(roles, client.encrypt(x, client.keygen())), client.keygen())
    expected = cost(plan, len(x))
    assert [role.statistics["rounds"] for role in roles] == [expected.rounds] * plan.parties
    assert sum(role.statistics["bytes_sent"] for role in roles) == expected.bytes
    return y


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
