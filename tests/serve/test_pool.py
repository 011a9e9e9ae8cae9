"""The worker pool, with real processes that are stopped, killed, and sent what they should refuse."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import secure_infer as si
from secure_infer import backends, bundle
from secure_infer.errors import BundleError, KeyMismatch, LimitExceeded, ProtocolError, UsageError
from secure_infer.graph.interpret import interpret_real
from secure_infer.serve.base import Job
from secure_infer.serve.pool import Pool
from secure_infer.serve.worker_pipe import Closed, receive_async
from tests.networks import all_corners, small_graph


class Served:
    """A bundle with a client of its own.

    Args:
        protocol: Name of the protocol.
        folder: Where its files go.
    """

    def __init__(self, protocol: str, folder: Path) -> None:
        self.graph = small_graph(exact=protocol != "ckks")
        self.path = folder / f"{protocol}.bundle"
        si.compile(self.graph, all_corners(self.graph), protocol).save(self.path)
        _, _, program = bundle.load(self.path)
        self.role = backends.load(protocol).client(program.client)
        self.x = np.array([[1, 0, 1, 1, 0, 1], [0, 0, 1, 0, 1, 1]])
        self.folder = folder
        self.keys, self.job = self.fresh("alice")

    def fresh(self, client: str) -> tuple[si.Keys, Job]:
        """New keys, uploaded, and a request under them."""
        keys = self.role.keygen()
        (message,) = self.role.encrypt(self.x, keys)
        if not keys.evaluation:
            return keys, Job("net", client, message)
        name = hashlib.sha256(keys.evaluation).hexdigest()
        (self.folder / name).write_bytes(keys.evaluation)
        return keys, Job("net", client, message, name, self.folder / name)

    def check(self, reply: bytes, keys: si.Keys | None = None) -> None:
        values = self.role.decrypt([reply], keys or self.keys)
        np.testing.assert_allclose(values, interpret_real(self.graph, self.x), atol=0.01)


@pytest.fixture(scope="module")
def clear(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served("clear", tmp_path_factory.mktemp("clear"))


@pytest.fixture(scope="module")
def ckks(tmp_path_factory: pytest.TempPathFactory) -> Served:
    pytest.importorskip("tenseal")
    return Served("ckks", tmp_path_factory.mktemp("ckks"))


@asynccontextmanager
async def opened(served: Served, workers: int = 1, **options: int) -> AsyncIterator[Pool]:
    pool = Pool({"net": served.path}, workers, **options)
    try:
        yield await pool.start()
    finally:
        await pool.close()


def pids(pool: Pool) -> list[int]:
    return [seat.channel.pid for seat in pool._seats if seat.channel is not None]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


async def until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def test_many_requests_at_once_are_all_answered(clear: Served) -> None:
    async def scenario() -> None:
        async with opened(clear, 2) as pool:
            jobs = [replace(clear.job, client=f"client {i % 5}") for i in range(40)]
            for done in await asyncio.gather(*map(pool.run, jobs)):
                clear.check(done.reply)
                assert done.run_s > 0 and done.cpu_s > 0 and done.queue_s >= 0
            status = pool.status()
            assert (status["workers"], status["busy"], status["queued"], status["done"]) == (2, 0, 0, 40)
            assert status["resident_bytes"] > 1 << 20

    asyncio.run(scenario())


def test_a_killed_worker_is_replaced_and_its_request_answered_by_an_error(clear: Served) -> None:
    async def scenario() -> None:
        async with opened(clear) as pool:
            (pid,) = pids(pool)
            os.kill(pid, signal.SIGSTOP)
            hit, waiting = (asyncio.create_task(pool.run(clear.job)) for _ in range(2))
            await asyncio.sleep(0.05)
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(ProtocolError, match="ended in the middle"):
                await hit
            clear.check((await waiting).reply)
            assert pool.status()["restarts"] == 1 and pids(pool) != [pid]

    asyncio.run(scenario())


def test_a_worker_that_dies_idle_costs_no_request(clear: Served) -> None:
    async def scenario() -> None:
        async with opened(clear) as pool:
            os.kill(pids(pool)[0], signal.SIGKILL)
            await until(lambda: pool.status()["restarts"] == 1)
            clear.check((await pool.run(clear.job)).reply)

    asyncio.run(scenario())


def test_a_request_past_its_time_limit_or_canceled_gives_its_worker_up(clear: Served) -> None:
    async def scenario() -> None:
        async with opened(clear) as pool:
            for seconds in (0.2, 60.0):
                (pid,) = pids(pool)
                os.kill(pid, signal.SIGSTOP)
                running = asyncio.create_task(pool.run(replace(clear.job, seconds=seconds)))
                waiting = asyncio.create_task(pool.run(clear.job))
                await asyncio.sleep(0.05)
                if seconds > 1:
                    running.cancel()
                with pytest.raises((ProtocolError, asyncio.CancelledError)) as caught:
                    await running
                assert seconds > 1 or "not done within 0.2 s" in str(caught.value)
                clear.check((await waiting).reply)
                assert not alive(pid)

    asyncio.run(scenario())


def test_a_request_that_is_canceled_while_it_waits_leaves_the_worker_alone(clear: Served) -> None:
    async def scenario() -> None:
        async with opened(clear) as pool:
            (pid,) = pids(pool)
            os.kill(pid, signal.SIGSTOP)
            running, waiting = (asyncio.create_task(pool.run(clear.job)) for _ in range(2))
            await asyncio.sleep(0.05)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            assert pool.status()["queued"] == 0
            os.kill(pid, signal.SIGCONT)
            clear.check((await running).reply)
            assert pids(pool) == [pid]

    asyncio.run(scenario())


def test_the_queue_is_bounded(clear: Served) -> None:
    async def scenario() -> None:
        async with opened(clear, queue=2) as pool:
            (pid,) = pids(pool)
            os.kill(pid, signal.SIGSTOP)
            admitted = [asyncio.create_task(pool.run(clear.job)) for _ in range(3)]
            await asyncio.sleep(0.05)
            with pytest.raises(LimitExceeded) as caught:
                await pool.run(clear.job)
            assert caught.value.retry_after
            os.kill(pid, signal.SIGCONT)
            await asyncio.gather(*admitted)

    asyncio.run(scenario())


def test_the_pool_survives_the_process_that_workers_are_forked_from(clear: Served) -> None:
    async def scenario() -> None:
        async with opened(clear, 2) as pool:
            before, template = pids(pool), pool._template.pid
            assert template
            os.kill(template, signal.SIGKILL)
            await until(lambda: not any(map(alive, before)))
            for done in await asyncio.gather(*[pool.run(clear.job) for _ in range(4)]):
                clear.check(done.reply)

    asyncio.run(scenario())


def test_a_signal_to_all_processes_leaves_the_end_to_the_front(clear: Served) -> None:
    async def scenario() -> None:
        async with opened(clear) as pool:
            (pid,) = pids(pool)
            os.kill(pid, signal.SIGSTOP)
            begun = [asyncio.create_task(pool.run(clear.job)) for _ in range(3)]
            await asyncio.sleep(0.05)
            for number in (signal.SIGTERM, signal.SIGINT):
                os.kill(pid, number)
                os.kill(pool._template.pid or 0, number)
            os.kill(pid, signal.SIGCONT)
            for done in await asyncio.gather(*begun):
                clear.check(done.reply)
            assert pids(pool) == [pid]

    asyncio.run(scenario())


def test_workers_share_what_was_loaded_once(ckks: Served) -> None:
    async def scenario() -> None:
        async with opened(ckks) as pool:
            text = Path(f"/proc/{pids(pool)[0]}/smaps_rollup").read_text()
            memory = {line.split(":")[0]: int(line.split()[1]) for line in text.splitlines()[1:]}
            assert memory["Private_Dirty"] < memory["Rss"] / 4

    asyncio.run(scenario())


def test_closing_answers_what_is_under_way_and_leaves_no_process(clear: Served) -> None:
    async def scenario() -> None:
        async with opened(clear) as pool:
            processes = [*pids(pool), pool._template.pid or 0]
            os.kill(processes[0], signal.SIGSTOP)
            begun = [asyncio.create_task(pool.run(clear.job)) for _ in range(2)]
            await asyncio.sleep(0.05)
            await pool.close()
            assert [type(each) for each in await asyncio.gather(*begun, return_exceptions=True)] == [ProtocolError] * 2
            await until(lambda: not any(map(alive, processes)))

    asyncio.run(scenario())


def test_a_killed_front_takes_its_processes_along_and_they_never_had_its_secrets(clear: Served) -> None:
    script = f"""
