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
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt

from secure_infer.backends.parties.network import LOOPBACK
from secure_infer.bench.cases import Entry
from secure_infer.bench.contender import Reals, Sample, Setup, Subject
from secure_infer.bench.ours import evaluate, graph_of
from secure_infer.bench.peers.spawned import TIMEOUT_S, Spawned, free_ports, receive
from secure_infer.client import Stopwatch
from secure_infer.errors import Problem, UnsupportedNetwork, UsageError, missing_extra
from secure_infer.graph import Conv2d, Graph, Linear, Max, Node, QuantRelu, Reshape, Sign, store
from secure_infer.graph.types import Pair, channelwise

PROTOCOLS = {"ABY3": 3, "CHEETAH": 2}
"""Parties of each protocol."""
_RING_BITS = 32


class Spu:
    """The integer graph as a JAX function, compiled and run by SPU; weights are shared once.

    Args:
        subject: A chain of linear layers, convolutions of one group, maxima without padding, signs and quantized ReLUs.
        entry: `options` may name the protocol: "ABY3", the default, or "CHEETAH".

    Raises:
        MissingExtra: SPU is not installed.
        UnsupportedNetwork: Another network, or delays between parties: SPU makes its own connections.
        UsageError: Other options.
    """

    def __init__(self, subject: Subject, entry: Entry) -> None:
        if importlib.util.find_spec("spu") is None:
            raise missing_extra("The peer spu", "spu", "spu")
        self._protocol, self._batch = _protocol(entry), entry.batch
        self._graph = graph_of(subject, "mpc")
        _require_expressible(self._graph, entry.network)
        self._parties = Spawned("spu")
        from spu import Io

        self._io = Io(PROTOCOLS[self._protocol], _configuration(self._protocol))
        watch = Stopwatch()
        try:
            with watch.phase("compile"):
                self._start()
            with watch.phase("keygen"):
                self.infer(np.zeros((entry.batch, *self._graph.input.shape)))  # the first run sets up transfers
        except BaseException:
            self.close()
            raise
        parameters = {"parties": PROTOCOLS[self._protocol], "scheme": self._protocol, "ring_bits": _RING_BITS}
        self.setup = Setup(watch.wall_s, {}, parameters=parameters, libraries=("spu", "jax"))

    def clear(self, x: npt.NDArray[Any]) -> Reals:
        """The integer graph."""
        return evaluate(self._graph, x, exact=True)

    def infer(self, x: npt.NDArray[Any]) -> Sample:
        """One batch; the time of a run is the slowest party's."""
        watch = Stopwatch()
        with watch.phase("encrypt"):
            self._share("x", self._graph.quantize(x))
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
        self._parties.start(_party, [(rank, hosts, self._protocol, self._batch) for rank in range(len(hosts))])
        for pipe in self._parties.pipes:
            for part in store.to_bytes(self._graph):
                pipe.send_bytes(part)
        for name, values in weights(self._graph).items():
            self._share(name, values)
        for party in range(len(hosts)):
            self._parties.receive(party)

    def _share(self, name: str, values: npt.NDArray[Any]) -> None:
        from spu.libspu import Visibility

        shares = self._io.make_shares(np.ascontiguousarray(values, dtype=np.int32), Visibility.VIS_SECRET)
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


def _require_expressible(graph: Graph, network: str) -> None:
    chain = ["input", *(node.name for node in graph.nodes)]
    problems = [
        Problem(node.name, f"The peer spu does not express {node.kind} here.", "choose another model.")
        for before, node in zip(chain, graph.nodes, strict=False)
        if not isinstance(node.op, Linear | Conv2d | Max | Sign | QuantRelu | Reshape)
        or node.inputs != (before,)
        or (isinstance(node.op, Max) and any(node.op.padding))
        or (isinstance(node.op, Conv2d) and node.op.groups > 1)
    ]
    widest = max(graph.types[node.name].bits for node in graph.nodes)
    if widest >= _RING_BITS - 1:
        problems.append(Problem("sums", f"They have {widest} bits.", f"use fewer than {_RING_BITS - 1}."))
    if network != LOOPBACK:
        problems.append(Problem("network", "Its connections can't be slowed down.", "measure it on loopback."))
    if problems:
        raise UnsupportedNetwork("The peer spu can't run this network.", problems)


def _configuration(protocol: str) -> Any:
    from spu import libspu

    kind, field = getattr(libspu.ProtocolKind, protocol), libspu.FieldType.FM32
    return libspu.RuntimeConfig(protocol=kind, field=field)


def weights(graph: Graph) -> dict[str, npt.NDArray[Any]]:
    """All that is secret in a graph, by name: weights, biases, thresholds in the shape that they are compared in."""
    found = {}
    for node in graph.nodes:
        shape = graph.types[node.name].shape
        match node.op:
            case Linear() | Conv2d():
                found[f"{node.name}.weight"] = node.op.weight
                found[f"{node.name}.bias"] = node.op.bias.reshape((-1,) + (1,) * (len(shape) - 1))
            case Sign(threshold=threshold):
                found[f"{node.name}.steps"] = channelwise(threshold[:, None], shape)
            case QuantRelu(thresholds=thresholds):
                found[f"{node.name}.steps"] = channelwise(thresholds, shape)
    return {name: np.clip(values, -(2**30), 2**30) for name, values in found.items()}


