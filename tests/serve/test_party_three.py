"""Three parties and a dealer that are started on their own: they agree on what runs, and a remote client asks them."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from secure_infer.errors import BundleError, ProtocolError, UsageError
from secure_infer.graph import interpret

pytest.importorskip("crypten")

from secure_infer.backends.mpc.backend import unpack_half
from secure_infer.backends.mpc.cost import cost
from secure_infer.client import Client
from secure_infer.scenario import servers
from secure_infer.scenario.processes import Roles
from secure_infer.serve.party_files import read_half, roles_of
from tests.serve.test_party import GRAPH, NOTHING, Trio, inputs, provisioned

THREE = (0, 1, 2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return provisioned(tmp_path_factory.mktemp("parties"), parties=3)


@pytest.fixture(scope="module")
def quartet(folders: dict[str, Path]) -> Iterator[Trio]:
    """Four connected roles, which every test leaves connected."""
    roles = Trio(folders)
    threading.Thread(target=roles.deal, daemon=True).start()

    async def begin() -> None:
        roles.runners = [await roles.start(party) for party in reversed(THREE)][::-1]
        await roles.connected()

    async def end() -> None:
        for runner in roles.runners:
            await runner.close()

    asyncio.run(begin())
    yield roles
    asyncio.run(end())


def test_folders_of_four_roles(folders: dict[str, Path]) -> None:
    assert list(folders) == ["a", "b", "c", "dealer"]
    assert {path.name for path in (folders["dealer"] / "peers").iterdir()} == {"a.pem", "b.pem", "c.pem"}
    assert (folders["c"] / "model.party").exists() and not (folders["dealer"] / "model.party").exists()
    assert roles_of(folders["c"], "party 2", ()) == (3, True)
    assert roles_of(folders["dealer"], "dealer", ("party 0", "party 1", "party 2")) == (3, True)
    assert roles_of(folders["dealer"], "dealer", ("party 0", "party 1")) == (2, True)
    assert [read_half(folders[short], party).parties for party, short in enumerate("abc")] == [3, 3, 3]


def test_requests_in_any_order_and_at_two_parties_only(quartet: Trio) -> None:
    async def play() -> None:
        batches = [inputs(1 + n % 3) for n in range(9)]
        queries = [quartet.messages(batch, f"client {n % 2}") for n, batch in enumerate(batches)]
        lonely = [quartet.messages(inputs(), "alone", seconds=1.0) for _ in THREE]
        alone = [
            asyncio.create_task(quartet.runners[party].run(jobs[party]))
            for absent, jobs in enumerate(lonely)
            for party in THREE
            if party != absent
        ]
        orders = [list(range(9)), list(range(9))[::-1], [4, 1, 8, 0, 3, 7, 2, 6, 5]]
        runs = {
            (n, party): asyncio.create_task(quartet.runners[party].run(queries[n][party]))
            for party, order in enumerate(orders)
            for n in order
        }
        for n, batch in enumerate(batches):
            replies = [(await runs[n, party]).reply for party in THREE]
            assert np.array_equal(quartet.client.decrypt(replies, NOTHING), interpret(GRAPH, batch))
        for task in alone:
            with pytest.raises(ProtocolError, match="did not join in"):
                await task
        assert all(runner.status()["restarts"] == 0 for runner in quartet.runners)

    asyncio.run(play())


@pytest.mark.parametrize("party", THREE)
def test_a_share_that_one_party_refuses_is_an_error_at_the_others_at_once(quartet: Trio, party: int) -> None:
    async def play() -> None:
        jobs = quartet.messages(inputs(), seconds=60.0)
        jobs[party] = replace(jobs[party], message=jobs[party - 1].message)
        started = time.monotonic()
        runs = [runner.run(job) for runner, job in zip(quartet.runners, jobs, strict=True)]
        failures = await asyncio.gather(*runs, return_exceptions=True)
        assert isinstance(failures.pop(party), BundleError)
        assert all(f"party {party}" in str(each) and "refused its share" in str(each) for each in failures)
        assert time.monotonic() - started < 10
        x = inputs()
        assert np.array_equal(await quartet.ask(x), interpret(GRAPH, x))

    asyncio.run(play())


def test_the_end_of_a_party_is_told_to_all_and_mended(quartet: Trio) -> None:
    async def play() -> None:
        jobs = quartet.messages(inputs())
        waiting = [asyncio.create_task(quartet.runners[party].run(jobs[party])) for party in (0, 1)]
        await asyncio.sleep(0.2)
        process = quartet.runners[2]._worker
        assert process is not None
        os.kill(process.process.pid, signal.SIGKILL)
        for each in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(each, ProtocolError), each
        await quartet.connected()
        x = inputs()
        assert np.array_equal(await quartet.ask(x), interpret(GRAPH, x))

    asyncio.run(play())


def test_four_processes_and_a_remote_client(folders: dict[str, Path], tmp_path: Path) -> None:
    x = inputs(3)
    with Roles() as roles:
        served = servers.start(roles, tmp_path, folders["a"].parent / "net.bundle", 3)
        access = {"token": ",".join(served.tokens), "ca": served.ca}
        with Client.connect(served.urls, **access) as client:
            prediction = client.infer(x * GRAPH.input.scale_array())
            assert np.array_equal(prediction.outputs, GRAPH.dequantize(interpret(GRAPH, x)))
            expected = cost(unpack_half(read_half(folders["a"], 0).server, 0)[1], len(x))
            assert prediction.statistics["rounds"] == expected.rounds
            assert prediction.statistics["bytes_between_parties"] == expected.bytes
        for chosen in (slice(2), slice(None, None, -1)):
            with pytest.raises(UsageError, match="not the servers of one model's parties, in order"):
                Client.connect(served.urls[chosen], token=",".join(served.tokens[chosen]), ca=served.ca)
