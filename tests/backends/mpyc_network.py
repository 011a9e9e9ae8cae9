"""A network in MPyC, whose secrets are Shamir's: `python mpyc_network.py -M3`, the folder in SECURE_INFER_TEST_FOLDER.

Reads graph.json, weights.safetensors and x.npy, and party 0 writes y.npy.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from mpyc.runtime import mpc

from secure_infer.graph import Graph, Linear, QuantRelu, Reshape, Sign, store

BITS = 32


def layer(graph: Graph, name: str, x: Any, secret: Any) -> Any:
    """One operation; `secret` shares an array of party 0."""
    op = graph.node(name).op
    match op:
        case Linear(weight=weight, bias=bias):
            return x @ secret(weight.T) + secret(bias)
        case Sign(threshold=threshold):
            return 2 * (x - secret(threshold) >= 0) - 1
        case QuantRelu(thresholds=thresholds, low=low):
            rows = np.atleast_2d(thresholds)
            return sum((x - secret(column) >= 0) for column in rows.T) + low
        case Reshape():
            return x.reshape(len(x), -1)
    raise TypeError(type(op).__name__)


async def main() -> None:
    folder = Path(os.environ["SECURE_INFER_TEST_FOLDER"])
    graph = store.from_bytes(*((folder / name).read_bytes() for name in ("graph.json", "weights.safetensors")))
    integers = mpc.SecInt(BITS)
    await mpc.start()

    def secret(values: np.ndarray) -> Any:
        return mpc.input(integers.array(np.asarray(values)), senders=0)

    x = secret(np.load(folder / "x.npy"))
    for node in graph.nodes:
        x = layer(graph, node.name, x, secret)
    y = np.asarray(await mpc.output(x)).astype(np.int64)
    if mpc.pid == 0:
        np.save(folder / "y.npy", y)
    await mpc.shutdown()


mpc.run(main())
