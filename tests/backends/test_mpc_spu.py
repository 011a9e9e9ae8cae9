"""SPU's protocols: exact on every operation between real processes; what nobody holds; bad input; parties that die."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import secure_infer as si
from secure_infer.backends.mpc_spu import MpcSpuBackend, backend
from secure_infer.backends.mpc_spu.plan import ABY3, CHEETAH, PARTIES, Plan, words_of
from secure_infer.errors import (
    BundleError,
    DecryptionError,
    KeyMismatch,
    MissingExtra,
    ProtocolError,
    UnsupportedNetwork,
    UsageError,
)
from secure_infer.graph import Graph, Linear, Lookup, Node, Polynomial, TensorType, interpret
from secure_infer.wire import frame
from tests.networks import small_graph
from tests.strategies import EXACT_OPS, graphs, inputs_for

pytest.importorskip("cryptography")
pytest.importorskip("crypten")  # the networks of its tests serve here too

from secure_infer.backends.mpc_spu.relay import Trunk
from secure_infer.backends.parties.seam import PARTY_NAMES, Half
from secure_infer.backends.parties.session import PartyRole, Session
from secure_infer.backends.parties.standing import Link
from tests.backends.mpc_networks import CASES
from tests.backends.test_parties_channel import _connected
from tests.backends.test_parties_three import seats

BACKEND = MpcSpuBackend()
GRAPH = small_graph(exact=True)
thoroughly = pytest.mark.parametrize("servers", [ABY3, pytest.param(CHEETAH, marks=pytest.mark.full)], indirect=True)
needs_spu = pytest.mark.skipif(importlib.util.find_spec("spu") is None, reason="SPU is not installed")


@pytest.fixture(autouse=True)
def _compiles_without_spu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only parties need SPU; that its absence is reported all the same has a test of its own."""
    monkeypatch.setattr(backend, "_require_spu", lambda: None)


def of_one(op: Any, kind: TensorType) -> Graph:
    return Graph(kind, (Node("it", op, ("input",)),), "it")


def test_without_spu_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    program = BACKEND.compile(GRAPH, inputs_for(GRAPH, 2), {})
    monkeypatch.undo()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for act in (
        lambda: BACKEND.compile(GRAPH, inputs_for(GRAPH, 2), {}),
        lambda: BACKEND.servers(program.servers),
    ):
        with pytest.raises(MissingExtra, match=r"pip install 'secure_infer\[spu\]'"):
            act()
    assert BACKEND.client(program.client).parties == 3


