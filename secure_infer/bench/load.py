"""`secure-infer bench serve`: many clients at once against a real server, beside the bare workers in the same run."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from secure_infer.bench.floor import usable_cores
from secure_infer.bench.records import Record
from secure_infer.bench.service import NAME, Ask, Server, Workload, facts, percentiles
from secure_infer.errors import SecureInferError
from secure_infer.serve.processes import Channel, Template
from secure_infer.serve.worker_pipe import receive_async
from secure_infer.wire.access import Access
from secure_infer.wire.http import AsyncHttp
from secure_infer.wire.transport import Answer

CASE = "serve"
MODEL, PROTOCOL = "digits-cnn-poly", "ckks"
CLIENTS, KEYS, REQUESTS, LIGHT = 50, 8, 1000, 50
"""50 clients with 8 distinct key sets between them, as keys take longer to make than everything else here."""
_HOT_BYTES, _WORKER_BYTES = 2 << 30, 8 << 30
_SAMPLE_SECONDS = 1.0
Progress = Callable[[str, int, int], None]


@dataclass
class Answered:
    """One request and what came of it."""

    ask: Ask
    seconds: float
    answer: Answer | None
    error: str = ""


@dataclass
class Served:
    """All requests of a run, the seconds that it took, the seconds of CPU by process, and memory over time."""

    answered: list[Answered]
    seconds: float
    cpu_s: dict[str, float]
    memory: list[int]


def run(n: int | None = None, progress: Progress | None = None, clients: int = CLIENTS, keys: int = KEYS) -> Record:
    """Measure; returns one record.

    Args:
        n: Requests, instead of 1000.
        progress: Told what is being done.
        clients: Clients at a time.
        keys: Distinct key sets.

    Raises:
        DataError: The data set is not to be found.
        ProtocolError: The server does not start.
    """
    begun, requests, tell = time.time(), n or REQUESTS, progress or (lambda label, done, total: None)
    workers = usable_cores()
    with tempfile.TemporaryDirectory(prefix="bench-serve-") as name:
        folder = Path(name)
        tell("keys and messages", 0, requests)
        load = Workload.prepare(MODEL, PROTOCOL, folder, clients, keys, requests)
        few = load.asks[: max(2 * keys * workers, requests // 4)]
        bare = [asyncio.run(_bare(load, workers, few))]
        with Server(load.bundle, folder / "store", clients, workers, queue=2 * clients) as server:
            served, light = asyncio.run(_serve(load, server, clients, tell))
        bare.append(asyncio.run(_bare(load, workers, few)))
    tell("checking", requests, requests)
    return {
        **facts(CASE, PROTOCOL, begun),
        "model": MODEL,
        "protocol": PROTOCOL,
        "workers": workers,
        "clients": clients,
        "distinct_keys": len(load.keys),
        "message_bytes": len(load.asks[0].job.message),
        "evaluation_key_bytes": len(load.keys[0].evaluation),
        **_outcome(load, served, bare),
        "light": _overhead(light),
        "memory": _memory(served.memory),
    }


async def _bare(load: Workload, workers: int, asks: Sequence[Ask]) -> float:
    """Requests a second of the workers alone, each kept busy through its pipe, with all keys hot."""
    template = Template({NAME: load.bundle}, _HOT_BYTES, _WORKER_BYTES, 1)
    try:
        channels = [await template.fork(300.0) for _ in range(workers)]
        first = {ask.job.key_name: ask for ask in asks}
        await asyncio.gather(*(_feed(channel, list(first.values())) for channel in channels))
        start = time.perf_counter()
        await asyncio.gather(*(_feed(channel, asks[i::workers]) for i, channel in enumerate(channels)))
        return len(asks) / (time.perf_counter() - start)
    finally:
        await template.close()


async def _feed(channel: Channel, asks: Sequence[Ask]) -> None:
    for ask in asks:
        job = ask.job
        channel.send({"model": NAME, "key_name": job.key_name, "key_file": str(job.key_file or "")}, job.message)
        await receive_async(channel.reader)


async def _serve(load: Workload, server: Server, clients: int, tell: Progress) -> tuple[Served, list[Answered]]:
    """All requests; and then a few by one client alone."""
    reaches = [await _reach(server, i) for i in range(clients)]
    try:
        for i, reach in enumerate(reaches):
            tell("uploads", i, clients)
            await reach.upload(load.keys[i % len(load.keys)].evaluation)
        await _spread(load.asks[: 4 * clients], reaches, lambda done: None)
        memory: list[int] = []
        sampling = asyncio.create_task(_sample(server, memory))
        start, cpu = time.perf_counter(), _cpu(server)
        answered = await _spread(load.asks, reaches, lambda done: tell("requests", done, len(load.asks)))
        seconds, spent = time.perf_counter() - start, _cpu(server)
        sampling.cancel()
        served = Served(answered, seconds, {name: spent[name] - cpu[name] for name in cpu}, memory)
        light = [await _ask(reaches[0], ask) for ask in load.asks[:: len(reaches)][:LIGHT]]
        return served, light
    finally:
        for reach in reaches:
            await reach.close()


async def _reach(server: Server, client: int) -> AsyncHttp:
    return await AsyncHttp.open([server.url], NAME, Access(token=server.tokens[client]))


async def _spread(asks: Sequence[Ask], reaches: Sequence[AsyncHttp], tell: Callable[[int], None]) -> list[Answered]:
    """Every client sends its requests one after another, all clients at once."""
    answered: list[Answered] = []

    async def client(i: int) -> None:
        for ask in asks[i :: len(reaches)]:
            answered.append(await _ask(reaches[i], ask))
            tell(len(answered))

    await asyncio.gather(*map(client, range(len(reaches))))
    return answered


async def _ask(reach: AsyncHttp, ask: Ask) -> Answered:
    start = time.perf_counter()
    try:
        answer = await reach.infer([ask.job.message], ask.job.key_name)
    except SecureInferError as error:
        return Answered(ask, time.perf_counter() - start, None, type(error).__name__)
    return Answered(ask, time.perf_counter() - start, answer)


async def _sample(server: Server, memory: list[int]) -> None:
    while True:
        memory.append(await asyncio.to_thread(server.resident_bytes))
        await asyncio.sleep(_SAMPLE_SECONDS)


def _cpu(server: Server) -> dict[str, float]:
    return {**server.cpu_seconds(), "clients": time.process_time()}


def _outcome(load: Workload, served: Served, bare: Sequence[float]) -> dict[str, Any]:
    answered = served.answered
    good = [each for each in answered if each.answer is not None]
    throughput, workers_alone = len(good) / served.seconds, sum(bare) / len(bare)
    phases = [each.answer.phases for each in good if each.answer]
    return {
        "n": len(load.asks),
        "lost": len(load.asks) - len(good),
        "errors": sorted({each.error for each in answered if each.error}),
        "wrong": sum(load.wrong(each.ask, each.answer.replies[0]) for each in good if each.answer),
        "requests_per_s": throughput,
        "bare_requests_per_s": list(bare),
        "throughput_ratio": throughput / workers_alone,
        "cpu_s_per_request": {name: spent / len(answered) for name, spent in served.cpu_s.items()},
        "latency_s": percentiles([each.seconds for each in good]),
        "phases_s": {name: median(phase[name] for phase in phases) for name in ("queue", "load", "run", "transfer")},
    }


def _overhead(light: Sequence[Answered]) -> dict[str, Any]:
    """What the way through HTTP adds to a request when there is no other: everything but queue, keys and evaluation."""
    phases = [each.answer.phases for each in light if each.answer]
    return {
        "n": len(phases),
        "run_s": median(phase["run"] for phase in phases),
        "latency_s": percentiles([each.seconds for each in light]),
        "overhead_s": percentiles([phase["transfer"] for phase in phases]),
    }


def _memory(samples: Sequence[int]) -> dict[str, Any]:
    """Proportional set size of all server processes over the run, and the last quarter's mean over the second's."""
    quarter = max(1, len(samples) // 4)
    second, last = samples[quarter : 2 * quarter] or samples, samples[-quarter:]
    return {
        "samples": len(samples),
        "first_bytes": samples[0],
        "max_bytes": max(samples),
        "last_bytes": samples[-1],
        "growth": (sum(last) / len(last)) / (sum(second) / len(second)) - 1,
    }
