"""Files whose checksums hold but whose contents make no sense: one clear error each, never a library's own."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import secure_infer as si
from secure_infer import backends, bundle
from secure_infer.backends.base import Keys
from secure_infer.compiler import Compiled
from secure_infer.errors import BundleError, DecryptionError, SecureInferError
from secure_infer.wire import frame
from tests.networks import all_corners, small_graph

BAD = [None, -1, 0, 1.5, "x", [], {}, 1 << 70, 1 << 40, float("nan"), float("inf"), [-1], [[1]], [1 << 62, 4]]
HALVES = {"ckks": "ckks-client", "mpc": "mpc-client", "mpc-fss": "mpc-fss-client"}


@pytest.fixture(scope="module", params=["clear", "ckks", "mpc", "mpc-fss"])
def compiled(request: pytest.FixtureRequest) -> Compiled:
    graph = small_graph(exact=request.param != "ckks")
    return si.compile(graph, all_corners(graph), protocol=request.param)


def _forgeries(value: dict[str, Any], path: tuple[Any, ...] = ()) -> Iterator[dict[str, Any]]:
    """`value` with each of its leaves and branches replaced by each bad value, and left out."""
    whole, here = value, value
    for key in path:
        here = here[key]
    if path:
        for bad in BAD:
            forged = copy.deepcopy(whole)
            _parent(forged, path)[path[-1]] = bad
            yield forged
        forged = copy.deepcopy(whole)
        del _parent(forged, path)[path[-1]]
        yield forged
    keys = list(here) if isinstance(here, dict) else range(min(len(here), 1)) if isinstance(here, list) else ()
    for key in keys:
        yield from _forgeries(whole, (*path, key))


def _parent(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        value = value[key]
    return value


def test_forged_interfaces_are_refused_or_usable(compiled: Compiled) -> None:
    x = all_corners(compiled.graph)[:2]
    received = frame.unpack(bundle.pack_client_half(compiled.interface, compiled.program.client), "client-half")
    refused = 0
    for meta in _forgeries(dict(received.meta)):
        try:
            interface, _ = bundle.unpack_client_half(frame.pack("client-half", received.parts, meta))
            assert str(interface.guarantee)
            json.dumps(interface.as_dict(), allow_nan=False)
            interface.dequantize(np.zeros((2, *interface.output.shape)))
            interface.quantize(x)
        except SecureInferError:
            refused += 1
    assert refused > 100


def test_forged_client_halves_are_refused_or_usable(compiled: Compiled) -> None:
    if compiled.protocol not in HALVES:
        pytest.skip("its client half is empty")
    kind, backend = HALVES[compiled.protocol], backends.load(compiled.protocol)
    received, units = frame.unpack(compiled.program.client, kind), np.zeros((1, 6), dtype=np.int64)
    refused = 0
    for meta in _forgeries(dict(received.meta)):
        try:
            backend.client(frame.pack(kind, received.parts, meta)).encrypt(units, Keys(b"", b""))
        except SecureInferError:
            refused += 1
    assert refused > 40


def _written(path: Path, parts: dict[str, bytes], **changed: Any) -> Path:
    manifest = json.loads(parts["manifest.json"])
    rest = {name: part for name, part in parts.items() if name != "manifest.json"}
    manifest |= {"parts": {name: hashlib.sha256(part).hexdigest() for name, part in rest.items()}, **changed}
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in {"manifest.json": json.dumps(manifest).encode(), **rest}.items():
            archive.writestr(name, part)
    return path


@pytest.fixture
def parts(compiled: Compiled, tmp_path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(compiled.save(tmp_path / "good")) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize("missing", ["client.half", "graph.json", "weights.safetensors", "server-0.half"])
def test_a_bundle_without_a_part_is_refused(parts: dict[str, bytes], missing: str, tmp_path: Path) -> None:
    del parts[missing]
    with pytest.raises(BundleError, match="manifest is malformed"):
        si.load(_written(tmp_path / "forged", parts))


@pytest.mark.parametrize("changed", [{"parameters": None}, {"counts": "x"}, {"parameters": []}, {"interface": {}}])
def test_manifests_of_wrong_types_are_refused(parts: dict[str, bytes], changed: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="manifest is malformed"):
        si.load(_written(tmp_path / "forged", parts, **changed))


def test_an_interface_of_another_network_is_refused(parts: dict[str, bytes], tmp_path: Path) -> None:
    interface = json.loads(parts["manifest.json"])["interface"]
    interface["input"]["high"] += 1
    with pytest.raises(BundleError, match="interface is not that of its network"):
        si.load(_written(tmp_path / "forged", parts, interface=interface))


def _zipped(path: Path, names: list[str]) -> Path:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), b"part")
    path.write_bytes(buffer.getvalue())
    return path


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("names", [["a", "a"], [f"part-{i}" for i in range(1000)]])
def test_archives_with_doubles_or_too_many_parts_are_refused(names: list[str], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="too many parts, or two of one name"):
        si.load(_zipped(tmp_path / "forged", names))


def test_parts_that_claim_more_than_the_file_holds_are_refused(tmp_path: Path) -> None:
    path = _zipped(tmp_path / "forged", ["a"])
    data = path.read_bytes()
    at = data.index(b"PK\x01\x02") + 20
    path.write_bytes(data[:at] + (1 << 31).to_bytes(4, "little") * 2 + data[at + 8 :])
    with pytest.raises(BundleError, match="larger than the file"):
        si.load(path)


@pytest.mark.parametrize("shape", [[1 << 32, 1 << 32], [0] * 100, [3], [-1], [True], None])
def test_clear_arrays_of_wrong_sizes_are_refused(shape: Any) -> None:
    client = backends.load("clear").client(b"")
    for replies in ([frame.pack("integers", [b"123"], {"shape": shape})], []):
        with pytest.raises(DecryptionError):
            client.decrypt(replies, Keys(b"", b""))
