"""Peers whose libraries need an environment of their own: a subprocess under another interpreter, named by the user."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from secure_infer.bench.cases import Entry
from secure_infer.bench.contender import Reals, Sample, Setup, Subject
from secure_infer.bench.ours import evaluate, graph_of
from secure_infer.bench.peers import pipe
from secure_infer.bench.peers.squares import first_convolution, kernels, squares_form, unsuited
from secure_infer.errors import MissingExtra, Problem, ProtocolError, UnsupportedNetwork
from secure_infer.graph import Graph

_HERE = Path(__file__).parent


class Foreign:
    """Our very graph in a library that lives elsewhere: a first convolution, linear layers, and squares between.

    Args:
        subject: A chain of affine layers and quadratics.
        entry: Its options go to the library's adapter.

    Raises:
        MissingExtra: No interpreter is named, or it lacks the library.
        UnsupportedNetwork: The network is no such chain.
    """

    name: ClassVar[str]
    packages: ClassVar[str]
    adapter: ClassVar[str]

    def __init__(self, subject: Subject, entry: Entry) -> None:
        interpreter = self._interpreter()
        self._graph = graph_of(subject, "ckks")
        meta, arrays = layers_of(self._graph)
        meta["options"] = dict(entry.options)
        arrays["sample"] = self._reals(subject.calibration[:64])
        self._process = subprocess.Popen(
            [interpreter, str(_HERE / "pipe.py"), str(_HERE / self.adapter)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={key: value for key, value in os.environ.items() if not key.startswith("PYTHON")},
        )
        try:
            setup = self._ask(meta, arrays)[0]
            if "missing" in setup:
                raise self._absent(f"{interpreter} says: {setup['missing']}.")
        except BaseException:
            self.close()
            raise
        self.setup = Setup(
            wall_s=setup["wall_s"],
            cpu_s=setup["cpu_s"],
            evaluation_keys_sent=setup["evaluation_keys_sent"],
            parameters=setup["parameters"],
        )

    def clear(self, x: npt.NDArray[Any]) -> Reals:
        """The graph over the reals."""
        return evaluate(self._graph, x, exact=False)

    def infer(self, x: npt.NDArray[Any]) -> Sample:
        """One request, timed in the peer's process.

        Raises:
            UnsupportedNetwork: More than one image.
        """
        if len(x) != 1:
            what = Problem("batch", f"Got {len(x)}.", "use batch = 1.")
            raise UnsupportedNetwork(f"The peer {self.name} takes one image.", [what])
        meta, arrays = self._ask({}, {"x": self._reals(x)})
        outputs = arrays["outputs"].reshape(1, -1) + self._graph.offset
        return Sample(outputs, meta["wall_s"], meta["cpu_s"], meta["bytes"])

    def primitives(self) -> dict[str, float]:
        """Not measured for peers."""
        return {}

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()  # type: ignore[union-attr]
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()  # type: ignore[union-attr]

    @classmethod
    def variable(cls) -> str:
        """The environment variable that names the interpreter."""
        return f"SECURE_INFER_{cls.name.upper()}_PYTHON"

    def _interpreter(self) -> str:
        found = os.environ.get(self.variable(), "")
        if not found:
            raise self._absent(f"{self.variable()} is not set.")
        if not os.access(found, os.X_OK):
            raise self._absent(f"{self.variable()} names {found}, which can't be run.")
        return found

    def _absent(self, what: str) -> MissingExtra:
        fix = f"make an environment, `pip install {self.packages}` there, and let {self.variable()} name its python."
        return MissingExtra(
            f"The peer {self.name} needs an environment of its own. {what}", [Problem(self.name, what, fix)]
        )

    def _reals(self, x: npt.NDArray[Any]) -> Reals:
        """Inputs as the integer network reads them, in real units."""
        return np.asarray(self._graph.quantize(x) * self._graph.input.scale_array())

    def _ask(self, meta: dict[str, Any], arrays: dict[str, Any]) -> pipe.Message:
        try:
            pipe.write(self._process.stdin, meta, arrays)  # type: ignore[arg-type]
            reply = pipe.read(self._process.stdout)  # type: ignore[arg-type]
        except (OSError, ValueError) as error:
            raise ProtocolError(f"The peer {self.name} does not answer: {error}.") from error
        if reply is None:
            raise ProtocolError(f"The peer {self.name} ended; its own error is above.")
        return reply


def layers_of(graph: Graph) -> pipe.Message:
    """The network as layers with squares between them: what they are, and their weights `w0 b0 w1 b1 ...`.

    Raises:
        UnsupportedNetwork: A network that is no chain of affine layers and quadratics.
    """
    maps, op = squares_form(graph), first_convolution(graph)
    arrays: dict[str, Reals] = {}
    layers: list[dict[str, Any]] = []
    for index, step in enumerate(maps):
        weight, bias = step.matrix.T, step.bias
        if not index and op:
            channels = step.bias.reshape(len(op.weight), -1)
            if np.ptp(channels, axis=1).max() > 1e-9 * max(1.0, float(np.abs(channels).max())):
                raise unsuited("The quadratics of one channel differ.")
            if op.padding[0] != op.padding[1] or op.weight.shape[2] != op.weight.shape[3]:
                raise unsuited("Its convolution is not square.")
            weight, bias = kernels(op), channels[:, 0]
            layers.append({"kind": "conv", "stride": op.stride[0], "padding": op.padding[0]})
        else:
            layers.append({"kind": "linear"})
        arrays[f"w{index}"], arrays[f"b{index}"] = weight, bias
    return {"layers": layers, "shape": list(graph.input.shape)}, arrays
