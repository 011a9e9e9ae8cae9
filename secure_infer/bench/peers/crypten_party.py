"""A party of CrypTen as it comes: the process that holds its shares of a network and answers images."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt

from secure_infer.backends.parties.network import NETWORKS, Network, wait_until
from secure_infer.client import Stopwatch
from secure_infer.graph import Conv2d, Graph, Linear, Max, Node, QuantRelu, Reshape, Sign, store
from secure_infer.graph.types import channelwise

PARTIES = 2
Step = Callable[[Any], Any]
_ELEMENT_BYTES = 8


def serve(pipe: Connection, rank: int, port: int, relu: bool, network: str) -> None:
    """Receive the graph, then answer images until the pipe closes.

    Args:
        pipe: To whoever measures.
        rank: 0, which holds the weights, or 1.
        port: Of the rendezvous.
        relu: Whether quantized ReLUs become plain ones.
        network: Name of the network to wait for.
    """
    rendezvous = f"tcp://127.0.0.1:{port}"
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(PARTIES), RENDEZVOUS=rendezvous, OMP_NUM_THREADS="1")
    import crypten
    import torch

    torch.set_num_threads(1)
    crypten.init()
    crypten.cfg.communicator.verbose = True
    graph = store.from_bytes(pipe.recv_bytes(), pipe.recv_bytes())
    steps = Sharing(crypten, torch, graph, relu).steps()
    shape = NETWORKS[network]
    if shape is not None:
        _slow_down(crypten.communicator.get(), shape)
    pipe.send_bytes(b"ready")
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            size = json.loads(pipe.recv_bytes())
            units = np.frombuffer(pipe.recv_bytes(), dtype="<i8").reshape(size).astype(np.float64)
            _answer(pipe, rank, steps, torch.tensor(units, dtype=torch.float64))


def _slow_down(link: Any, network: Network) -> None:
    """Let each reduction, which is how CrypTen opens values, take one way over the network: the least it could take."""
    plain = link.all_reduce

    def delayed(values: Any, *args: Any, **kwargs: Any) -> Any:
        result = plain(values, *args, **kwargs)
        elements = sum(part.nelement() for part in (values if isinstance(values, list) else [values]))
        wait_until(time.monotonic() + network.seconds(1, _ELEMENT_BYTES * elements))
        return result

    link.all_reduce = delayed


class Sharing:
    """The graph as steps on shared tensors; party 0's weights become shares when the steps are made, once.

    Args:
        crypten: The module.
        torch: The module.
        graph: A chain.
        relu: Whether quantized ReLUs become plain ones, their gain and offset folded into the layer before.
    """

    def __init__(self, crypten: Any, torch: Any, graph: Graph, relu: bool) -> None:
        self._crypten, self._torch, self._graph, self._relu = crypten, torch, graph, relu

    def steps(self) -> list[Step]:
        """One function for each node, of a shared tensor `(n, *shape)`."""
        return [self._step(index, node) for index, node in enumerate(self._graph.nodes)]

    def _step(self, index: int, node: Node) -> Step:
        shape = self._graph.types[node.name].shape
        match node.op:
            case Linear() | Conv2d():
                return self._affine(index, node.op)
            case Sign(threshold=threshold):
                level = self._share(channelwise(threshold[:, None], shape)[0])
                return lambda x: (x - level).ge(0) * 2 - 1
            case QuantRelu(thresholds=thresholds, low=low):
                if self._relu:
                    return lambda x: x.relu()
                levels = self._share(channelwise(thresholds, shape))
                return lambda x: (x.unsqueeze(1) - levels).ge(0).sum(1) + low
            case Max(kernel=kernel, stride=stride, padding=padding):
                return lambda x: x.max_pool2d(kernel, padding=padding, stride=stride)
            case Reshape():
                return lambda x: x.reshape((len(x), *shape))
        raise TypeError(f"CrypTen is not given {node.kind} here.")

    def _affine(self, index: int, op: Linear | Conv2d) -> Step:
        gain, offset = self._line(index)
        rows = (-1,) + (1,) * (op.weight.ndim - 1)
        weight = op.weight * np.broadcast_to(gain, op.bias.shape).reshape(rows)
        bias = self._share((op.bias * gain + offset).reshape(-1, *(1,) * (op.weight.ndim - 2)))
        if isinstance(op, Linear):
            shared = self._share(weight.T)
            return lambda x: x.matmul(shared) + bias
        shared = self._share(weight)
        options = {"stride": op.stride, "padding": op.padding, "dilation": op.dilation, "groups": op.groups}
        return lambda x: x.conv2d(shared, **options) + bias

    def _line(self, index: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Gain and offset of the ReLU nearest to the levels that follow, as a value or one for each channel."""
        following = next((node.op for node in self._graph.nodes[index + 1 :] if not isinstance(node.op, Max)), None)
        if not self._relu or not isinstance(following, QuantRelu):
            return np.ones(1), np.zeros(1)
        steps = np.atleast_2d(following.thresholds).astype(np.float64)
        width = np.maximum(1.0, (steps[:, -1] - steps[:, 0]) / max(1, steps.shape[1] - 1))
        return 1 / width, 0.5 - steps[:, 0] / width

    def _share(self, values: npt.NDArray[Any]) -> Any:
        return self._crypten.cryptensor(self._torch.tensor(np.asarray(values, dtype=np.float64)), src=0)


def _answer(pipe: Connection, rank: int, steps: list[Step], units: Any) -> None:
    import crypten
    from crypten import communicator

    watch, link = Stopwatch(), communicator.get()
    link.barrier()
    with watch.phase("encrypt"):
        shared = crypten.cryptensor(units if rank == 1 else units * 0, src=1)
    link.reset_communication_stats()
    with watch.phase("run"):
        for step in steps:
            shared = step(shared)
    statistics = {"rounds": link.comm_rounds, "bytes_between_parties": link.comm_bytes}
    with watch.phase("decrypt"):
        outputs = shared.get_plain_text()
    answer = {"wall_s": watch.wall_s, "cpu_s": watch.cpu_s, "statistics": statistics}
    pipe.send_bytes(json.dumps(answer).encode())
    if rank == 0:
        pipe.send_bytes(np.ascontiguousarray(outputs.reshape(len(outputs), -1).numpy(), dtype="<f8").tobytes())
