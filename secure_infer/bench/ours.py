"""Our own contender: compile, keys and client of one model under one protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from secure_infer import backends, bundle
from secure_infer.backends.base import Program
from secure_infer.backends.parties.network import NETWORKS, between_parties
from secure_infer.bench.cases import Entry
from secure_infer.bench.contender import Reals, Sample, Setup, Subject
from secure_infer.bench.faraway import Faraway
from secure_infer.bench.host import LIBRARIES
from secure_infer.client import Client, Stopwatch
from secure_infer.compiler import Compiled, compile
from secure_infer.graph import Graph, interpret, interpret_real
from secure_infer.wire.transport import InProcess

_CHUNK = 500


def graph_of(subject: Subject, protocol: str) -> Graph:
    """The very graph that we run under a protocol, for a peer to run too."""
    return compile(subject.net, subject.calibration, protocol, **subject.options.get(protocol, {})).graph


def evaluate(graph: Graph, x: npt.NDArray[Any], *, exact: bool) -> Reals:
    """Outputs of the graph in the clear for reals `x`, shape `(n, *input shape)`: integers, or reals if not `exact`."""
    network = interpret if exact else interpret_real
    chunks = [network(graph, graph.quantize(x[at : at + _CHUNK])) for at in range(0, len(x), _CHUNK)]
    return graph.dequantize(np.concatenate(chunks))


def _bytes_in_memory(program: Program) -> int | None:
    """Bytes of expanded evaluation keys, where the backend states them."""
    stated = program.parameters.get("bytes", {})
    found = [int(count) for name, count in stated.items() if name.endswith("_keys")]
    return sum(found) if found else None


class Ours:
    """A compiled model with its own client and servers on this machine.

    Args:
        subject: The model and its data.
        entry: Protocol, options and mode.
    """

    def __init__(self, subject: Subject, entry: Entry) -> None:
        self._encrypts, self._seed = entry.mode == "encrypted", 0
        self._settle: Callable[[], None] | None = None
        options = {**subject.options.get(entry.protocol, {}), **entry.options}
        self._backend = backends.load(entry.protocol)
        network = NETWORKS[entry.network]
        if "round_trip" in self._backend.options:  # a plan for the network that it is measured on
            options = {"round_trip": 1000 * network.round_trip_s if network else 0.0, **options}
        watch = Stopwatch()
        with watch.phase("compile"):
            self._compiled: Compiled = compile(subject.net, subject.calibration, entry.protocol, **options)
        sent = raw = None
        if self._encrypts:
            self._client: Client = self._reach(entry.network)
            keys = self._client.keys()
            evaluation = keys.evaluation
            if keys.secret or evaluation:
                watch.wall_s |= self._client.stopwatch.wall_s
                watch.cpu_s |= self._client.stopwatch.cpu_s
            sent = len(evaluation)
            raw = _bytes_in_memory(self._compiled.program) if evaluation else 0
        program = self._compiled.program
        self.setup = Setup(
            wall_s=watch.wall_s,
            cpu_s=watch.cpu_s,
            evaluation_keys=raw,
            evaluation_keys_sent=sent,
            parameters=dict(program.parameters),
            counts=dict(program.counts),
            libraries=LIBRARIES.get(entry.protocol, ()),
        )

    def clear(self, x: npt.NDArray[Any]) -> Reals:
        """The integer network's outputs; over the reals where the protocol is not exact."""
        return evaluate(self._compiled.graph, x, exact=self._backend.exact)

    def infer(self, x: npt.NDArray[Any]) -> Sample:
        """One request; in mode "simulate" the protocol's errors without any ciphertext."""
        if not self._encrypts:
            return self._simulate(x)
        if self._settle is not None:
            self._settle()
        answer = self._client.infer(x)
        return Sample(answer.outputs, answer.wall_s, answer.cpu_s, answer.bytes, answer.statistics)

    def primitives(self) -> dict[str, float]:
        """CPU seconds of one of each primitive that the program counts."""
        return dict(self._backend.primitives(self._compiled.program)) if self._encrypts else {}

    def close(self) -> None:
        """End the servers."""
        if self._encrypts:
            self._client.close()

    def _reach(self, network: str) -> Client:
        """A client of servers on this machine, behind a network if there is to be one."""
        program = self._compiled.program
        half = bundle.pack_client_half(self._compiled.interface, program.client)
        with between_parties(network):
            servers = self._backend.servers(program.servers)
        # What a dealer prepares is not online: a request starts when nobody works ahead.
        near, self._settle = InProcess(half, servers), getattr(servers[0], "settle", None)
        shape = NETWORKS[network]
        return Client(near if shape is None else Faraway(near, shape))

    def _simulate(self, x: npt.NDArray[Any]) -> Sample:
        watch = Stopwatch()
        self._seed += 1
        with watch.phase("run"):
            outputs = self._compiled.predict(x, mode="simulate", seed=self._seed)
        return Sample(outputs, watch.wall_s, watch.cpu_s, {})
