"""The cluster runs what the pool runs, where Ray is installed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from secure_infer.errors import BundleError, KeyMismatch, LimitExceeded, ProtocolError, UsageError
from tests.serve.test_pool import Served

if TYPE_CHECKING:
    from secure_infer.serve.cluster import Cluster

pytest.importorskip("ray")
pytest.importorskip("tenseal")
pytestmark = [
    pytest.mark.full,
    # Ray leaves sockets and files of its own to the collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@asynccontextmanager
async def opened(served: Served, queue: int) -> AsyncIterator[Cluster]:
    from secure_infer.serve.cluster import Cluster  # it warns: only where that is let pass

    cluster = Cluster({"net": served.path}, 2, queue, hot_keys=4)
    try:
        yield await cluster.start()
    finally:
        await cluster.close()


def test_requests_go_where_their_keys_are_and_errors_come_back(tmp_path: Path) -> None:
    served = Served("ckks", tmp_path)
    clients = [served.fresh(f"client {i}") for i in range(4)]
    job = served.job

    async def scenario() -> None:
        async with opened(served, queue=8) as cluster:
            loads = 0
            for _ in range(6):
                for done, (keys, _) in zip(
                    await asyncio.gather(*(cluster.run(each) for _, each in clients)), clients, strict=True
                ):
                    served.check(done.reply, keys)
                    loads += done.load_s > 0.002
            assert loads <= 2 * len(clients)
            for wrong, error in (
                (replace(job, message=b""), BundleError),
                (replace(job, key_name=clients[0][1].key_name, key_file=clients[0][1].key_file), KeyMismatch),
                (replace(job, key_name="0" * 64, key_file=tmp_path / "absent"), KeyMismatch),
                (replace(job, model="another"), UsageError),
                (replace(job, seconds=1e-4), ProtocolError),
            ):
                with pytest.raises(error):
                    await cluster.run(wrong)
            crowd = await asyncio.gather(*(cluster.run(job) for _ in range(20)), return_exceptions=True)
            assert {type(each).__name__ for each in crowd} == {"Done", LimitExceeded.__name__}

            assert job.key_file is not None
            cluster.forget(job.key_name)
            job.key_file.unlink()
            with pytest.raises(KeyMismatch, match="no longer holds"):
                await cluster.run(job)
        with pytest.raises(ProtocolError):
            await cluster.run(job)

    asyncio.run(scenario())