def test_check_names_layers_and_fixes() -> None:
    nn = pytest.importorskip("torch").nn
    net = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.ReLU())
    (problem,) = si.check(net, "mpc-spu", (4,))
    assert "LayerNorm" in problem.what and "BatchNorm1d" in problem.fix
    assert si.check(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), "mpc-spu", (4,)) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"scheme": "semi2k"}, "lets party 0 deal"),
        ({"timeout": 0}, r"in \(0, 86400\]"),
        ({"timeout": "soon"}, "soon"),
        ({"ring": 32}, "no such option"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        BACKEND.compile(GRAPH, inputs_for(GRAPH, 2), options)


@pytest.mark.parametrize(
    ("op", "kind", "says"),
    [
        (Polynomial(np.array([1, 1]), 70), TensorType((2,), 0, 3), "ring of 71 bits"),
        (Lookup(np.arange(2000)), TensorType((2,), 0, 1999), "2000 entries"),
        (Polynomial(np.array([0, 1]), bound=(0, 1)), TensorType((2,), 0, 3), "can't be clipped"),
    ],
)
def test_what_does_not_fit_is_refused(op: Any, kind: TensorType, says: str) -> None:
    with pytest.raises(UnsupportedNetwork, match=says):
        BACKEND.compile(of_one(op, kind), np.zeros((1, 2), dtype=np.int64), {})


@pytest.mark.parametrize("scheme", [ABY3, CHEETAH])
def test_no_party_holds_weights_and_all_together_do(scheme: str) -> None:
    weight = np.random.default_rng(0).integers(-9, 10, (64, 64))
    graph = of_one(Linear(weight, np.arange(64)), TensorType((64,), -3, 3))
    program = BACKEND.compile(graph, inputs_for(graph, 1), {"scheme": scheme})
    halves, plan = backend.unpack_halves(program.servers)
    words = [words_of(plan, party, half[1])["it.weight"] for party, half in enumerate(halves)]
    own = [each[0] for each in words]
    assert np.array_equal(np.sum(own, axis=0, dtype=np.uint64).astype(np.int64), weight.reshape(-1))
    if scheme == ABY3:
        assert all(np.array_equal(words[party][1], own[(party + 1) % 3]) for party in range(3))
    for part in (part for each in words for part in each):
        assert len(np.unique(part)) == part.size
        assert 0.45 < np.unpackbits(part.view(np.uint8)).mean() < 0.55
    assert all(json_part.find(b"weight") > 0 and len(json_part) < 2000 for json_part, *_ in halves)


def test_halves_that_do_not_fit_are_refused() -> None:
    servers = BACKEND.compile(GRAPH, inputs_for(GRAPH, 2), {}).servers
    parts, meta = frame.unpack(servers[0], backend.KIND).parts, {"party": 0}
    plan = Plan.from_bytes(parts[0])
    forged: list[Sequence[bytes]] = [
        servers[:2],
        (*servers, servers[0]),
        servers[::-1],
        (servers[1], *servers[1:]),
        (*servers[:2], BACKEND.compile(GRAPH, inputs_for(GRAPH, 2), {}).servers[2]),
        (frame.pack(backend.KIND, [parts[0]], meta), *servers[1:]),
        (frame.pack(backend.KIND, [parts[0], parts[1][:-8]], meta), *servers[1:]),
        (frame.pack(backend.KIND, [], meta), *servers[1:]),
    ]
    for halves in forged:
        with pytest.raises(BundleError):
            BACKEND.servers(halves)
    text = parts[0].decode()
    for old, new in (
        ('"schema": 1', '"schema": 2'),
        (f'"scheme": "{plan.scheme}"', '"scheme": "semi2k"'),
        ('"ring": 64', '"ring": 16'),
        ('"weight": [5, 6]', '"weight": [[5], 6]'),
        ('"gain": 1', '"gain": 1, "weights": 3'),
        ('"output": "head"', '"output": "nothing"'),
    ):
        assert old in text
        with pytest.raises(BundleError):
            Plan.from_bytes(text.replace(old, new).encode())


class Ends:
    """Two trunks to one another; behind each a socket that stands for its SPU."""

    def __init__(self, folder: Path) -> None:
        self.failures: list[list[ProtocolError]] = [[], []]
        self.servers, self.trunks = [], []
        for mine, channel in enumerate(_connected()):
            server = socket.socket(socket.AF_UNIX)
            server.bind(str(folder / f"{mine} here"))
            server.listen()
            self.servers.append(server)
            paths = folder / f"{mine} here", folder / f"{mine} there"
            self.trunks.append(Trunk(channel, *paths, self.failures[mine].append))

    def called(self, folder: Path, mine: int) -> tuple[socket.socket, socket.socket]:
        """Both ends of a call to the other's SPU, which has begun with an empty message."""
        caller = socket.socket(socket.AF_UNIX)
        caller.connect(str(folder / f"{mine} there"))
        caller.sendall(b"PRPC" + bytes(8))
        called = self.servers[1 - mine].accept()[0]
        assert receive(called, 12) == b"PRPC" + bytes(8)
        self.servers += [caller, called]
        return caller, called

    def close(self) -> None:
        for each in (*self.trunks, *self.servers):
            each.close()


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    ends = Ends(tmp_path)
    yield ends
    ends.close()


def receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += connection.recv(size - len(data))
    return data


def test_a_trunk_carries_both_spus_calls_beside_our_messages(ends: Ends, tmp_path: Path) -> None:
    body = os.urandom(900_000)
    message = b"PRPC" + len(body).to_bytes(4, "big") + bytes(4) + body
    reached = [ends.called(tmp_path, mine) for mine in (0, 1)]
    assert [trunk.rounds for trunk in ends.trunks] == [1, 1]
    with ThreadPoolExecutor(4) as threads:
        for caller, called in reached:
            threads.submit(caller.sendall, 3 * message)
            answer = threads.submit(receive, called, 3 * len(message))
            assert answer.result(10) == 3 * message
            called.sendall(b"thanks")
            assert receive(caller, 6) == b"thanks"
        large = os.urandom(6_000_000)
        own = threads.submit(ends.trunks[1].exchange, large, 3)
        assert ends.trunks[0].exchange(b"aaa", len(large)) == large
        assert own.result() == b"aaa"
    assert [trunk.rounds for trunk in ends.trunks] == [5, 5]
    assert not ends.trunks[0].has_message()
    ends.trunks[0].send(b"four")
    with pytest.raises(ProtocolError, match="sent 4 bytes where 5 were due"):
        ends.trunks[1].receive(5)


def test_a_trunk_says_when_its_peer_is_gone(ends: Ends) -> None:
    ends.trunks[1].close()
    for _ in range(2):
        with pytest.raises(ProtocolError, match="closed the connection"):
            ends.trunks[0].receive(5)
    assert ["closed the connection" in str(error) for error in ends.failures[0]] == [True]


def ask(roles: Sequence[PartyRole], messages: Sequence[bytes]) -> list[Any]:
    with ThreadPoolExecutor(3) as threads:
        runs = [threads.submit(role.run, message, b"") for role, message in zip(roles, messages, strict=True)]
    return [run.exception() or run.result() for run in runs]


class Servers:
    """A session of a scheme, which models are loaded in one after another."""

    def __init__(self, scheme: str, timeout: float = 30.0) -> None:
        self.options = {"scheme": scheme, "timeout": timeout}
        _, plan = backend.unpack_halves(BACKEND.compile(GRAPH, inputs_for(GRAPH, 1), self.options).servers)
        self.session = Session(backend._setup(plan))
        self.roles = [PartyRole(self.session, party) for party in range(PARTIES[scheme])]

    def load(self, graph: Graph) -> Any:
        program = BACKEND.compile(graph, inputs_for(graph, 1), self.options)
        self.session.load(backend.unpack_halves(program.servers)[0])
        return BACKEND.client(program.client)

    def equals_the_interpreter(self, graph: Graph, *batches: int) -> None:
        client = self.load(graph)
        for seed, batch in enumerate(batches):
            x = inputs_for(graph, batch, seed)
            replies = ask(self.roles, client.encrypt(x, client.keygen()))
            assert np.array_equal(client.decrypt(replies, client.keygen()), interpret(graph, x))


@pytest.fixture(scope="module", params=[ABY3, CHEETAH])
def servers(request: pytest.FixtureRequest) -> Iterator[Servers]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "_require_spu", lambda: None)
        servers = Servers(request.param)
    yield servers
    servers.session.close()


