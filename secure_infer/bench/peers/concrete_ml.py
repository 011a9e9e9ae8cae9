"""Concrete ML: `compile_brevitas_qat_model` with its defaults or options, and its circuit's own client and server."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from secure_infer.bench.cases import Entry
from secure_infer.bench.contender import Reals, Sample, Setup, Subject
from secure_infer.bench.peers.concrete_ml_form import readable
from secure_infer.client import Stopwatch
from secure_infer.errors import Problem, UnsupportedNetwork, missing_extra


class ConcreteML:
    """A network as Concrete ML compiles and runs it.

    Args:
        subject: A model whose network is made of Brevitas, binarized and torch layers.
        entry: `options` go to `compile_brevitas_qat_model`.

    Raises:
        MissingExtra: Concrete ML is not installed.
        UnsupportedNetwork: Concrete ML can't import the network.
    """

    def __init__(self, subject: Subject, entry: Entry) -> None:
        watch = Stopwatch()
        with watch.phase("compile"):
            self._module = _compile(subject, entry)
        self._circuit = self._module.fhe_circuit
        with watch.phase("keygen"):
            self._circuit.keygen(force=True)
        self._keys = self._circuit.client.evaluation_keys
        self.setup = Setup(
            wall_s=watch.wall_s,
            cpu_s=watch.cpu_s,
            evaluation_keys=self._circuit.size_of_bootstrap_keys + self._circuit.size_of_keyswitch_keys,
            evaluation_keys_sent=len(self._keys.serialize()),
            parameters={"complexity": self._circuit.complexity, "p_error": self._circuit.p_error},
            counts={"programmable_bootstraps": self._circuit.programmable_bootstrap_count},
            libraries=("concrete-ml", "concrete-python"),
        )

    def clear(self, x: npt.NDArray[Any]) -> Reals:
        """Concrete ML's quantized module in the clear."""
        return np.asarray(self._module.forward(x.astype(np.float32), fhe="disable"), dtype=np.float64)

    def infer(self, x: npt.NDArray[Any]) -> Sample:
        """One image after another, as Concrete ML does with a batch."""
        watch, traffic, outputs = _Sums(), {"input": 0, "output": 0}, []
        for image in x:
            outputs.append(self._one(image[None], watch, traffic))
        return Sample(np.concatenate(outputs), watch.wall_s, watch.cpu_s, traffic)

    def primitives(self) -> dict[str, float]:
        """Not measured for peers."""
        return {}

    def close(self) -> None:
        """Nothing to release."""

    def _one(self, x: npt.NDArray[Any], sums: _Sums, traffic: dict[str, int]) -> Reals:
        from concrete.fhe import Value

        watch = Stopwatch()
        with watch.phase("encrypt"):
            sent = self._circuit.encrypt(self._module.quantize_input(x.astype(np.float32))).serialize()
        with watch.phase("run"):
            reply = self._circuit.server.run(Value.deserialize(sent), evaluation_keys=self._keys).serialize()
        with watch.phase("decrypt"):
            values = self._module.dequantize_output(self._circuit.decrypt(Value.deserialize(reply)))
        sums.add(watch)
        traffic["input"] += len(sent)
        traffic["output"] += len(reply)
        return np.asarray(values, dtype=np.float64)


class _Sums(Stopwatch):
    """Times of several images added up."""

    def add(self, watch: Stopwatch) -> None:
        for mine, other in ((self.wall_s, watch.wall_s), (self.cpu_s, watch.cpu_s)):
            for phase, seconds in other.items():
                mine[phase] = mine.get(phase, 0.0) + seconds


def _compile(subject: Subject, entry: Entry) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Its imports and its exporter warn of what no user can change.
        return _compile_noisily(subject, entry)


def _compile_noisily(subject: Subject, entry: Entry) -> Any:
    try:
        from concrete.ml.torch.compile import compile_brevitas_qat_model
    except ImportError as error:
        raise missing_extra("The peer concrete-ml", "tfhe", "concrete.ml") from error
    net = readable(subject)
    try:
        return compile_brevitas_qat_model(net, subject.calibration.astype(np.float32), **entry.options)
    except Exception as error:  # Its importer fails in many ways; each means that it can't take this network.
        raise UnsupportedNetwork(
            f"Concrete ML can't compile {subject.name}.",
            [Problem("concrete-ml", f"{type(error).__name__}: {str(error)[:300]}.", "choose another model.")],
        ) from error
