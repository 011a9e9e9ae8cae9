"""A graph on disk: `graph.json` (structure, schema number) and `weights.safetensors` (int64 arrays); no pickle."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load, save

from secure_infer.errors import BundleError, Problem, SecureInferError
from secure_infer.graph import encoding
from secure_infer.graph.graph import Graph, Node
from secure_infer.graph.ops import OPS, Op
from secure_infer.graph.types import TensorType

SCHEMA = 2
"""What is read; what is written is 1 unless a polynomial has a bound, which readers of 1 would pass over."""


def to_bytes(graph: Graph) -> tuple[bytes, bytes]:
    """The graph as the contents of `graph.json` and `weights.safetensors`."""
    arrays: dict[str, npt.NDArray[Any]] = {"offset": np.asarray(graph.offset, dtype=np.float64)}
    nodes = []
    for node in graph.nodes:
        attributes: dict[str, Any] = {}
        for attribute in fields(node.op):
            value = getattr(node.op, attribute.name)
            if isinstance(value, np.ndarray):
                arrays[f"{node.name}.{attribute.name}"] = np.ascontiguousarray(value, dtype=np.int64)
            elif value is not None:
                attributes[attribute.name] = value
        nodes.append({"name": node.name, "op": node.kind, "inputs": node.inputs, **attributes})
    kind = graph.input
    head = {
        "schema": SCHEMA if any("bound" in node for node in nodes) else 1,
        "input": {"shape": kind.shape, "low": kind.low, "high": kind.high, "scale": kind.scale},
        "output": graph.output,
        "nodes": nodes,
    }
    if graph.encoding is not None:
        head["encoding"] = encoding.to_dict(graph.encoding)
    return json.dumps(head, indent=1).encode(), save(arrays)


def from_bytes(head: bytes, weights: bytes) -> Graph:
    """The graph that `to_bytes` wrote.

    Raises:
        BundleError: Not such a graph, or one of a newer schema.
        UnsupportedNetwork: A graph that does not type-check.
    """
    try:
        data = json.loads(head)
        schema = data["schema"]
        if schema > SCHEMA:
            raise BundleError(
                "The graph was written by a newer version.",
                [
                    Problem(
                        "graph.json",
                        f"Its schema is {schema}; this version reads up to {SCHEMA}.",
                        "upgrade secure_infer.",
                    )
                ],
            )
        if len({entry["name"] for entry in data["nodes"]}) < len(data["nodes"]):
            raise ValueError("two nodes have one name")
        arrays = load(weights)
        nodes = tuple(_node(entry, arrays) for entry in data["nodes"])
        kind = data["input"]
        input_type = TensorType(tuple(kind["shape"]), kind["low"], kind["high"], tuple(kind["scale"]))
        coded = encoding.from_dict(data["encoding"]) if "encoding" in data else None
        return Graph(input_type, nodes, data["output"], arrays["offset"], coded)
    except SecureInferError:
        raise
    except Exception as error:
        # A forged graph fails wherever its values are first used, by an exception of any kind.
        raise _unreadable(error) from error


def fingerprint(graph: Graph) -> str:
    """SHA-256 of the stored form: the name of a network, by content."""
    digest = hashlib.sha256()
    for part in to_bytes(graph):
        digest.update(part)
    return digest.hexdigest()


def _unreadable(error: Exception) -> BundleError:
    return BundleError(
        "The graph can't be read.",
        [Problem("graph.json", f"{type(error).__name__}: {error}.", "fetch or compile the model again.")],
    )


def _node(entry: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> Node:
    op_type = OPS[entry["op"]]
    attributes: dict[str, Any] = {}
    for attribute in fields(op_type):
        key = f"{entry['name']}.{attribute.name}"
        if attribute.default is None and attribute.name not in entry:
            continue
        value = arrays[key] if key in arrays else entry[attribute.name]
        attributes[attribute.name] = tuple(value) if isinstance(value, list) else value
    op: Op = op_type(**attributes)
    return Node(entry["name"], op, tuple(entry["inputs"]))
