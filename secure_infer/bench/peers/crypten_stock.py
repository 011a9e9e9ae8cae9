"""CrypTen as it comes: secret-shared weights and inputs, its default fixed point and first-party provider."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt

from secure_infer.bench.cases import Entry
from secure_infer.bench.contender import Reals, Sample, Setup, Subject
from secure_infer.bench.ours import evaluate, graph_of
from secure_infer.client import Stopwatch
from secure_infer.errors import Problem, ProtocolError, UnsupportedNetwork, missing_extra
from secure_infer.graph import Graph, Linear, Reshape, Sign, store

_PARTIES = 2
_TIMEOUT_S = 300


class CryptenStock:
    """The integer graph as a program of CrypTen, in two processes.

    Party 0 holds the weights, party 1 the images; both see the result. The default provider lets party 0 read every
    mask: this is a baseline for speed, not a secure setting.

    Args:
        subject: A chain of linear layers and signs.
        entry: Takes no options.

    Raises:
        MissingExtra: CrypTen is not installed.
        UnsupportedNetwork: The network is no such chain.
    """

    def __init__(self, subject: Subject, entry: Entry) -> None:
        if importlib.util.find_spec("crypten") is None:
            raise missing_extra("The peer crypten", "mpc", "crypten")
        self._graph = graph_of(subject, "mpc")
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
            parameters={"parties": _PARTIES, "provider": "TFP", "precision_bits": 16},
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
        for rank in range(_PARTIES):
            mine, theirs = context.Pipe()
            process = context.Process(target=_party, args=(rank, port, theirs), daemon=True)
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
        if not isinstance(node.op, Linear | Sign | Reshape) or node.inputs != (before,)
    ]
    if problems:
        raise UnsupportedNetwork("The peer crypten can't run this network.", problems)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _party(rank: int, port: int, pipe: Connection) -> None:
    """A party's process: receive the graph, then answer images until the pipe closes."""
    rendezvous = f"tcp://127.0.0.1:{port}"
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(_PARTIES), RENDEZVOUS=rendezvous, OMP_NUM_THREADS="1")
    import crypten
    import torch

    torch.set_num_threads(1)
    crypten.init()
    crypten.cfg.communicator.verbose = True
    graph = store.from_bytes(pipe.recv_bytes(), pipe.recv_bytes())
    network = _share_network(crypten, torch, graph)
    pipe.send_bytes(b"ready")
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            shape = json.loads(pipe.recv_bytes())
            units = np.frombuffer(pipe.recv_bytes(), dtype="<i8").reshape(shape).astype(np.float64)
            _answer(pipe, rank, network, torch.tensor(units, dtype=torch.float64))


def _share_network(crypten: Any, torch: Any, graph: Graph) -> Callable[..., Any]:
    """The graph as a function of a shared tensor `(n, in)`; party 0's weights become shares here, once."""
    steps: list[Callable[[Any], Any]] = []
    for node in graph.nodes:
        if isinstance(node.op, Linear):
            weight = crypten.cryptensor(torch.tensor(node.op.weight.T.astype(np.float64)), src=0)
            bias = crypten.cryptensor(torch.tensor(node.op.bias.astype(np.float64)), src=0)
            steps.append(lambda x, weight=weight, bias=bias: x.matmul(weight) + bias)  # type: ignore[misc]
        elif isinstance(node.op, Sign):
            threshold = crypten.cryptensor(torch.tensor(node.op.threshold.astype(np.float64)), src=0)
            steps.append(lambda x, threshold=threshold: (x - threshold).ge(0) * 2 - 1)  # type: ignore[misc]

    def network(x: Any) -> Any:
        for step in steps:
            x = step(x)
        return x

    return network


def _answer(pipe: Connection, rank: int, network: Callable[..., Any], units: Any) -> None:
    import crypten
    from crypten import communicator

    watch, link = Stopwatch(), communicator.get()
    flat = units.reshape(len(units), -1)
    link.barrier()
    with watch.phase("encrypt"):
        shared = crypten.cryptensor(flat if rank == 1 else flat * 0, src=1)
    link.reset_communication_stats()
    with watch.phase("run"):
        result = network(shared)
    statistics = {"rounds": link.comm_rounds, "bytes_between_parties": link.comm_bytes}
    with watch.phase("decrypt"):
        outputs = result.get_plain_text()
    answer = {"wall_s": watch.wall_s, "cpu_s": watch.cpu_s, "statistics": statistics}
    pipe.send_bytes(json.dumps(answer).encode())
    if rank == 0:
        pipe.send_bytes(np.ascontiguousarray(outputs.numpy(), dtype="<f8").tobytes())
