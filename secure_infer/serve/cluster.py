"""Runs requests on Ray Serve: the same worker on many machines, each request where its evaluation keys are open.

Ray moves requests between processes that trust one another, by its own serialization: its ports belong into a private
network, behind the front. What clients send stays bytes until it is in a replica.

A request that is canceled, or is past its time limit, is answered at once; its replica is free when its native call
has ended, as Ray can't take a request back. Where that matters, use a `Pool` on each machine.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from weakref import WeakValueDictionary

from secure_infer import bundle
from secure_infer.backends.base import OpenedKeys, SoleServer
from secure_infer.errors import Problem, ProtocolError, missing_extra
from secure_infer.serve import pool_queue, worker
from secure_infer.serve.base import Done, Job
from secure_infer.serve.pool_queue import FairQueue, Ticket
from secure_infer.wire import api

try:
    import ray
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException
except ModuleNotFoundError as missing:
    raise missing_extra("A cluster", "cluster", "ray") from missing

APPLICATION = "secure_infer"
_FORGOTTEN = 4096
_REPLICA_SECONDS = 600.0
"""How long a replica may be deaf: a native call holds it up."""


class Slot:
    """A place for one client's opened keys in a replica; empty once they are forgotten."""

    def __init__(self) -> None:
        self.keys: OpenedKeys | None = None


class Replica:
    """One worker: opens keys, and answers one request at a time.

    Args:
        halves: Protocol and server half of each model.
    """

    def __init__(self, halves: Mapping[str, tuple[str, bytes]]) -> None:
        self._roles = {name: worker.sole_role(name, protocol, half) for name, (protocol, half) in halves.items()}
        self._slots: WeakValueDictionary[str, Slot] = WeakValueDictionary()

    async def slot(self, name: str) -> Slot:
        """The slot for `model/key`; Ray calls this for names that the replica does not have, and evicts others."""
        slot = self._slots[name] = Slot()
        return slot

    async def answer(
        self, order: Mapping[str, Any], message: bytes, evaluation: Sequence[Any]
    ) -> tuple[dict[str, Any], bytes]:
        """Head and body of the reply, as a worker of the pool gives them.

        Args:
            order: Model, name of the keys, and names of keys that were forgotten of late.
            message: One frame.
            evaluation: Ray's reference of the keys' bytes, fetched only if they are not open here; or nothing.
        """
        for name in list(self._slots):
            if name.partition("/")[2] in order["forgotten"]:
                self._slots[name].keys = None
        slot = await self.slot(f"{order['model']}/{order['key_name']}")
        data = await evaluation[0] if evaluation and slot.keys is None else b""
        return await asyncio.to_thread(self._answer, order, message, slot, data)

    def _answer(
        self, order: Mapping[str, Any], message: bytes, slot: Slot, data: bytes
    ) -> tuple[dict[str, Any], bytes]:
        def opened(role: SoleServer) -> OpenedKeys:
            slot.keys = slot.keys or role.open(data)
            return slot.keys

        return worker.answer(self._roles[order["model"]], message, opened)


