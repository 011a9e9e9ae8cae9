"""The other side of the peer Orion: runs under the interpreter that has it, started by `pipe.py`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import numpy as np
import orion_compiler.nn as on
import torch
from lattigo import ckks, rlwe
from orion_compiler import CKKSParams, Compiler
from orion_evaluator import Evaluator, Model

_MOST_BITS = {13: 218, 14: 438, 15: 881}
"""Bits of all primes by log2 of the ring degree at 128-bit security: Orion checks none itself."""
_SCALE_BITS = 40


class Net(on.Module):  # type: ignore[misc]
    """Layers with squares between."""

    def __init__(self, layers: list[dict[str, Any]], arrays: Mapping[str, Any]) -> None:
        super().__init__()
        self.steps: list[str] = []
        for index, layer in enumerate(layers):
            if index:
                self._add(f"square{index}", on.Quad())
            if layer["kind"] == "linear" and (not index or layers[index - 1]["kind"] == "conv"):
                self._add(f"flat{index}", on.Flatten())
            weight, bias = (torch.tensor(arrays[f"{name}{index}"], dtype=torch.float32) for name in "wb")
            affine = (
                on.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], layer["stride"], layer["padding"])
                if layer["kind"] == "conv"
                else on.Linear(weight.shape[1], weight.shape[0])
            )
            affine.weight.data, affine.bias.data = weight, bias
            self._add(f"affine{index}", affine)

    def _add(self, name: str, layer: Any) -> None:
        self.add_module(name, layer)
        self.steps.append(name)

    def forward(self, x: Any) -> Any:
        """Images `(n, channels, height, width)` to outputs `(n, classes)`."""
        for name in self.steps:
            x = getattr(self, name)(x)
        return x


class Session:
    """A compiled network with its keys.

    Args:
        meta: The layers, the shape of an input, and options: `ring_type` as in Orion's parameters.
        arrays: Weights, and a sample of inputs.
    """

    def __init__(self, meta: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
        self._wall: dict[str, float] = {}
        self._cpu: dict[str, float] = {}
        chosen = _parameters(2 * len(meta["layers"]) - 1, **meta["options"])
        with self._phase("compile"), torch.no_grad():
            net = Net(meta["layers"], arrays).eval()
            compiler = Compiler(net, CKKSParams(**chosen))
            compiler.fit(torch.tensor(arrays["sample"][:1], dtype=torch.float32))
            self._model = Model.load(compiler.compile().to_bytes())
        asked, manifest, self._level = self._model.client_params()
        self._outputs = len(arrays[f"b{len(meta['layers']) - 1}"])
        with self._phase("keygen"):
            self._parameters = ckks.Parameters.from_dict(asked)
            generator = rlwe.KeyGenerator(self._parameters)
            secret = generator.gen_secret_key()
            galois = [generator.gen_galois_key(secret, element) for element in manifest["galois_elements"]]
            keys = rlwe.MemEvaluationKeySet(generator.gen_relin_key(secret), galois).marshal_binary()
        self._encoder = ckks.Encoder(self._parameters)
        self._encryptor = rlwe.Encryptor(self._parameters, generator.gen_public_key(secret))
        self._decryptor = rlwe.Decryptor(self._parameters, secret)
        self._evaluator = Evaluator(asked, keys)
        names = ("orion-v2-compiler", "orion-v2-evaluator", "orion-v2-lattigo")
        self.setup = {
            "wall_s": dict(self._wall),
            "cpu_s": dict(self._cpu),
            "evaluation_keys_sent": len(keys),
            "parameters": {**asked, "rotation_keys": len(galois), "versions": {name: version(name) for name in names}},
        }

    def infer(self, x: Any) -> tuple[Any, dict[str, Any]]:
        """One image `(1, channels, height, width)`: outputs `(classes,)`, and what it took."""
        self._wall, self._cpu = {}, {}
        slots = self._parameters.max_slots()
        with self._phase("encrypt"):
            values = np.zeros(slots)
            values[: x.size] = x.ravel()
            scale = self._parameters.default_scale()
            sent = self._encryptor.encrypt_new(self._encoder.encode(values.tolist(), self._level, scale))
            message = sent.marshal_binary()
        with self._phase("run"):
            (reply,) = self._evaluator.forward(self._model, [message])
        with self._phase("decrypt"):
            plain = self._decryptor.decrypt_new(rlwe.Ciphertext.unmarshal_binary(reply))
            outputs = np.array(self._encoder.decode(plain, slots))[: self._outputs]
        traffic = {"input": len(message), "output": len(reply)}
        return outputs, {"wall_s": self._wall, "cpu_s": self._cpu, "bytes": traffic}

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self._wall[name], self._cpu[name] = time.perf_counter() - wall, time.process_time() - cpu


def _parameters(depth: int, ring_type: str = "standard") -> dict[str, Any]:
    """The smallest ring that holds `depth` levels at 128 bits, with the largest scale that fits, up to 40 bits.

    The first prime is ten bits larger than the scale, for outputs up to 512, the special prime two more.
    """
    for logn, most in _MOST_BITS.items():
        scale = min(_SCALE_BITS, (most - 22) // (depth + 2))
        if scale >= 26:
            primes = [scale + 10, *[scale] * depth]
            return {
                "logn": logn,
                "logq": primes,
                "logp": [scale + 12],
                "log_default_scale": scale,
                "ring_type": ring_type,
            }
    raise ValueError(f"Orion would need bootstrapping for {depth} levels.")
