"""The two-party protocol under CrypTen: exact on every operation, between real processes; options; documents."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secure_infer.backends.mpc.backend import unpack_halves
from secure_infer.errors import (
    MissingExtra,
    UnsupportedNetwork,
    UsageError,
)
from secure_infer.graph import (
    OPS,
    Add,
    Graph,
    Linear,
    Node,
    Polynomial,
    QuantRelu,
    Reshape,
    Sign,
    TensorType,
    interpret,
)
from tests.strategies import EXACT_OPS, graphs, inputs_for

pytest.importorskip("crypten")

from secure_infer.backends.mpc.cost import cost
from secure_infer.backends.parties.seam import DEALER_NAME, PARTY_NAMES
from secure_infer.backends.parties.session import PartyRole, Session
from tests.backends.mpc_networks import (
    BACKEND,
    CASES,
    TINY,
    VECTOR,
    alone,
    compiled,
    ints,
    predict,
    run_all,
)


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
        y = client.decrypt(run_all(roles, client.encrypt(x, client.keygen())), client.keygen())
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
from secure_infer.graph import interpret
from tests.backends.mpc_networks import BACKEND, TINY, compiled, run_all
from tests.strategies import inputs_for
program = compiled(TINY, provider="first-party", insecure_dev=True)
roles = BACKEND.servers(program.servers)
client, x = BACKEND.client(program.client), inputs_for(TINY, 3)
y = client.decrypt(run_all(roles, client.encrypt(x, client.keygen())), client.keygen())
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


PROTOCOL = Path(__file__).parents[2] / "protocols" / "mpc"


def test_the_figures_of_the_protocol_document_are_what_its_example_prints(capsys: pytest.CaptureFixture[str]) -> None:
    text = (PROTOCOL / "PROTOCOL.md").read_text()
    example, _ = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (printed,) = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    exec(example, {})
    assert capsys.readouterr().out == printed


@pytest.mark.full
def test_the_example_of_training_learns(capsys: pytest.CaptureFixture[str]) -> None:
    _, example = re.findall(r"```python\n(.*?)```", (PROTOCOL / "PROTOCOL.md").read_text(), re.DOTALL)
    exec(example, {})
    assert float(capsys.readouterr().out) > 0.9


def test_the_protocol_file_agrees_with_the_code() -> None:
    data = tomllib.loads((PROTOCOL / "protocol.toml").read_text())
    assert (data["name"], data["parties"], data["exact"]) == (BACKEND.name, BACKEND.parties, BACKEND.exact)
    assert set(data["options"]) == set(BACKEND.options)
    parameters = compiled(TINY, **data["options"]).parameters
    assert (parameters["provider"], parameters["timeout"]) == (data["options"]["provider"], data["options"]["timeout"])
    assert parameters["parties"] == data["parties"]
    assert [role["name"] for role in data["roles"]] == ["client", *PARTY_NAMES, DEALER_NAME]
    for number, role in enumerate(data["roles"][1:-1]):
        assert role["calls"] == [*PARTY_NAMES[:number], DEALER_NAME]
        assert role.get("listens_for", []) == list(PARTY_NAMES[number + 1 :])
        assert ("endpoint" in role) == (number < 2)