import asyncio
from secure_infer.serve.pool import Pool
async def main():
    pool = await Pool({{"net": {str(clear.path)!r}}}, 2).start()
    print(pool._template.pid, *(seat.channel.pid for seat in pool._seats), flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""
    environment = {**os.environ, "DATABASE_PASSWORD": "hunter2"}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment) as front:
        assert front.stdout
        processes = [int(pid) for pid in front.stdout.readline().split()]
        assert len(processes) == 3 and all(map(alive, processes))
        assert not any(b"hunter2" in Path(f"/proc/{pid}/environ").read_bytes() for pid in processes)
        front.kill()
    asyncio.run(until(lambda: not any(map(alive, processes))))


def test_keys_stay_hot_until_they_are_forgotten(ckks: Served) -> None:
    async def scenario() -> None:
        async with opened(ckks, 2) as pool:
            first, second = [await pool.run(ckks.job) for _ in range(2)]
            ckks.check(first.reply)
            ckks.check(second.reply)
            assert second.load_s < first.load_s / 5 and pool.status()["hot_keys"] == 1
            assert ckks.job.key_file is not None
            kept = ckks.job.key_file.read_bytes()
            ckks.job.key_file.unlink()
            try:
                await pool.run(ckks.job)
                pool.forget(ckks.job.key_name)
                assert pool.status()["hot_keys"] == 0
                with pytest.raises(KeyMismatch, match="no longer holds"):
                    await pool.run(ckks.job)
            finally:
                ckks.job.key_file.write_bytes(kept)
            assert pool.status()["restarts"] == 0

    asyncio.run(scenario())


