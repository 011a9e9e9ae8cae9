"""How each malicious file is made, so that it can be read what is wrong with it: `python -m tests.malicious.make`.

A file's name begins with what it is fed to. All but those that are damaged have right checksums: whoever wants to do
harm computes them, too.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from secure_infer.wire import frame
from tests.fuzz import seeds
from tests.fuzz.targets import framed, zipped

FOLDER = Path(__file__).with_name("files")
_DATE = (1980, 1, 1, 0, 0, 0)
MANIFEST, NETWORK, WEIGHTS = "manifest.json", "graph.json", "weights.safetensors"


class _Harm:
    """What unpickling would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('unpickled')",))


def header(text: bytes, body: bytes = b"") -> bytes:
    """A frame with a right digest around a header of any text."""
    return framed(struct.pack("<I", len(text)) + text + body)


def frames() -> dict[str, bytes]:
    """Frames of the kind `thing`."""
    whole = frame.pack("thing", [b"ab", b"c"], {"n": 1})
    deep = b"[" * 100_000 + b"]" * 100_000
    fields = {"kind": "thing", "parts": [1], "meta": {}}
    forged = {
        "negative-length": {"parts": [-1]},
        "huge-length": {"parts": [1 << 62]},
        "length-is-text": {"parts": ["1"]},
        "length-is-true": {"parts": [True]},
        "length-is-a-fraction": {"parts": [1.0]},
        "lengths-cancel-out": {"parts": [3, -2]},
        "parts-are-a-number": {"parts": 3},
        "meta-is-a-list": {"meta": []},
        "kind-is-a-list": {"kind": ["thing"]},
    }
    return {
        "empty": b"",
        "magic-only": b"SIF1",
        "truncated-head": whole[:39],
        "truncated-part": whole[:-1],
        "altered-part": whole[:-1] + b"d",
        "altered-header": whole.replace(b'"n"', b'"m"'),
        "longer-than-it-says": whole + b"x",
        "another-magic": b"SIF2" + whole[4:],
        "another-kind": frame.pack("secret-key", [b"s"]),
        "header-of-two-gigabytes": frame.MAGIC + bytes(32) + struct.pack("<I", (1 << 31) - 1),
        "header-beyond-the-limit": header(b" " * (frame.MAX_HEADER + 1)),
        "header-no-json": header(b"\x80\x04K\x01."),
        "header-pickled": header(pickle.dumps(_Harm(), protocol=4)),
        "header-nested": header(b'{"kind":"thing","parts":[],"meta":{"a":' + deep + b"}}"),
        "header-of-many-digits": header(b'{"kind":"thing","parts":[' + b"9" * 9000 + b'],"meta":{}}'),
        "header-no-utf-8": header(b'{"kind":"\xff","parts":[],"meta":{}}'),
        **{name: header(json.dumps(fields | changed).encode(), b"x") for name, changed in forged.items()},
    }


def _archive(parts: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, part in parts.items():
            info = zipfile.ZipInfo(name, _DATE)
            info.compress_type = method
            archive.writestr(info, part)
    return buffer.getvalue()


def _overlapping(entries: int) -> bytes:
    """An archive in which many names share the same bytes, so that it unpacks to far more than its size."""
    part, name = bytes(1 << 14), b"part"
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 33, 0x11111111, len(part), len(part), len(name), 0)
    central = b""
    for number in range(entries):
        label = f"p{number:03}".encode()
        sizes = (0x11111111, len(part), len(part), len(label), 0, 0, 0, 0, 0, 0)
        central += struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 0, 0, 33, *sizes) + label
    start = len(local) + len(name) + len(part)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, entries, entries, len(central), start, 0)
    return local + name + part + central + end


def _encrypted(data: bytes) -> bytes:
    """The archive with the flag of encrypted entries set."""
    changed = bytearray(data)
    for magic, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = data.find(magic)
        while at >= 0:
            changed[at + offset] |= 1
            at = data.find(magic, at + 1)
    return bytes(changed)


