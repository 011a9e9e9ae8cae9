"""Whole networks under both engines beside MPyC, which shares nothing with them: three parties, Shamir's secrets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from secure_infer import compile
from secure_infer.bench.untrained import binarized_mlp
from secure_infer.graph import Graph, Linear, Node, QuantRelu, TensorType, store

pytest.importorskip("crypten")
pytest.importorskip("mpyc")

pytestmark = pytest.mark.full
RNG = np.random.default_rng(11)


def relu_mlp() -> Graph:
    """Rows of thresholds for each neuron, the first and last of which no sum reaches."""
    steps = np.sort(RNG.integers(-40, 41, (16, 3)), axis=1)
    steps[0], steps[-1] = (-(10**6), 0, 10**6), (10**6, 10**6, 10**6)
    nodes = (
        Node("a", Linear(RNG.integers(-3, 4, (16, 60)), RNG.integers(-9, 10, 16)), ("input",)),
        Node("b", QuantRelu(steps), ("a",)),
        Node("c", Linear(RNG.integers(-3, 4, (5, 16)), RNG.integers(-9, 10, 5)), ("b",)),
    )
    return Graph(TensorType((60,), 0, 7), nodes, "c")


def by_mpyc(graph: Graph, x: np.ndarray, folder: Path) -> np.ndarray:
    for name, data in zip(("graph.json", "weights.safetensors"), store.to_bytes(graph), strict=True):
        (folder / name).write_bytes(data)
    np.save(folder / "x.npy", x)
    script = Path(__file__).with_name("mpyc_network.py")
    environment = {**os.environ, "SECURE_INFER_TEST_FOLDER": str(folder)}
    subprocess.run([sys.executable, script, "-M3", "--no-log"], env=environment, check=True, timeout=400)
    return np.load(folder / "y.npy")


@pytest.mark.parametrize("name", ["binarized, MPyC's demonstration at a sixteenth of its width", "quantized ReLU"])
def test_both_engines_give_what_mpyc_gives(name: str, tmp_path: Path) -> None:
    graph = relu_mlp() if name == "quantized ReLU" else binarized_mlp([784, 256, 256, 256, 10])
    x = RNG.integers(graph.input.low, graph.input.high + 1, (3, *graph.input.shape))
    expected = by_mpyc(graph, x, tmp_path)
    reals = x * graph.input.scale[0]
    for protocol in ("mpc", "mpc-fss"):
        compiled = compile(graph, reals, protocol)
        try:
            found = compiled.client().infer(reals).values
        finally:
            compiled.close()
        assert np.array_equal(found, expected), protocol
