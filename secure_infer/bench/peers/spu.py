"""SecretFlow-SPU on the same integers: ABY3 with three parties and no dealer, or Cheetah with two and no dealer.

Shares are made here, as by a client. The parties are processes on this machine, connected without TLS, and each learns
what its protocol lets it learn: ABY3 wants an honest majority of its three parties.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt

from secure_infer.backends.mpc_spu.function import OUTPUT, compiled
from secure_infer.backends.mpc_spu.plan import Plan, lower
from secure_infer.backends.parties.network import LOOPBACK
from secure_infer.bench.cases import Entry
from secure_infer.bench.contender import Reals, Sample, Setup, Subject
from secure_infer.bench.ours import evaluate, graph_of
from secure_infer.bench.peers.spawned import TIMEOUT_S, Spawned, free_ports, receive
from secure_infer.client import Stopwatch
from secure_infer.errors import Problem, UnsupportedNetwork, UsageError, missing_extra
from secure_infer.graph import INPUT, Graph

PROTOCOLS = {"ABY3": 3, "CHEETAH": 2}
"""Parties of each protocol."""


class Spu:
    """The integer graph as a JAX function, compiled and run by SPU; weights are shared once.

    Args:
        subject: A network whose values fit SPU's ring.
        entry: `options` may name the protocol: "ABY3", the default, or "CHEETAH".

    Raises:
        MissingExtra: SPU is not installed.
        UnsupportedNetwork: Values that are too wide, or delays between parties: SPU makes its own connections.
        UsageError: Other options.
    """

    def __init__(self, subject: Subject, entry: Entry) -> None:
        if importlib.util.find_spec("spu") is None:
            raise missing_extra("The peer spu", "spu", "spu")
        self._protocol, self._batch = _protocol(entry), entry.batch
        self._graph = graph_of(subject, "mpc")
        self._plan, self._secrets = _plan(self._graph, self._protocol, entry)
        self._parties = Spawned("spu")
        from spu import Io

        self._io = Io(PROTOCOLS[self._protocol], _configuration(self._plan))
        watch = Stopwatch()
        try:
            with watch.phase("compile"):
                self._start()
            with watch.phase("keygen"):
                self.infer(np.zeros((entry.batch, *self._graph.input.shape)))  # the first run sets up transfers
        except BaseException:
            self.close()
            raise
        parameters = {"parties": PROTOCOLS[self._protocol], "scheme": self._protocol, "ring_bits": self._plan.ring}
        self.setup = Setup(watch.wall_s, {}, parameters=parameters, libraries=("spu", "jax"))

    def clear(self, x: npt.NDArray[Any]) -> Reals:
        """The integer graph."""
        return evaluate(self._graph, x, exact=True)

    def infer(self, x: npt.NDArray[Any]) -> Sample:
        """One batch; the time of a run is the slowest party's."""
        watch = Stopwatch()
        with watch.phase("encrypt"):
            self._share(INPUT, self._graph.quantize(x))
        answers = [json.loads(receive(pipe, "spu")) for pipe in self._parties.pipes]
        shares = [_read_share(pipe) for pipe in self._parties.pipes]
        with watch.phase("decrypt"):
            values = np.asarray(self._io.reconstruct(shares), dtype=np.float64).reshape(len(x), -1)
        wall = {**watch.wall_s, "run": max(answer["wall_s"] for answer in answers)}
        cpu = {**watch.cpu_s, "run": sum(answer["cpu_s"] for answer in answers)}
        return Sample(self._graph.dequantize(values), wall, cpu, {})

    def primitives(self) -> dict[str, float]:
        """Not measured for peers."""
        return {}

    def close(self) -> None:
        """End all parties."""
        self._parties.close()

    def _start(self) -> None:
        hosts = [f"127.0.0.1:{port}" for port in free_ports(PROTOCOLS[self._protocol])]
        self._parties.start(_party, [(rank, hosts, self._batch) for rank in range(len(hosts))])
        for pipe in self._parties.pipes:
            pipe.send_bytes(self._plan.to_bytes())
        for name, values in self._secrets.items():
            self._share(name, values)
        for party in range(len(hosts)):
            self._parties.receive(party)

    def _share(self, name: str, values: npt.NDArray[Any]) -> None:
        from spu.libspu import Visibility

        kind = f"i{self._plan.ring // 8}"
        shares = self._io.make_shares(np.ascontiguousarray(values, dtype=kind), Visibility.VIS_SECRET)
        for share, pipe in zip(shares, self._parties.pipes, strict=True):
            pipe.send_bytes(name.encode())
            _write_share(pipe, share)