class Cluster:
    """A `Runner` on Ray Serve. It joins the Ray cluster that this machine is part of, or starts one of its own.

    Args:
        models: Path of the bundle of each model, by the name under which it is served.
        workers: Replicas, one CPU each, on whichever machines of the cluster have room.
        queue: Requests that may wait.
        hot_keys: Clients whose keys a replica keeps open.
        address: Of a Ray cluster; None starts one on this machine.

    Raises:
        UsageError: A bundle that can't be read, or one of several parties.
        BundleError: A damaged bundle.
    """

    def __init__(
        self,
        models: Mapping[str, Path],
        workers: int,
        queue: int = 256,
        *,
        hot_keys: int = 8,
        address: str | None = None,
    ) -> None:
        self._halves = {name: _half(name, path) for name, path in models.items()}
        self._workers, self._hot_keys, self._address = workers, hot_keys, address
        self._queue, self._running = FairQueue(queue, workers), set[asyncio.Task[None]]()
        self._files: OrderedDict[str, Any] = OrderedDict()
        self._forgotten: deque[str] = deque(maxlen=_FORGOTTEN)
        self._handle: Any = None
        self._counts = {"done": 0, "failed": 0}

    async def start(self) -> Self:
        """Join or start the cluster, and deploy the replicas.

        Raises:
            ProtocolError: The cluster or its replicas do not come up.
        """
        try:
            self._handle = await asyncio.to_thread(self._deploy)
        except (RayError, RayServeException, RuntimeError, ConnectionError, TimeoutError) as error:
            raise _failed("The cluster does not come up.", error) from error
        return self

    async def run(self, job: Job) -> Done:
        """Run a job; see `Runner.run`.

        Raises:
            UsageError: There is no such model.
            LimitExceeded: The queue is full.
            ProtocolError: The replica died, the time limit passed, or the cluster is closed.
            BundleError, KeyMismatch, InvalidInput: What the replica found wrong with the message or the keys.
        """
        if self._handle is None:
            raise ProtocolError("The cluster is closed.", [Problem("server", "It has ended.", "ask again later.")])
        ticket = pool_queue.ticket(job, self._halves)
        self._queue.put(ticket, max(1.0, len(self._queue) / self._workers))
        self._dispatch()
        try:
            return await ticket.result()
        finally:
            self._queue.discard(ticket)

    def forget(self, key_name: str) -> None:
        """Drop keys that were deleted; replicas drop them before their next request."""
        self._files.pop(key_name, None)
        self._forgotten.append(key_name)

    def status(self) -> Mapping[str, float]:
        """Gauges: workers, busy, queued, done, failed."""
        workers = self._workers if self._handle is not None else 0
        return {"workers": workers, "busy": len(self._running), "queued": len(self._queue), **self._counts}

    async def close(self) -> None:
        """End all replicas, and the cluster if it was started here; jobs under way are answered by a ProtocolError."""
        if self._handle is None:
            return
        self._handle = None
        for ticket in list(self._queue):
            self._queue.discard(ticket)
            ticket.settle(ProtocolError("The cluster is closing."))
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await asyncio.to_thread(self._end)

    def _deploy(self) -> Any:
        if not ray.is_initialized():
            own = {} if self._address else {"num_cpus": self._workers, "include_dashboard": False}
            ray.init(address=self._address, log_to_driver=False, configure_logging=False, **own)
        serve.start(proxy_location="Disabled")
        # Ray looks for the loader of a name on the class that it deploys.
        loader = serve.multiplexed(max_num_models_per_replica=self._hot_keys)(Replica.slot)
        deployed = serve.deployment(
            name="worker",
            num_replicas=self._workers,
            max_ongoing_requests=1,
            ray_actor_options={"num_cpus": 1},
            health_check_timeout_s=_REPLICA_SECONDS,
        )(type("Worker", (Replica,), {"slot": loader}))
        return serve.run(deployed.bind(self._halves), name=APPLICATION, route_prefix=None)

    def _end(self) -> None:
        serve.delete(APPLICATION)
        if self._address is None:
            serve.shutdown()
            ray.shutdown()

    def _dispatch(self) -> None:
        """Hand as many requests on as there are replicas; Ray leads each to one that has its keys open."""
        while len(self._running) < self._workers and (found := self._queue.take({0: ()}, ())):
            task = asyncio.create_task(self._work(found[0]))
            self._running.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if self._handle is not None:
            self._dispatch()

    async def _work(self, ticket: Ticket) -> None:
        job, started = ticket.job, time.monotonic()
        order = {"model": job.model, "key_name": job.key_name, "forgotten": [*self._forgotten]}
        try:
            evaluation = [await self._file(job)] if job.key_file else []
            replica = self._handle.options(multiplexed_model_id=f"{job.model}/{job.key_name}")
            head, reply = await replica.answer.remote(order, job.message, evaluation)
            if "problem" in head:
                raise api.error_of(head["problem"], head["problem"]["status"])
            times = {name: head[name] for name in ("load_s", "run_s", "cpu_s", "statistics")}
            self._counts["done"] += 1
            ticket.settle(Done(reply, started - ticket.since, **times))
        except asyncio.CancelledError:
            ticket.settle(ProtocolError("The cluster is closing."))
            raise
        except (RayError, RayServeException) as error:
            self._counts["failed"] += 1
            ticket.settle(_failed("The request was not answered.", error))
        except Exception as error:
            self._counts["failed"] += 1
            ticket.settle(error)

    async def _file(self, job: Job) -> Any:
        """Ray's reference of the bytes of the keys, which replicas on other machines can't read from the store."""
        reference = self._files.pop(job.key_name, None)
        if reference is None:
            data = await asyncio.to_thread(worker.read_keys, str(job.key_file))
            reference = await asyncio.to_thread(ray.put, data)
            self._forgotten = deque((name for name in self._forgotten if name != job.key_name), _FORGOTTEN)
        self._files[job.key_name] = reference
        while len(self._files) > self._workers * self._hot_keys:
            self._files.popitem(last=False)
        return reference


def _half(name: str, path: Path) -> tuple[str, bytes]:
    _, interface, program = bundle.load(path)
    return interface.protocol, worker.sole_half(name, program)


def _failed(summary: str, error: Exception) -> ProtocolError:
    what = f"{type(error).__name__}."
    return ProtocolError(summary, [Problem("cluster", what, "send the request again; see Ray's log.")])