@needs_spu
@thoroughly
def test_every_operation_in_every_form(servers: Servers) -> None:
    for graph in CASES.values():
        servers.equals_the_interpreter(graph, 3)


@needs_spu
@thoroughly
def test_drawn_networks(servers: Servers) -> None:
    @settings(
        deadline=None,
        max_examples=6,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
        derandomize=True,
    )
    @given(graphs(EXACT_OPS | {"Polynomial"}, max_layers=4, max_bits=3), st.integers(0, 2**16))
    def equals_the_interpreter(graph: Graph, batch: int) -> None:
        servers.equals_the_interpreter(graph, 1 + batch % 4)

    equals_the_interpreter()


@needs_spu
@pytest.mark.parametrize("name", ["digits-mlp-bnn", pytest.param("mnist-lenet5-qat", marks=pytest.mark.full)])
def test_models_of_the_zoo(servers: Servers, name: str) -> None:
    """The second one has max-pools. Batches of one size run the same executable again."""
    pytest.importorskip("torch")
    net = si.load_model(name)
    image = (1, 8, 8) if name.startswith("digits") else (1, 28, 28)
    graph = si.compile(net, np.random.default_rng(0).random((50, *image)), protocol="mpc-spu").graph
    servers.equals_the_interpreter(graph, 1, 1, 5, 1)