def _protocol(entry: Entry) -> str:
    name = entry.options.get("protocol", "ABY3")
    if set(entry.options) - {"protocol"} or name not in PROTOCOLS:
        raise UsageError(
            "The peer spu has no such options.",
            [Problem("options", f"Got {dict(entry.options)}.", f"use protocol = one of {', '.join(PROTOCOLS)}.")],
        )
    return str(name)


def _plan(graph: Graph, scheme: str, entry: Entry) -> tuple[Plan, dict[str, npt.NDArray[Any]]]:
    """What SPU is to run, and the secrets in it; in a ring of 32 bits where that is safe, see `backends.mpc_spu`."""
    if entry.network != LOOPBACK:
        what = Problem("network", "Its connections can't be slowed down.", "measure it on loopback.")
        raise UnsupportedNetwork("The peer spu can't run this network.", [what])
    products = entry.batch > 1 or "Conv2d" in graph.kinds
    return lower(graph, "0" * 32, scheme.lower(), TIMEOUT_S, ring=64 if products else 32)


def _configuration(plan: Plan) -> Any:
    from spu import libspu

    kind, field = getattr(libspu.ProtocolKind, plan.scheme.upper()), getattr(libspu.FieldType, f"FM{plan.ring}")
    return libspu.RuntimeConfig(protocol=kind, field=field)


def _party(pipe: Connection, rank: int, hosts: Sequence[str], batch: int) -> None:
    """A party's process: compile, take shares of weights, then run on shares of images until the pipe closes."""
    os.environ.update(JAX_PLATFORMS="cpu", OMP_NUM_THREADS="1")
    from spu import Runtime, libspu

    quiet = libspu.logging.LogOptions()
    quiet.log_level = libspu.logging.LogLevel.ERROR
    quiet.system_log_path = quiet.trace_log_path = os.devnull
    libspu.logging.setup_logging(quiet)
    plan = Plan.from_bytes(pipe.recv_bytes())
    executable = compiled(plan, batch)
    description = libspu.link.Desc()
    for number, host in enumerate(hosts):
        description.add_party(f"party {number}", host)
    description.recv_timeout_ms = 1000 * TIMEOUT_S
    link = libspu.link.create_brpc(description, rank)
    runtime = Runtime(link, _configuration(plan))
    for _ in plan.secrets:
        runtime.set_var(pipe.recv_bytes().decode(), _read_share(pipe))
    pipe.send_bytes(b"ready")
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            runtime.set_var(pipe.recv_bytes().decode(), _read_share(pipe))
            link.barrier()
            wall, cpu = time.perf_counter(), time.process_time()
            runtime.run(executable)
            answer = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
            pipe.send_bytes(json.dumps(answer).encode())
            _write_share(pipe, runtime.get_var(OUTPUT))


def _write_share(pipe: Connection, share: Any) -> None:
    pipe.send_bytes(share.meta)
    pipe.send_bytes(json.dumps(len(share.share_chunks)).encode())
    for chunk in share.share_chunks:
        pipe.send_bytes(chunk)


def _read_share(pipe: Connection) -> Any:
    from spu.libspu import Share

    share = Share()
    share.meta = receive(pipe, "spu")
    share.share_chunks = [receive(pipe, "spu") for _ in range(json.loads(receive(pipe, "spu")))]
    return share
