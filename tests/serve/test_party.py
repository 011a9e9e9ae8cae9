"""Parties that are started on their own find one another, agree on what comes next, and survive each other's end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from secure_infer import backends, bundle
from secure_infer.backends.base import ClientRole, Keys
from secure_infer.errors import BundleError, DecryptionError, LimitExceeded, ProtocolError, UsageError
from secure_infer.graph import Graph, Linear, Node, Sign, TensorType, interpret
from secure_infer.serve.base import Job
from secure_infer.serve.party_files import (
    ROLES,
    PartyHalf,
    make_identity,
    provision,
    read_half,
    read_identity,
    read_protocol,
    split,
)
from secure_infer.wire import frame

pytest.importorskip("crypten")

from secure_infer.backends.parties.standing import Seat, deal_once
from secure_infer.serve.party import PartyRunner

RNG = np.random.default_rng(3)
GRAPH = Graph(
    TensorType((5,), -8, 7),
    (
        Node("a", Linear(RNG.integers(-3, 4, (6, 5)), np.zeros(6, dtype=np.int64)), ("input",)),
        Node("b", Sign(), ("a",)),
        Node("c", Linear(RNG.integers(-3, 4, (3, 6)), np.zeros(3, dtype=np.int64)), ("b",)),
    ),
    "c",
)
NOTHING = Keys(b"", b"")
TIMEOUT = 4.0


def provisioned(out: Path, **options: object) -> dict[str, Path]:
    """Folders of all roles, of a model that is compiled for the purpose."""
    backend = backends.load("mpc")
    program = backend.compile(GRAPH, np.zeros((1, 5), dtype=np.int64), {"timeout": TIMEOUT, **options})
    interface = bundle.Interface.of(GRAPH, "mpc", program.guarantee)
    bundle.save(out / "net.bundle", GRAPH, interface, program, {})
    return provision(out / "net.bundle", out)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return provisioned(tmp_path_factory.mktemp("parties"))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Trio:
    """A dealer in a thread and the runners of all parties, as three hosts would run them, or four."""

    def __init__(self, folders: dict[str, Path], capacity: int = 64) -> None:
        parties = len(folders) - 1
        called = [ROLES[short] for short in folders if short != "abc"[parties - 1]]
        addresses = {name: ("127.0.0.1", free_port()) for name in called}
        self.folders, self.capacity = folders, capacity
        self.seats = {}
        for short, folder in folders.items():
            role = ROLES[short]
            identity, peers = read_identity(folder)
            listen = addresses.get(role, ("127.0.0.1", 0))
            self.seats[short] = Seat(role, identity, peers, addresses, listen, parties=parties)
        self.client: ClientRole = backends.load("mpc").client(
            bundle.unpack_client_half(read_half(folders["a"], 0).client_half)[1]
        )
        self.runners: list[PartyRunner] = []

    def deal(self) -> None:
        while True:
            deal_once(self.seats["dealer"], TIMEOUT, read_protocol(self.folders["dealer"]).deal, lambda: None)

    async def start(self, party: int) -> PartyRunner:
        short = "abc"[party]
        half = read_half(self.folders[short], party)
        return await PartyRunner(half, self.seats[short], self.capacity, threads=1).start()

    def messages(self, x: np.ndarray, client: str = "c", seconds: float = 20.0) -> list[Job]:
        return [Job("net", client, message, seconds=seconds) for message in self.client.encrypt(x, NOTHING)]

    async def ask(self, x: np.ndarray, client: str = "c") -> np.ndarray:
        jobs = self.messages(x, client)
        done = await asyncio.gather(*(runner.run(job) for runner, job in zip(self.runners, jobs, strict=True)))
        return np.asarray(self.client.decrypt([each.reply for each in done], NOTHING))

    async def connected(self, wanted: float = 1.0) -> None:
        async with asyncio.timeout(60):
            while not all(runner.status()["connected"] == wanted for runner in self.runners):
                await asyncio.sleep(0.05)


def inputs(n: int = 2) -> np.ndarray:
    return RNG.integers(-8, 8, (n, 5))


@pytest.fixture(scope="module")
def trio(folders: dict[str, Path]) -> Iterator[Trio]:
    """Three connected roles, which every test leaves connected."""
    trio = Trio(folders, capacity=20)
    threading.Thread(target=trio.deal, daemon=True).start()

    async def begin() -> None:
        trio.runners = [await trio.start(party) for party in (1, 0)][::-1]
        await trio.connected()

    async def end() -> None:
        for runner in trio.runners:
            await runner.close()
        with pytest.raises(ProtocolError, match="stopped"):
            await trio.ask(inputs())

    asyncio.run(begin())
    yield trio
    asyncio.run(end())


def test_requests_in_any_order_and_at_one_party_only(trio: Trio) -> None:
    async def play() -> None:
        batches = [inputs(1 + n % 3) for n in range(12)]
        pairs = [trio.messages(batch, f"client {n % 2}") for n, batch in enumerate(batches)]
        alone = [trio.messages(inputs(), "alone", seconds=1.0)[party] for party in (0, 1)]
        tasks = [asyncio.create_task(trio.runners[party].run(alone[party])) for party in (0, 1)]
        first = [asyncio.create_task(trio.runners[0].run(pair[0])) for pair in pairs[:9]]
        second = [asyncio.create_task(trio.runners[1].run(pair[1])) for pair in reversed(pairs[:9])][::-1]
        for batch, one, other in zip(batches, first, second, strict=False):
            replies = [(await one).reply, (await other).reply]
            assert np.array_equal(trio.client.decrypt(replies, NOTHING), interpret(GRAPH, batch))
        for party, task in enumerate(tasks):
            with pytest.raises(ProtocolError, match=f"party {1 - party} did not join in"):
                await task
        assert trio.runners[0].status()["restarts"] == trio.runners[0].status()["queued"] == 0

    asyncio.run(play())


def test_shares_that_do_not_belong_together_harm_nobody(trio: Trio) -> None:
    async def play() -> None:
        x = inputs()
        one, other = trio.messages(x), trio.messages(inputs(3))
        for message in (one[1].message, b"noise"):
            with pytest.raises(BundleError):
                await trio.runners[0].run(replace(one[0], message=message))
        crossed = [trio.runners[0].run(replace(one[0], seconds=1)), trio.runners[1].run(replace(other[1], seconds=1))]
        failures = await asyncio.gather(*crossed, return_exceptions=True)
        assert all("did not join in" in str(failure) for failure in failures)
        assert np.array_equal(await trio.ask(x), interpret(GRAPH, x))
        assert trio.runners[0].status()["restarts"] == 0

    asyncio.run(play())


@pytest.mark.parametrize("party", [0, 1])
def test_a_share_that_one_party_refuses_is_an_error_at_the_other_at_once(trio: Trio, party: int) -> None:
    async def play() -> None:
        for late in (False, True):
            jobs = trio.messages(inputs(), seconds=60.0)
            share = frame.unpack(jobs[party].message, "mpc-share")
            bad = replace(jobs[party], message=frame.pack("mpc-share", [share.parts[0][:-8]], share.meta))
            started = time.monotonic()
            runs = [trio.runners[party].run(bad), trio.runners[1 - party].run(jobs[1 - party])]
            if late:
                with pytest.raises(BundleError):
                    await runs.pop(0)
                await asyncio.sleep(1.5)
            failures = await asyncio.gather(*runs, return_exceptions=True)
            assert f"party {party} refused its share" in str(failures[-1])
            assert time.monotonic() - started < 10
        x = inputs()
        assert np.array_equal(await trio.ask(x), interpret(GRAPH, x))

    asyncio.run(play())


def test_too_many_wait(trio: Trio) -> None:
    async def play() -> None:
        lonely = [trio.messages(inputs(), seconds=0.5)[0] for _ in range(21)]
        found = await asyncio.gather(*map(trio.runners[0].run, lonely), return_exceptions=True)
        assert [type(each) for each in found] == [ProtocolError] * 20 + [LimitExceeded]
        x = inputs()
        assert np.array_equal(await trio.ask(x), interpret(GRAPH, x))

    asyncio.run(play())


def test_replies_of_two_runs_do_not_mix(trio: Trio) -> None:
    async def play() -> None:
        x = inputs()
        jobs = trio.messages(x)
        first, second = [await asyncio.gather(*map(PartyRunner.run, trio.runners, jobs)) for _ in range(2)]
        with pytest.raises(DecryptionError, match="different runs"):
            trio.client.decrypt([first[0].reply, second[1].reply], NOTHING)
        assert np.array_equal(trio.client.decrypt([done.reply for done in second], NOTHING), interpret(GRAPH, x))

    asyncio.run(play())


@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.full)])
def test_the_end_of_a_party_is_told_to_all_and_mended(trio: Trio, victim: int) -> None:
    async def play() -> None:
        waiting = asyncio.create_task(trio.runners[1 - victim].run(trio.messages(inputs())[1 - victim]))
        await asyncio.sleep(0.2)
        process = trio.runners[victim]._worker
        assert process is not None
        os.kill(process.process.pid, signal.SIGKILL)
        with pytest.raises(ProtocolError, match=f"party {victim}"):
            await waiting
        await trio.connected()
        x = inputs()
        assert np.array_equal(await trio.ask(x), interpret(GRAPH, x))

    asyncio.run(play())


@pytest.mark.full
def test_nobody_joins_without_the_pinned_certificate(trio: Trio, tmp_path: Path) -> None:
    """A party 1 of somebody's own making is not talked to, says so, and does not stop the real one."""
    make_identity(tmp_path, "b")

    async def play() -> None:
        await trio.runners[1].close()
        stranger = replace(trio.seats["b"], identity=read_identity(tmp_path)[0])
        impostor = await PartyRunner(read_half(trio.folders["b"], 1), stranger, threads=1).start()
        async with asyncio.timeout(60):
            while "party 0" not in str(impostor._trouble):
                assert impostor.status()["connected"] == 0
                await asyncio.sleep(0.1)
        with pytest.raises(ProtocolError, match="party 0"):
            await impostor.run(trio.messages(inputs())[1])
        await impostor.close()
        trio.runners[1] = await trio.start(1)
        await trio.connected()
        x = inputs()
        assert np.array_equal(await trio.ask(x), interpret(GRAPH, x))

    asyncio.run(play())