def archives() -> dict[str, bytes]:
    """Bundles that are damaged as archives."""
    whole, parts = seeds.whole(), seeds.parts()
    return {
        "empty": b"",
        "no-archive": b"PK\3\4" + b"\0" * 60,
        "truncated": whole[: len(whole) // 2],
        "altered": whole.replace(b'"low": -3', b'"low": -9'),
        "a-frame": seeds.client_half(),
        "zip-bomb": _archive({MANIFEST: bytes(50_000_000)}, zipfile.ZIP_DEFLATED),
        "zip-bomb-overlapping": _overlapping(60),
        "encrypted": _encrypted(whole),
        "a-thousand-parts": _archive({f"part-{number}": b"" for number in range(1000)}),
        "size-that-lies": whole.replace(struct.pack("<I", len(parts[NETWORK])) * 2, struct.pack("<I", 0xFFFFFFF0) * 2),
        "path-outside": zipped({**_halves(parts), "../../outside": b"x"}, json.loads(parts[MANIFEST])),
        "absolute-path": zipped({**_halves(parts), "/tmp/outside": b"x"}, json.loads(parts[MANIFEST])),
    }


def _halves(parts: Mapping[str, bytes]) -> dict[str, bytes]:
    return {name: part for name, part in parts.items() if name != MANIFEST}


def _manifest(change: Callable[[dict[str, Any]], object]) -> bytes:
    parts = seeds.parts()
    manifest = json.loads(parts[MANIFEST])
    change(manifest)
    return zipped(_halves(parts), manifest)


def _interface(**changed: Any) -> bytes:
    return _manifest(lambda manifest: manifest["interface"].update(changed))


def _typed(**changed: Any) -> bytes:
    return _manifest(lambda manifest: manifest["interface"]["input"].update(changed))


def manifests() -> dict[str, bytes]:
    """Bundles whose manifest is forged; its digests are right."""
    halves = _halves(seeds.parts())
    nan, inf = float("nan"), float("inf")
    found = {
        "manifest-no-json": _archive({MANIFEST: b"{", **halves}),
        "manifest-nested": _archive({MANIFEST: b"[" * 100_000, **halves}),
        "manifest-a-list": _archive({MANIFEST: b"[]", **halves}),
        "manifest-newer": _manifest(lambda manifest: manifest.update(schema=99)),
        "manifest-schema-is-text": _manifest(lambda manifest: manifest.update(schema="1")),
        "protocol-is-a-list": _interface(protocol=[]),
        "offset-nan": _interface(offset=[nan]),
        "offset-huge": _interface(offset=[[0.0] * 9] * 9),
        "guarantee-absent": _interface(guarantee=None),
    }
    typed: dict[str, dict[str, Any]] = {
        "scale-nan": {"scale": [nan]},
        "scale-infinite": {"scale": [inf]},
        "scale-negative": {"scale": [-1.0]},
        "scale-zero": {"scale": [0.0]},
        "scale-absent": {"scale": []},
        "shape-zero": {"shape": [0, 3, 3]},
        "shape-negative": {"shape": [-1, 3, 3]},
        "shape-huge": {"shape": [1 << 40, 1 << 40, 3]},
        "shape-overflows": {"shape": [1 << 32, 1 << 32]},
        "shape-is-text": {"shape": "133"},
        "range-upside-down": {"low": 3, "high": -3},
        "range-of-many-bits": {"high": 1 << 70},
        "range-is-a-fraction": {"low": 0.5},
    }
    return found | {name: _typed(**changed) for name, changed in typed.items()}


def _network(change: Callable[[dict[str, Any]], object]) -> bytes:
    parts = seeds.parts()
    network = json.loads(parts[NETWORK])
    change(network)
    return zipped({**_halves(parts), NETWORK: json.dumps(network).encode()}, json.loads(parts[MANIFEST]))


def _node(index: int, **changed: Any) -> bytes:
    return _network(lambda network: network["nodes"][index].update(changed))


def networks() -> dict[str, bytes]:
    """Bundles whose network is forged; its digests are right."""
    huge = 1 << 20
    nodes: dict[str, tuple[int, dict[str, Any]]] = {
        "conv-padding-huge": (0, {"padding": [huge, huge]}),
        "conv-padding-beyond-any-integer": (0, {"padding": [1 << 80, 1 << 80]}),
        "conv-padding-and-stride-huge": (0, {"padding": [huge, huge], "stride": [huge, huge]}),
        "conv-padding-negative": (0, {"padding": [-1, -1]}),
        "conv-padding-short": (0, {"padding": [1]}),
        "conv-padding-nan": (0, {"padding": [float("nan"), 1]}),
        "conv-padding-is-a-fraction": (0, {"padding": [0.5, 0.5]}),
        "conv-stride-zero": (0, {"stride": [0, 0]}),
        "conv-dilation-huge": (0, {"dilation": [1 << 62, 1]}),
        "conv-groups-zero": (0, {"groups": 0}),
        "conv-groups-is-true": (0, {"groups": [1]}),
        "max-window-huge": (2, {"kernel": [1 << 40, 1 << 40], "padding": [1 << 40, 1 << 40]}),
        "reshape-huge": (3, {"shape": [1 << 62]}),
        "reshape-negative": (3, {"shape": [-1]}),
        "lookup-start-huge": (4, {"start": 1 << 70}),
        "polynomial-shift-huge": (5, {"shift": 1 << 40}),
        "polynomial-shift-negative": (5, {"shift": -1}),
        "operation-unknown": (0, {"op": "__import__"}),
        "node-reads-itself": (0, {"inputs": ["a"]}),
        "node-reads-the-future": (0, {"inputs": ["g"]}),
        "node-name-is-a-list": (0, {"name": ["a"]}),
    }
    return {
        "network-nested": zipped({**_halves(seeds.parts()), NETWORK: b"[" * 100_000}, json.loads(_text())),
        "network-without-nodes": _network(lambda network: network.update(nodes=[])),
        "network-newer": _network(lambda network: network.update(schema=99)),
        "network-of-ten-thousand-doubles": _network(
            lambda network: network.update(nodes=network["nodes"][:1] * 10_000)
        ),
        **{name: _node(index, **changed) for name, (index, changed) in nodes.items()},
    }


def _text() -> bytes:
    return seeds.parts()[MANIFEST]


def _weighted(weights: bytes) -> bytes:
    parts = seeds.parts()
    return zipped({**_halves(parts), WEIGHTS: weights}, json.loads(parts[MANIFEST]))


def weights() -> dict[str, bytes]:
    """Bundles whose weights are forged; its digests are right."""
    good = seeds.parts()[WEIGHTS]
    lying = {"a.weight": {"dtype": "I64", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 8]}}
    text = json.dumps(lying).encode()
    return {
        "weights-pickled": _weighted(pickle.dumps(_Harm(), protocol=4)),
        "weights-header-huge": _weighted(struct.pack("<Q", 1 << 60) + good[8:]),
        "weights-truncated": _weighted(good[:-8]),
        "weights-shape-that-lies": _weighted(struct.pack("<Q", len(text)) + text + bytes(8)),
        "weights-of-nobody": _weighted(struct.pack("<Q", 2) + b"{}"),
    }


