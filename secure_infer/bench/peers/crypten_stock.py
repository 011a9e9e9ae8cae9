"""CrypTen as it comes: secret-shared weights and inputs, its default fixed point and first-party provider."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import numpy as np
import numpy.typing as npt

from secure_infer.bench.cases import Entry
from secure_infer.bench.contender import Reals, Sample, Setup, Subject
from secure_infer.bench.ours import evaluate, graph_of
from secure_infer.bench.peers.crypten_party import PARTIES, serve
from secure_infer.bench.peers.spawned import Spawned, free_ports
from secure_infer.errors import Problem, UnsupportedNetwork, UsageError, missing_extra
from secure_infer.graph import Conv2d, Graph, Linear, Max, QuantRelu, Reshape, Sign, store

_RELU = "relu"


class CryptenStock:
    """The integer graph as a program of CrypTen, in two processes.

    Party 0 holds the weights, party 1 the images; both see the result. The default provider lets party 0 read every
    mask: this is a baseline for speed, not a secure setting.

    Args:
        subject: A chain of linear layers, convolutions, maxima, signs and quantized ReLUs.
        entry: With the option `relu`, each quantized ReLU is a plain one: cheaper, and another function than ours.

    Raises:
        MissingExtra: CrypTen is not installed.
        UnsupportedNetwork: The network is no such chain.
        UsageError: Another option.
    """

    def __init__(self, subject: Subject, entry: Entry) -> None:
        if importlib.util.find_spec("crypten") is None:
            raise missing_extra("The peer crypten", "mpc", "crypten")
        if set(entry.options) - {_RELU}:
            raise UsageError(
                "The peer crypten has no such options.",
                [Problem("options", f"Got {dict(entry.options)}.", "use relu = true, or none.")],
            )
        self._graph, self._settings = graph_of(subject, "mpc"), (bool(entry.options.get(_RELU)), entry.network)
        _require_expressible(self._graph)
        self._parties = Spawned("crypten")
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        self.setup = Setup(
            wall_s={},
            cpu_s={},
            parameters={"parties": PARTIES, "provider": "TFP", "precision_bits": 16},
            libraries=("crypten", "torch"),
        )

    def clear(self, x: npt.NDArray[Any]) -> Reals:
        """The integer graph."""
        return evaluate(self._graph, x, exact=True)

    def infer(self, x: npt.NDArray[Any]) -> Sample:
        """One batch; wall time is the slower party's, CPU time that of both."""
        units = np.ascontiguousarray(self._graph.quantize(x), dtype="<i8")
        for pipe in self._parties.pipes:
            pipe.send_bytes(json.dumps(list(units.shape)).encode())
            pipe.send_bytes(units.tobytes())
        answers = [json.loads(self._parties.receive(party)) for party in range(PARTIES)]
        values = np.frombuffer(self._parties.receive(0), dtype="<f8").reshape(len(x), -1)
        phases = ("encrypt", "run", "decrypt")
        wall = {phase: max(answer["wall_s"][phase] for answer in answers) for phase in phases}
        cpu = {phase: sum(answer["cpu_s"][phase] for answer in answers) for phase in phases}
        return Sample(self._graph.dequantize(values), wall, cpu, {}, answers[0]["statistics"])

    def primitives(self) -> dict[str, float]:
        """Not measured for peers."""
        return {}

    def close(self) -> None:
        """End both parties."""
        self._parties.close()

    def _start(self) -> None:
        (port,) = free_ports(1)
        self._parties.start(serve, [(rank, port, *self._settings) for rank in range(PARTIES)])
        for pipe in self._parties.pipes:
            for part in store.to_bytes(self._graph):
                pipe.send_bytes(part)
        for party in range(PARTIES):
            self._parties.receive(party)


def _require_expressible(graph: Graph) -> None:
    chain = ["input", *(node.name for node in graph.nodes)]
    problems = [
        Problem(node.name, f"The peer crypten does not express {node.kind} here.", "choose another model.")
        for before, node in zip(chain, graph.nodes, strict=False)
        if not isinstance(node.op, Linear | Conv2d | Max | Sign | QuantRelu | Reshape) or node.inputs != (before,)
    ]
    if problems:
        raise UnsupportedNetwork("The peer crypten can't run this network.", problems)
