"""The other side of the peer HElayers: runs under the interpreter that has it, started by `pipe.py`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyhelayers
from onnx import TensorProto, helper, numpy_helper

_OPSET = 13
_IR_VERSION = 8


def network(layers: list[dict[str, Any]], arrays: Mapping[str, Any], shape: list[int]) -> Any:
    """The layers with squares between, as an ONNX model of one input `x` and one output `y`."""
    nodes, weights, value = [], [], "x"
    for index, layer in enumerate(layers):
        if index:
            nodes.append(helper.make_node("Mul", [value, value], [f"square{index}"]))
            value = f"square{index}"
        if layer["kind"] == "linear" and (not index or layers[index - 1]["kind"] == "conv"):
            nodes.append(helper.make_node("Flatten", [value], [f"flat{index}"]))
            value = f"flat{index}"
        names = [f"w{index}", f"b{index}"]
        weight = arrays[names[0]]
        if layer["kind"] == "linear" and index and layers[index - 1]["kind"] == "conv":
            # HElayers flattens images with channels last, whatever ONNX says.
            channels = len(arrays[f"b{index - 1}"])
            rows = weight.reshape(len(weight), channels, *_sides(layers[index - 1], arrays["w0"].shape[2], shape))
            weight = rows.transpose(0, 2, 3, 1).reshape(len(weight), -1)
        values = (weight, arrays[names[1]])
        weights += [numpy_helper.from_array(v.astype(np.float32), n) for n, v in zip(names, values, strict=True)]
        result = "y" if index == len(layers) - 1 else f"affine{index}"
        if layer["kind"] == "conv":
            stride, padding, side = layer["stride"], layer["padding"], arrays[f"w{index}"].shape[2]
            options = {"kernel_shape": [side] * 2, "strides": [stride] * 2, "pads": [padding] * 4}
            nodes.append(helper.make_node("Conv", [value, *names], [result], **options))
        else:
            nodes.append(helper.make_node("Gemm", [value, *names], [result], transB=1))
        value = result
    outputs = len(arrays[f"b{len(layers) - 1}"])
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, outputs])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)


def _sides(layer: Mapping[str, Any], kernel: int, shape: list[int]) -> list[int]:
    """Height and width of a convolution's output."""
    return [(side + 2 * layer["padding"] - kernel) // layer["stride"] + 1 for side in shape[1:]]


class Session:
    """An encoded network with its keys.

    Args:
        meta: The layers, and the shape of an input.
        arrays: Weights, and a sample of inputs.
    """

    def __init__(self, meta: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
        self._wall: dict[str, float] = {}
        self._cpu: dict[str, float] = {}
        with self._phase("compile"):
            plain = pyhelayers.NeuralNetPlain()
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "network.onnx"
                onnx.save(network(meta["layers"], arrays, meta["shape"]), str(path))
                plain.init_from_files(pyhelayers.PlainModelHyperParams(), [str(path)])
            wanted = pyhelayers.HeRunRequirements()
            wanted.set_he_context_options([pyhelayers.SealCkksContext()])
            wanted.set_security_level(128)
            wanted.set_model_encrypted(False)
            wanted.optimize_for_batch_size(1)
            profile = pyhelayers.HeModel.compile(plain, wanted)
        with self._phase("keygen"):
            self._context = pyhelayers.HeModel.create_context(profile)
        self._model = pyhelayers.NeuralNet(self._context)
        self._model.encode(plain, profile)
        self._client = self._model.create_model_io_encoder()
        self.setup = {
            "wall_s": dict(self._wall),
            "cpu_s": dict(self._cpu),
            "evaluation_keys_sent": len(self._context.save_to_buffer()),
            "parameters": {
                "slots": self._context.slot_count(),
                "levels": self._context.get_top_chain_index(),
                "security": self._context.get_security_level(),
                "versions": {"pyhelayers": version("pyhelayers")},
            },
        }

    def infer(self, x: Any) -> tuple[Any, dict[str, Any]]:
        """One image `(1, channels, height, width)`: outputs `(classes,)`, and what it took."""
        self._wall, self._cpu = {}, {}
        sent, reply = pyhelayers.EncryptedData(self._context), pyhelayers.EncryptedData(self._context)
        with self._phase("encrypt"):
            self._client.encode_encrypt(sent, [np.asarray(x, dtype=np.float64)])
            message = sent.save_to_buffer()
        with self._phase("run"):
            read = pyhelayers.EncryptedData(self._context)
            read.load_from_buffer(message)
            self._model.predict(reply, read)
            answer = reply.save_to_buffer()
        with self._phase("decrypt"):
            outputs = self._client.decrypt_decode_output(reply)
        traffic = {"input": len(message), "output": len(answer)}
        return np.asarray(outputs).ravel(), {"wall_s": self._wall, "cpu_s": self._cpu, "bytes": traffic}

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self._wall[name], self._cpu[name] = time.perf_counter() - wall, time.process_time() - cpu
