"""Good inputs for the fuzz targets to start from: `python -m tests.fuzz.seeds FOLDER`."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from secure_infer import backends, bundle
from secure_infer.backends.clear import pack_integers
from secure_infer.graph import Conv2d, Graph, Linear, Lookup, Max, Node, Polynomial, QuantRelu, Reshape, TensorType
from secure_infer.serve.party_files import PartyHalf
from secure_infer.wire import frame


def network() -> Graph:
    """A network with the operations whose parameters can do the most harm."""
    ones, zeros = np.ones((2, 1, 2, 2), dtype=np.int64), np.zeros(2, dtype=np.int64)
    nodes = (
        Node("a", Conv2d(ones, zeros, padding=(1, 1)), ("input",)),
        Node("b", QuantRelu(np.arange(3)), ("a",)),
        Node("c", Max((2, 2), (1, 1)), ("b",)),
        Node("d", Reshape((18,)), ("c",)),
        Node("e", Lookup(np.array([0, 2, 1, 3]), 0), ("d",)),
        Node("f", Polynomial(np.array([[1, 2, 1]]), 1), ("e",)),
        Node("g", Linear(np.ones((3, 18), dtype=np.int64), np.zeros(3, dtype=np.int64)), ("f",)),
    )
    return Graph(TensorType((1, 3, 3), -3, 3), nodes, "g")


def save(path: Path) -> Path:
    """A bundle of `network` in the clear."""
    graph, backend = network(), backends.load("clear")
    program = backend.compile(graph, np.zeros((1, 1, 3, 3), dtype=np.int64), {})
    return bundle.save(path, graph, bundle.Interface.of(graph, "clear", program.guarantee), program, {})


def whole() -> bytes:
    """The file of a bundle."""
    with TemporaryDirectory() as folder:
        return save(Path(folder) / "good").read_bytes()


def parts() -> dict[str, bytes]:
    """The parts of a bundle."""
    with TemporaryDirectory() as folder, zipfile.ZipFile(save(Path(folder) / "good")) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def client_half() -> bytes:
    """A client half."""
    graph, backend = network(), backends.load("clear")
    program = backend.compile(graph, np.zeros((1, 1, 3, 3), dtype=np.int64), {})
    return bundle.pack_client_half(bundle.Interface.of(graph, "clear", program.guarantee), program.client)


def party_half() -> bytes:
    """A party's half."""
    half = client_half()
    return PartyHalf(bundle.unpack_client_half(half)[0], half, b"half", 0, 2).pack()


def array() -> bytes:
    """An array as a message."""
    return pack_integers(np.arange(6).reshape(2, 3))


def seeds() -> dict[str, dict[str, bytes]]:
    """Inputs by target and name; the first byte says how the target makes a file of the rest."""
    header = json.dumps({"kind": "thing", "parts": [2, 1], "meta": {"n": [1, None]}}).encode()
    packed = frame.pack("thing", [b"ab", b"c"], {"n": 1})
    return {
        "frame": {"raw": b"\0" + packed, "digest": b"\1" + packed[36:], "header": b"\2" + header + b"\0abc"},
        "messages": {"client": b"\0", "party": b"\1", "array": b"\2"},
        "bundle": {"raw": b"\0" + whole(), "manifest": b"\1", "network": b"\2", "weights": b"\3"},
    }


def main() -> None:
    """Write all seeds below a folder."""
    for target, found in seeds().items():
        place = Path(sys.argv[1]) / target
        place.mkdir(parents=True, exist_ok=True)
        for name, data in found.items():
            (place / name).write_bytes(data)


if __name__ == "__main__":
    main()