def function(graph: Graph, batch: int) -> Callable[..., Any]:
    """The graph as a JAX function of the input, shape `(batch, *shape)`, and of `weights` in their order."""
    names = list(weights(graph))

    def network(x: Any, *secrets: Any) -> Any:
        known = dict(zip(names, secrets, strict=True))
        for node in graph.nodes:
            x = _layer(node, x, known, (batch, *graph.types[node.name].shape))
        return x

    return network


def _layer(node: Node, x: Any, known: dict[str, Any], shape: tuple[int, ...]) -> Any:
    from jax import numpy as jnp

    match node.op:
        case Linear():
            return x @ known[f"{node.name}.weight"].T + known[f"{node.name}.bias"]
        case Conv2d(stride=stride, padding=padding, dilation=dilation):
            weight = known[f"{node.name}.weight"]
            image = jnp.pad(x, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2))
            columns = _gathered(image, (weight.shape[2], weight.shape[3]), stride, dilation)
            product = columns.reshape(len(x), -1, weight[0].size) @ weight.reshape(len(weight), -1).T
            return product.transpose(0, 2, 1).reshape(shape) + known[f"{node.name}.bias"]
        case Max(kernel=kernel, stride=stride):
            window = _gathered(x.reshape(len(x) * len(x[0]), 1, *x.shape[2:]), kernel, stride, (1, 1))
            while window.shape[-1] > 1:
                half = window.shape[-1] // 2
                larger = jnp.maximum(window[..., :half], window[..., half : 2 * half])
                window = jnp.concatenate([larger, window[..., 2 * half :]], axis=-1)
            return window.reshape(shape)
        case Sign():
            return 2 * (x >= known[f"{node.name}.steps"][0]).astype(jnp.int32) - 1
        case QuantRelu(low=low):
            return (x[:, None] >= known[f"{node.name}.steps"]).astype(jnp.int32).sum(axis=1) + low
        case _:
            return x.reshape(shape)


def _gathered(x: Any, kernel: Pair, stride: Pair, dilation: Pair) -> Any:
    """The elements of each window, shape `(n, windows, channels * kernel height * kernel width)`."""
    from jax import numpy as jnp

    extent = [dilation[axis] * (kernel[axis] - 1) + 1 for axis in (0, 1)]
    height, width = ((x.shape[2 + axis] - extent[axis]) // stride[axis] + 1 for axis in (0, 1))
    places = [(dilation[0] * i, dilation[1] * j) for i in range(kernel[0]) for j in range(kernel[1])]
    # Slices alone: SPU's own gathering of secret values ends its process.
    parts = [
        x[:, :, i : i + (height - 1) * stride[0] + 1 : stride[0], j : j + (width - 1) * stride[1] + 1 : stride[1]]
        for i, j in places
    ]
    stacked = jnp.stack(parts, axis=2).reshape(len(x), -1, height * width)
    return stacked.transpose(0, 2, 1)


def _party(pipe: Connection, rank: int, hosts: Sequence[str], protocol: str, batch: int) -> None:
    """A party's process: compile, take shares of weights, then run on shares of images until the pipe closes."""
    os.environ.update(JAX_PLATFORMS="cpu", OMP_NUM_THREADS="1")
    from spu import Runtime, libspu

    quiet = libspu.logging.LogOptions()
    quiet.log_level = libspu.logging.LogLevel.ERROR
    quiet.system_log_path = quiet.trace_log_path = os.devnull
    libspu.logging.setup_logging(quiet)
    graph = store.from_bytes(pipe.recv_bytes(), pipe.recv_bytes())
    executable, output = _compiled(graph, batch)
    description = libspu.link.Desc()
    for number, host in enumerate(hosts):
        description.add_party(f"party {number}", host)
    description.recv_timeout_ms = 1000 * TIMEOUT_S
    link = libspu.link.create_brpc(description, rank)
    runtime = Runtime(link, _configuration(protocol))
    for _ in weights(graph):
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
            _write_share(pipe, runtime.get_var(output))


def _compiled(graph: Graph, batch: int) -> tuple[Any, str]:
    """The executable, which is the same at all parties, and the name of its output."""
    from spu.libspu import Visibility
    from spu.utils import frontend

    secrets = {name: values.astype(np.int32) for name, values in weights(graph).items()}
    x = np.zeros((batch, *graph.input.shape), dtype=np.int32)
    names, visible = ["x", *secrets], [Visibility.VIS_SECRET] * (1 + len(secrets))
    arguments = [x, *(np.zeros_like(values) for values in secrets.values())]
    call, output = function(graph, batch), "y"
    executable, _ = frontend.compile(frontend.Kind.JAX, call, arguments, {}, names, visible, lambda flat: [output])
    return executable, output


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
