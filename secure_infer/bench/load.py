"""`secure-infer bench serve`: many clients at once against a real server, beside the bare workers in the same run.

Server and clients share the machine's cores, so what the clients' side costs (HTTP, and asking for the server's memory)
counts against the server's throughput; keys and messages are made before, and replies are decrypted after. The bare
workers get the same messages through their pipes, before, between and after the rounds, while the server is idle.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count, cycle, islice, pairwise
from pathlib import Path
from statistics import median
from typing import Any

from secure_infer.bench import exchange
from secure_infer.bench.records import Record
from secure_infer.bench.runner import Progress, silent
from secure_infer.bench.service import NAME, Ask, Server, Workload, client_name, facts, percentiles, told
from secure_infer.cores import usable_cores
from secure_infer.errors import SecureInferError
from secure_infer.serve.processes import Channel, Template
from secure_infer.serve.worker_pipe import receive_async
from secure_infer.wire.access import Access
from secure_infer.wire.http import AsyncHttp
from secure_infer.wire.transport import Answer

CASE = "serve"
MODEL, PROTOCOL = "digits-cnn-poly", "ckks"
CLIENTS, KEYS, REQUESTS, ROUNDS, BARE, LIGHT = 50, 8, 1000, 3, 32, 24
"""Clients, with so many distinct key sets between them (keys take longer to make than anything else here); requests,
and rounds of them; requests to the bare workers before, between and after the rounds; requests of one client alone."""
_HOT_BYTES, _WORKER_BYTES = 2 << 30, 8 << 30
_SAMPLE_SECONDS = 4.0
"""Between looks at the memory of all processes, each of which takes tens of milliseconds."""


@dataclass
class Answered:
    """One request and what came of it."""

    ask: Ask
    seconds: float
    answer: Answer | None
    error: str = ""


@dataclass
class Served:
    """What all rounds showed.

    Attributes:
        bare: Requests a second of the bare workers, before, between and after the rounds.
        answered: All requests.
        seconds: What all rounds took.
        cpu_s: Seconds of CPU in all rounds, by process.
        memory: Bytes of all server processes, over all rounds.
        light: Requests of one client alone, after the rounds.
        exchanges: Seconds that their bytes take where nothing is done with them.
    """

    bare: list[float] = field(default_factory=list)
    answered: list[Answered] = field(default_factory=list)
    seconds: float = 0.0
    cpu_s: Counter[str] = field(default_factory=Counter)
    memory: list[int] = field(default_factory=list)
    light: list[Answered] = field(default_factory=list)
    exchanges: list[float] = field(default_factory=list)


def run(n: int | None = None, progress: Progress = silent, clients: int = CLIENTS, keys: int = KEYS) -> Record:
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
    begun, workers = time.time(), usable_cores()
    with tempfile.TemporaryDirectory(prefix="bench-serve-") as name:
        folder = Path(name)
        load = Workload.prepare(MODEL, PROTOCOL, folder, clients, keys, n or REQUESTS, progress)
        with Server(load.bundle, folder / "store", clients, workers, queue=2 * clients) as server:
            served = asyncio.run(_serve(load, server, clients, workers, progress))
    return {
        **facts(CASE, PROTOCOL, begun),
        "model": MODEL,
        "protocol": PROTOCOL,
        "workers": workers,
        "clients": clients,
        "distinct_keys": len(load.keys),
        "message_bytes": len(load.asks[0].job.message),
        "evaluation_key_bytes": len(load.of_client(0).evaluation),
        **_outcome(load, served, progress),
        "light": {**_overhead(served.light), "exchange_s": percentiles(served.exchanges)},
        "memory": _memory(served.memory),
    }


async def _serve(load: Workload, server: Server, clients: int, workers: int, tell: Progress) -> Served:
    """Rounds of requests, with the bare workers in between; and then a few by one client alone."""
    served = Served()
    async with _reaches(server, clients) as reaches:
        uploads = asyncio.create_task(_upload(load, reaches, tell))
        async with _bare_workers(load, workers) as bare:
            await uploads
            await _warm_up(load, reaches, workers)
            served.bare.append(await _rate(bare, load.asks[:BARE]))
            answered = _counter("requests", len(load.asks), tell)
            for asks in _parts(load.asks, ROUNDS):
                await _round(served, server, asks, reaches, answered)
                served.bare.append(await _rate(bare, load.asks[:BARE]))
            await _alone(served, bare, load.asks[::clients], reaches[0], tell)
    return served


async def _upload(load: Workload, reaches: Sequence[AsyncHttp], tell: Progress) -> None:
    for i in told("uploads", range(len(reaches)), tell):
        await reaches[i].upload(load.of_client(i).evaluation)


async def _warm_up(load: Workload, reaches: Sequence[AsyncHttp], workers: int) -> None:
    """Have every worker open all keys: of as many requests at once for one key set, each worker gets one."""
    for ask, reach in zip(load.asks[: len(load.keys)], reaches, strict=False):
        await asyncio.gather(*(_ask(reach, ask) for _ in range(workers)))


async def _alone(
    served: Served, bare: Sequence[Channel], asks: Sequence[Ask], reach: AsyncHttp, tell: Progress
) -> None:
    """Requests of one client alone, and as many exchanges of the same bytes where nothing is done with them.

    A worker evaluates something before each of these, too, as that leaves little of the clients' code in the caches.
    """
    async with exchange.responder(next(each.answer.replies[0] for each in served.answered if each.answer)) as floor:
        for ask in told("requests of one client", list(islice(cycle(asks), LIGHT)), tell):
            served.light.append(await _ask(reach, ask))
            await _feed(bare[0], iter([ask]))
            served.exchanges.append((await floor.infer([ask.job.message], "")).wall_s)


async def _round(
    served: Served, server: Server, asks: Sequence[Ask], reaches: Sequence[AsyncHttp], answered: Callable[[], None]
) -> None:
    sampling = asyncio.create_task(_sample(server, served.memory))
    start, cpu = time.perf_counter(), _cpu(server)
    served.answered += await _spread(asks, reaches, answered)
    served.seconds += time.perf_counter() - start
    served.cpu_s.update(_cpu(server))
    served.cpu_s.subtract(cpu)
    sampling.cancel()


@asynccontextmanager
async def _bare_workers(load: Workload, workers: int) -> AsyncIterator[list[Channel]]:
    """Workers alone, with all keys hot; idle unless `_rate` is under way."""
    template = Template({NAME: load.bundle}, _HOT_BYTES, _WORKER_BYTES, 1)
    channels: list[Channel] = []
    try:
        for _ in range(workers):
            channels.append(await template.fork(300.0))
        first = list({ask.job.key_name: ask for ask in load.asks}.values())
        await asyncio.gather(*(_feed(channel, iter(first)) for channel in channels))
        yield channels
    finally:
        for channel in channels:
            channel.close()
        await template.close()
        await asyncio.sleep(0)  # the connections let go of their sockets in the next turn of the loop


async def _rate(channels: Sequence[Channel], asks: Sequence[Ask]) -> float:
    """Requests a second of bare workers, each kept busy through its pipe."""
    start, left = time.perf_counter(), iter(asks)
    await asyncio.gather(*(_feed(channel, left) for channel in channels))
    return len(asks) / (time.perf_counter() - start)


async def _feed(channel: Channel, asks: Iterator[Ask]) -> None:
    """Give a worker one request after another, of those that others have left."""
    for ask in asks:
        job = ask.job
        channel.send({"model": NAME, "key_name": job.key_name, "key_file": str(job.key_file or "")}, job.message)
        await receive_async(channel.reader)


@asynccontextmanager
async def _reaches(server: Server, clients: int) -> AsyncIterator[list[AsyncHttp]]:
    """A connection of each client."""
    found = [await AsyncHttp.open([server.url], NAME, Access(token=token)) for token in server.tokens[:clients]]
    try:
        yield found
    finally:
        for reach in found:
            await reach.close()


async def _spread(asks: Sequence[Ask], reaches: Sequence[AsyncHttp], answered: Callable[[], None]) -> list[Answered]:
    """Every client sends its requests one after another, all clients at once."""
    found: list[Answered] = []

    async def client(i: int) -> None:
        for ask in asks:
            if ask.job.client == client_name(i):
                found.append(await _ask(reaches[i], ask))
                answered()

    await asyncio.gather(*map(client, range(len(reaches))))
    return found


def _counter(label: str, total: int, tell: Progress) -> Callable[[], None]:
    """To be called whenever one more is done."""
    done = count(1)
    tell(label, 0, total)
    return lambda: tell(label, next(done), total)


def _parts(asks: Sequence[Ask], number: int) -> list[Sequence[Ask]]:
    """The requests in so many parts, in order."""
    bounds = [len(asks) * i // number for i in range(number + 1)]
    return [asks[start:end] for start, end in pairwise(bounds)]


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


def _outcome(load: Workload, served: Served, tell: Progress) -> dict[str, Any]:
    answered = served.answered
    good = [each for each in answered if each.answer is not None]
    throughput, bare = len(good) / served.seconds, sum(served.bare) / len(served.bare)
    phases = [each.answer.phases for each in good if each.answer]
    cpu_s = {name: spent / len(answered) for name, spent in served.cpu_s.items()}
    checked = told("checks", good, tell)
    return {
        "n": len(load.asks),
        "lost": len(load.asks) - len(good),
        "errors": sorted({each.error for each in answered if each.error}),
        "wrong": sum(load.wrong(each.ask, each.answer.replies[0]) for each in checked if each.answer),
        "requests_per_s": throughput,
        "bare_requests_per_s": served.bare,
        "throughput_ratio": throughput / bare,
        "cpu_s_per_request": cpu_s,
        "evaluation_share": cpu_s["workers"] / (cpu_s["workers"] + cpu_s["front"]),
        "latency_s": percentiles([each.seconds for each in good]),
        "phases_s": {name: median(phase[name] for phase in phases) for name in ("queue", "load", "run", "transfer")},
    }


def _overhead(light: Sequence[Answered]) -> dict[str, Any]:
    """What the way through HTTP adds to a request when there is no other: all but waiting, opening keys, evaluation."""
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
        "bytes": list(samples),
        "first_bytes": samples[0],
        "max_bytes": max(samples),
        "last_bytes": samples[-1],
        "growth": (sum(last) / len(last)) / (sum(second) / len(second)) - 1,
    }