def test_a_folder_holds_what_its_role_may_have(folders: dict[str, Path]) -> None:
    keys = {role: (place / "identity.key").read_bytes() for role, place in folders.items()}
    for role, place in folders.items():
        found = {path.relative_to(place).as_posix(): path for path in place.rglob("*") if path.is_file()}
        peers = {f"peers/{other}.pem" for other in folders if other != role}
        assert set(found) == {"identity.key", "identity.pem", *peers} | (
            {"protocol" if role == "dealer" else "model.party"}
        )
        assert found["identity.key"].stat().st_mode & 0o777 == 0o600
        others = [key for other, key in keys.items() if other != role]
        assert not any(key in path.read_bytes() for key in others for path in found.values())
    assert len(read_half(folders["b"], 1).server) < len(read_half(folders["a"], 0).server)
    assert b"safetensors" not in read_half(folders["b"], 1).server


def test_files_of_another_role_or_none_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not the half of party 1"):
        read_half(folders["a"], 1)
    with pytest.raises(UsageError, match=r"identity\.key"):
        read_identity(tmp_path)
    half = read_half(folders["a"], 0)
    with pytest.raises(BundleError, match="not the half of party 1"):
        PartyRunner(replace(half, party=1), None)
    (tmp_path / "identity.key").write_bytes(b"nonsense")
    (tmp_path / "identity.pem").write_bytes(b"nonsense")
    with pytest.raises(UsageError, match="identity can't be used") as caught:
        read_identity(tmp_path)
    assert len(caught.value.problems) == 2
    identity, peers = read_identity(folders["b"])
    with pytest.raises(UsageError, match="party 1 can't be started") as caught:
        Seat("party 1", identity, {"dealer": peers["dealer"]}, {"dealer": ("127.0.0.1", 1)})
    assert {problem.where for problem in caught.value.problems} == {"party 0"}
    assert len(caught.value.problems) == 2


def test_a_bundle_for_one_server_is_not_split(tmp_path: Path) -> None:
    backend = backends.load("clear")
    program = backend.compile(GRAPH, np.zeros((1, 5), dtype=np.int64), {})
    bundle.save(tmp_path / "net", GRAPH, bundle.Interface.of(GRAPH, "clear", program.guarantee), program, {})
    with pytest.raises(UsageError, match="for one server"):
        split(tmp_path / "net")
    with pytest.raises(BundleError):
        PartyHalf.unpack(b"noise")


def test_a_model_whose_first_party_deals_is_not_served(folders: dict[str, Path]) -> None:
    options = {"provider": "first-party", "insecure_dev": True}
    program = backends.load("mpc").compile(GRAPH, np.zeros((1, 5), dtype=np.int64), options)
    half = replace(read_half(folders["b"], 1), server=program.servers[1])
    with pytest.raises(UsageError, match="could read every input"):
        PartyRunner(half, Trio(folders).seats["b"])
