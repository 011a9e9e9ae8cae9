"""`secure-infer bench serve-cluster`: the same requests on local Ray workers and on the process pool, in turns."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from secure_infer.bench.load import MODEL, PROTOCOL
from secure_infer.bench.records import Record
from secure_infer.bench.runner import Progress, silent
from secure_infer.bench.service import NAME, Ask, Workload, facts, percentiles
from secure_infer.errors import SecureInferError
from secure_infer.serve.base import Done, Runner
from secure_infer.serve.cluster import Cluster
from secure_infer.serve.pool import Pool

CASE, WORKERS, CLIENTS, KEYS, REQUESTS, TURNS = "serve-cluster", 2, 20, 8, 400, 4


def run(n: int | None = None, progress: Progress = silent) -> Record:
    """Measure; returns one record.

    Args:
        n: Requests for each, instead of 400.
        progress: Told what is being done.

    Raises:
        DataError: The data set is not to be found.
        ProtocolError: The cluster does not come up.
    """
    begun = time.time()
    with tempfile.TemporaryDirectory(prefix="bench-cluster-") as name:
        load = Workload.prepare(MODEL, PROTOCOL, Path(name), CLIENTS, KEYS, n or REQUESTS, progress)
        runs = asyncio.run(_compare(load, progress))
    rows = {name: _row(load, done) for name, done in runs.items()}
    ratio = rows["cluster"]["requests_per_s"] / rows["pool"]["requests_per_s"]
    shared = {"model": MODEL, "protocol": PROTOCOL, "workers": WORKERS, "clients": CLIENTS, "distinct_keys": KEYS}
    return {**facts(CASE, PROTOCOL, begun), **shared, "n": len(load.asks), **rows, "ratio": ratio}


async def _compare(load: Workload, tell: Progress) -> dict[str, list[tuple[float, list[tuple[Ask, Done | None]]]]]:
    """Seconds and results of each turn, the first of which (keys are opened) is left out by `_row`."""
    pool, cluster = Pool({NAME: load.bundle}, WORKERS), Cluster({NAME: load.bundle}, WORKERS)
    runners: dict[str, Runner] = {"pool": pool, "cluster": cluster}
    found: dict[str, Any] = {name: [] for name in runners}
    try:
        await pool.start()
        await cluster.start()
        for turn in range(TURNS + 1):
            asks = load.asks[: CLIENTS * 2] if not turn else load.asks[turn - 1 :: TURNS]
            for name, runner in runners.items():
                tell(name, turn, TURNS)
                start = time.perf_counter()
                done = await asyncio.gather(*(_ask(runner, ask) for ask in asks))
                found[name].append((time.perf_counter() - start, done))
        return found
    finally:
        await pool.close()
        await cluster.close()


async def _ask(runner: Runner, ask: Ask) -> tuple[Ask, Done | None]:
    try:
        return ask, await runner.run(ask.job)
    except SecureInferError:
        return ask, None


def _row(load: Workload, turns: Sequence[tuple[float, list[tuple[Ask, Done | None]]]]) -> dict[str, Any]:
    done = [each for _, results in turns[1:] for each in results]
    answered = [(ask, result) for ask, result in done if result is not None]
    return {
        "requests_per_s": len(answered) / sum(seconds for seconds, _ in turns[1:]),
        "lost": len(done) - len(answered),
        "wrong": sum(load.wrong(ask, result.reply) for ask, result in answered),
        "key_loads": sum(result.load_s > 0.01 for _, result in answered),
        "run_s": percentiles([result.run_s for _, result in answered]),
    }