def shares() -> dict[str, bytes]:
    """Messages to party 0 of a network that reads five integers."""
    good: dict[str, Any] = {"model": "0" * 32, "session": "1" * 32, "party": 0, "shape": [1, 5]}
    forged = {
        "for-the-other-party": {"party": 1},
        "of-another-model": {"model": "2" * 32},
        "model-is-a-list": {"model": []},
        "session-is-a-path": {"session": "../../../../../../../../etc/passwd"},
        "session-is-a-number": {"session": 1},
        "shape-negative": {"shape": [-1, 5]},
        "shape-zero": {"shape": [0, 5]},
        "shape-huge": {"shape": [1 << 61, 5]},
        "shape-is-text": {"shape": "15"},
        "shape-nested": {"shape": [[1], 5]},
        "shape-of-many-axes": {"shape": [1] * 99 + [5]},
    }
    return {
        **{name: frame.pack("mpc-share", [bytes(40)], good | changed) for name, changed in forged.items()},
        "too-short": frame.pack("mpc-share", [bytes(39)], good),
        "without-words": frame.pack("mpc-share", [], good),
        "a-reply": frame.pack("mpc-reply", [bytes(40)], good),
    }


def all_files() -> dict[str, bytes]:
    """Every file by name."""
    groups = {
        "frame": frames(),
        "bundle": {**archives(), **manifests(), **networks(), **weights()},
        "share": shares(),
    }
    return {f"{reader}-{name}.bin": data for reader, found in groups.items() for name, data in found.items()}


def main() -> None:
    """Write them all."""
    FOLDER.mkdir(exist_ok=True)
    for name, data in all_files().items():
        (FOLDER / name).write_bytes(data)


if __name__ == "__main__":
    main()