def test_memory_is_bounded_under_the_keys_of_many_clients(ckks: Served) -> None:
    async def scenario() -> None:
        clients = [ckks.fresh(f"client {i}") for i in range(5)]
        async with opened(ckks) as pool:
            await pool.run(ckks.job)
            one = int(pool.status()["hot_bytes"])
        async with opened(ckks, hot_bytes=2 * one, most_bytes=2 << 30) as pool:
            assert f"{2 << 30}" in Path(f"/proc/{pids(pool)[0]}/limits").read_text()
            for _ in range(2):
                for keys, job in clients:
                    ckks.check((await pool.run(job)).reply, keys)
                    assert pool.status()["hot_bytes"] <= 2 * one
            assert pool.status()["hot_keys"] == 2

    asyncio.run(scenario())


def test_messages_and_keys_that_are_wrong_are_refused_by_a_worker_that_goes_on(ckks: Served, tmp_path: Path) -> None:
    job = ckks.job
    assert job.key_file is not None
    (tmp_path / "altered").write_bytes(job.key_file.read_bytes()[:-1])
    _, other = ckks.fresh("mallory")

    async def scenario() -> None:
        async with opened(ckks) as pool:
            for wrong, error in (
                (replace(job, message=b""), BundleError),
                (replace(job, message=job.message[:-1]), BundleError),
                (replace(job, key_name="0" * 64, key_file=tmp_path / "altered"), BundleError),
                (replace(job, key_name=other.key_name, key_file=other.key_file), KeyMismatch),
            ):
                with pytest.raises(error):
                    await pool.run(wrong)
            with pytest.raises(UsageError, match="no model"):
                await pool.run(replace(job, model="another"))
            ckks.check((await pool.run(job)).reply)
            assert pool.status()["restarts"] == 0 and pool.status()["failed"] == 4

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "said",
    [b"", struct.pack("<IQ", 2, 1 << 60) + b"{}", struct.pack("<IQ", 1 << 31, 0), struct.pack("<IQ", 3, 0) + b"[1]"],
)
def test_the_front_hangs_up_on_a_worker_that_talks_nonsense(said: bytes) -> None:
    async def scenario() -> None:
        mine, theirs = socket.socketpair()
        with theirs:
            reader, writer = await asyncio.open_unix_connection(sock=mine)
            theirs.sendall(said)
            theirs.shutdown(socket.SHUT_WR)
            with pytest.raises(Closed):
                head, _ = await receive_async(reader)
                raise AssertionError(head)
            writer.close()

    asyncio.run(scenario())


def test_bundles_that_can_not_be_served_are_refused_at_the_start(clear: Served, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Can't read"):
        Pool({"net": tmp_path / "absent.bundle"}, 1)
    (tmp_path / "bad.bundle").write_bytes(clear.path.read_bytes()[:-5])
    with pytest.raises(BundleError):
        asyncio.run(Pool({"net": tmp_path / "bad.bundle"}, 1).start())


def test_a_bundle_that_is_removed_while_it_is_served_can_still_be_loaded_again(clear: Served, tmp_path: Path) -> None:
    async def scenario() -> None:
        copy = tmp_path / "copy.bundle"
        copy.write_bytes(clear.path.read_bytes())
        pool = await Pool({"net": copy}, 1).start()
        copy.unlink()
        os.kill(pool._template.pid or 0, signal.SIGKILL)
        await until(lambda: pool.status()["restarts"] == 1)
        clear.check((await pool.run(clear.job)).reply)
        await pool.close()

    asyncio.run(scenario())


@pytest.mark.full
def test_tfhe_runs_in_forked_workers(tmp_path: Path) -> None:
    pytest.importorskip("concrete")
    served = Served("tfhe", tmp_path)

    async def scenario() -> None:
        async with opened(served, 2) as pool:
            jobs = [replace(served.job, seconds=300.0) for _ in range(4)]
            for done in await asyncio.gather(*map(pool.run, jobs)):
                served.check(done.reply)
            assert pool.status()["hot_keys"] == 2

    asyncio.run(scenario())
