"""CrypTen as it comes: secret-shared weights and inputs, its default fixed point and first-party provider."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import socket
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt

from secure_infer.bench.cases import Entry
from secure_infer.bench.contender import Reals, Sample, Setup, Subject
from secure_infer.bench.ours import evaluate, graph_of
from secure_infer.bench.peers.crypten_party import PARTIES, serve
from secure_infer.errors import Problem, ProtocolError, UnsupportedNetwork, UsageError, missing_extra
from secure_infer.graph import Conv2d, Graph, Linear, Max, QuantRelu, Reshape, Sign, store

_TIMEOUT_S = 600
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
        self._parties: list[tuple[Any, Connection]] = []
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
        for _, pipe in self._parties:
            pipe.send_bytes(json.dumps(list(units.shape)).encode())
            pipe.send_bytes(units.tobytes())
        answers = [json.loads(_receive(pipe)) for _, pipe in self._parties]
        values = np.frombuffer(_receive(self._parties[0][1]), dtype="<f8").reshape(len(x), -1)
        phases = ("encrypt", "run", "decrypt")
        wall = {phase: max(answer["wall_s"][phase] for answer in answers) for phase in phases}
        cpu = {phase: sum(answer["cpu_s"][phase] for answer in answers) for phase in phases}
        return Sample(self._graph.dequantize(values), wall, cpu, {}, answers[0]["statistics"])

    def primitives(self) -> dict[str, float]:
        """Not measured for peers."""
        return {}

    def close(self) -> None:
        """End both parties."""
        for process, pipe in self._parties:
            pipe.close()
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()
        self._parties = []

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        port = _free_port()
        for rank in range(PARTIES):
            mine, theirs = context.Pipe()
            process = context.Process(target=serve, args=(rank, port, theirs, *self._settings), daemon=True)
            process.start()
            theirs.close()
            self._parties.append((process, mine))
        for _, pipe in self._parties:
            for part in store.to_bytes(self._graph):
                pipe.send_bytes(part)
        for _, pipe in self._parties:
            _receive(pipe)


def _receive(pipe: Connection) -> bytes:
    if not pipe.poll(_TIMEOUT_S):
        raise ProtocolError("A CrypTen party does not answer.")
    try:
        return pipe.recv_bytes()
    except (EOFError, OSError) as error:
        raise ProtocolError("A CrypTen party ended.") from error


def _require_expressible(graph: Graph) -> None:
    chain = ["input", *(node.name for node in graph.nodes)]
    problems = [
        Problem(node.name, f"The peer crypten does not express {node.kind} here.", "choose another model.")
        for before, node in zip(chain, graph.nodes, strict=False)
        if not isinstance(node.op, Linear | Conv2d | Max | Sign | QuantRelu | Reshape) or node.inputs != (before,)
    ]
    if problems:
        raise UnsupportedNetwork("The peer crypten can't run this network.", problems)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