@needs_spu
def test_shares_and_replies_that_do_not_fit(servers: Servers) -> None:
    client = servers.load(GRAPH)
    x = inputs_for(GRAPH, 2)
    messages = client.encrypt(x, client.keygen())
    replies, others = ask(servers.roles, messages), ask(servers.roles, client.encrypt(x, client.keygen()))
    for wrong in (replies[:-1], [*replies, replies[0]], [*replies[:-1], others[-1]], replies[::-1]):
        with pytest.raises(DecryptionError):
            client.decrypt(wrong, client.keygen())
    # Made fresh: the same input gives other shares of the same output.
    words = [np.frombuffer(frame.unpack(each[0], "mpc-reply").parts[0], np.int64) for each in (replies, others)]
    assert not np.array_equal(*words)
    assert any(isinstance(each, BundleError) for each in ask(servers.roles, messages[::-1]))
    stranger = servers.load(GRAPH)
    assert any(isinstance(each, KeyMismatch) for each in ask(servers.roles, client.encrypt(x, client.keygen())))
    replies = ask(servers.roles, stranger.encrypt(x, stranger.keygen()))
    assert np.array_equal(stranger.decrypt(replies, stranger.keygen()), interpret(GRAPH, x))


def listening(process: int) -> set[str]:
    """Sockets on which a process takes calls: addresses in hexadecimal, and names of Unix sockets."""
    links = [os.readlink(path) for path in Path(f"/proc/{process}/fd").iterdir() if path.is_symlink()]
    mine = {link[8:-1] for link in links if link.startswith("socket:[")}
    found = set()
    for table in ("tcp", "tcp6"):
        rows = [row.split() for row in Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]]
        found |= {row[1] for row in rows if row[3] == "0A" and row[9] in mine}
    rows = [row.split() for row in Path(f"/proc/{process}/net/unix").read_text().splitlines()[1:]]
    return found | {row[7] for row in rows if len(row) > 7 and row[6] in mine}


@needs_spu
@pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="no /proc")
def test_spu_listens_on_no_port_and_its_sockets_are_gone(servers: Servers) -> None:
    """Its own server would take calls without TLS, and so from anybody."""
    for process in servers.session.processes.values():
        found = listening(process)
        assert found and all(name.startswith("/") and not Path(name).exists() for name in found), found


@needs_spu
@pytest.mark.parametrize(
    "victim", [2, pytest.param(0, marks=pytest.mark.full), pytest.param(1, marks=pytest.mark.full)]
)
def test_a_killed_party_is_named_at_both_others_before_the_time_limit(victim: int) -> None:
    weight = np.ones((3000, 400), dtype=np.int64)
    graph = of_one(Linear(weight, weight[:, 0]), TensorType((400,), 0, 3))
    servers = Servers(ABY3, timeout=60.0)
    try:
        client = servers.load(graph)
        x = inputs_for(graph, 1000)  # takes seconds
        messages, started = client.encrypt(x, client.keygen()), time.monotonic()
        with ThreadPoolExecutor(3) as threads:
            pairs = zip(servers.roles, messages, strict=True)
            runs = [threads.submit(role.run, message, b"") for role, message in pairs]
            time.sleep(1.0)
            assert not any(run.done() for run in runs)
            os.kill(servers.session.processes[f"party {victim}"], signal.SIGKILL)
            for run in runs:
                with pytest.raises(ProtocolError, match=f"party {victim}"):
                    run.result(30)
        assert time.monotonic() - started < 30
    finally:
        servers.session.close()


@needs_spu
def test_parties_started_apart_find_one_another() -> None:
    program = BACKEND.compile(GRAPH, inputs_for(GRAPH, 1), {"timeout": 20.0})
    halves: list[Half] = [BACKEND.party_half(half, party) for party, half in enumerate(program.servers)]
    client, x = BACKEND.client(program.client), inputs_for(GRAPH, 2)
    with ThreadPoolExecutor(3) as threads:
        started = [
            threads.submit(Link, seat, half, 1, lambda _: None) for seat, half in zip(seats(), halves, strict=True)
        ]
        links = [each.result() for each in started]
        messages = client.encrypt(x, client.keygen())
        runs = [threads.submit(link.run, message) for link, message in zip(links, messages, strict=True)]
        replies = [run.result().parts[0] for run in runs]
    for link in links:
        link.close()
    assert len(links) == len(PARTY_NAMES)
    assert np.array_equal(client.decrypt(replies, client.keygen()), interpret(GRAPH, x))
