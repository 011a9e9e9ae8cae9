"""A compiled model on disk: one zip file of stored parts whose manifest names the SHA-256 of each.

manifest.json         schema, versions, protocol, interface, guarantee, parameters, parts {name: SHA-256}
client.half           what a client needs: parameters and shapes, no weights
server-0.half ...     one for each server party: weights, never a secret key
graph.json            the portable network, from which the halves can be built again
weights.safetensors
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import platform
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from secure_infer import __version__, files
from secure_infer.backends.base import Guarantee, Program, Values
from secure_infer.errors import BundleError, DecryptionError, Problem
from secure_infer.graph import encoding, store
from secure_infer.graph.encoding import Encoding
from secure_infer.graph.graph import Graph, dequantize, quantize
from secure_infer.graph.types import Integers, Shape, TensorType
from secure_infer.wire import frame

SCHEMA = 1
_MAX_PARTS = 64
_MOST = 1 << 62
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, eq=False)
class Interface:
    """What a client knows of a model: protocol, types, guarantee; no weights.

    Attributes:
        protocol: Name of the protocol.
        fingerprint: SHA-256 of the network, by which it is named.
        input: Type of one input.
        output: Type of one output.
        offset: Reals added to the scaled output.
        guarantee: What the protocol promises.
        encoding: How reals become the input's integers; None: by the scale of the input's type.
    """

    protocol: str
    fingerprint: str
    input: TensorType
    output: TensorType
    offset: npt.NDArray[np.float64]
    guarantee: Guarantee
    encoding: Encoding | None = None

    @property
    def shape(self) -> Shape:
        """Shape of one input as reals."""
        return self.input.shape if self.encoding is None else self.encoding.shape

    @classmethod
    def of(cls, graph: Graph, protocol: str, guarantee: Guarantee) -> Interface:
        """The interface of a compiled graph."""
        name = store.fingerprint(graph)
        return cls(protocol, name, graph.input, graph.output_type, graph.offset, guarantee, graph.encoding)

    def quantize(self, x: npt.ArrayLike) -> Integers:
        """Real inputs to integers; refuses what `Graph.quantize` refuses."""
        return quantize(self.input, x, self.encoding)

    def dequantize(self, y: Values) -> npt.NDArray[np.float64]:
        """Outputs in integer units to reals.

        Raises:
            DecryptionError: They have another shape than this model's outputs.
        """
        if not np.ndim(y) or np.shape(y)[1:] != self.output.shape:
            raise DecryptionError(
                "The reply does not hold this model's outputs.",
                [
                    Problem(
                        "reply",
                        f"Expected shape (n, {', '.join(map(str, self.output.shape))}), got {np.shape(y)}.",
                        "send the request to a server of this model.",
                    )
                ],
            )
        return dequantize(self.output, self.offset, y)

    def as_dict(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        coded = {} if self.encoding is None else {"encoding": encoding.to_dict(self.encoding)}
        return {
            "protocol": self.protocol,
            "fingerprint": self.fingerprint,
            "input": _type_dict(self.input),
            "output": _type_dict(self.output),
            "offset": self.offset.tolist(),
            "guarantee": self.guarantee.as_dict(),
            **coded,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Interface:
        """The interface that `as_dict` wrote.

        Raises:
            KeyError, TypeError, ValueError, OverflowError: It is malformed.
        """
        return cls(
            data["protocol"],
            data["fingerprint"],
            _type_from(data["input"]),
            _type_from(data["output"]),
            np.asarray(data["offset"], dtype=np.float64),
            Guarantee.from_dict(data["guarantee"]),
            encoding.from_dict(data["encoding"]) if "encoding" in data else None,
        )._checked()

    def _checked(self) -> Interface:
        """This; ValueError if it can't be used, which whoever wrote it need not have cared about."""
        sound = {
            "protocol": isinstance(self.protocol, str) and isinstance(self.fingerprint, str),
            "input": all(scale > 0 for scale in self.input.scale),
            "encoding": self.encoding is None or self.encoding.coded == self.input.shape,
            "offset": self.offset.shape in ((1,), self.output.shape[:1]) and bool(np.isfinite(self.offset).all()),
        }
        wrong = [name for name, good in sound.items() if not good]
        if wrong:
            raise ValueError(f"{', '.join(wrong)} out of range")
        return self


def _type_dict(kind: TensorType) -> dict[str, Any]:
    return {"shape": list(kind.shape), "low": kind.low, "high": kind.high, "scale": list(kind.scale)}


def _type_from(data: Mapping[str, Any]) -> TensorType:
    shape, low, high = tuple(data["shape"]), data["low"], data["high"]
    scale = tuple(float(number) for number in data["scale"])
    if not shape or not all(type(size) is int and size > 0 for size in shape) or math.prod(shape) > _MOST:
        raise ValueError("a shape is malformed")
    if not (type(low) is int and type(high) is int and -_MOST <= low <= high <= _MOST):
        raise ValueError("a range is malformed")
    if len(scale) not in (1, shape[0]) or not all(map(math.isfinite, scale)):
        raise ValueError("a scale is malformed")
    return TensorType(shape, low, high, scale)


def pack_client_half(interface: Interface, half: bytes) -> bytes:
    """What a server hands to every client that asks for the model."""
    return frame.pack("client-half", [half], {"schema": SCHEMA, **interface.as_dict()})


def unpack_client_half(data: bytes) -> tuple[Interface, bytes]:
    """The interface and the backend's own client half.

    Raises:
        BundleError: Damaged, or of a newer schema.
    """
    received = frame.unpack(data, "client-half")
    _refuse_newer(received.meta.get("schema"))
    try:
        (half,) = received.parts
        return Interface.from_dict(received.meta), half
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _damaged(f"its client half is malformed ({error})") from error


def save(path: str | Path, graph: Graph, interface: Interface, program: Program, versions: Mapping[str, str]) -> Path:
    """Write a bundle; the file appears only when it is whole."""
    head, weights = store.to_bytes(graph)
    parts = {"client.half": program.client, "graph.json": head, "weights.safetensors": weights}
    parts |= {f"server-{party}.half": half for party, half in enumerate(program.servers)}
    manifest = {
        "schema": SCHEMA,
        "versions": {"secure_infer": __version__, "python": platform.python_version(), **versions},
        "interface": interface.as_dict(),
        "parameters": dict(program.parameters),
        "counts": dict(program.counts),
        "parts": {name: hashlib.sha256(part).hexdigest() for name, part in parts.items()},
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, part in {"manifest.json": json.dumps(manifest, indent=1).encode(), **parts}.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), part)
    return files.write(path, buffer.getvalue())


def load(path: str | Path) -> tuple[Graph, Interface, Program]:
    """Read a bundle and check every part against the manifest.

    Raises:
        BundleError: Truncated, altered, of a newer schema, or no bundle at all.
        UsageError: The file is absent or unreadable.
    """
    parts = _read_parts(files.read(path))
    try:
        manifest = json.loads(parts.pop("manifest.json"))
        _refuse_newer(manifest["schema"])
        found = {name: hashlib.sha256(part).hexdigest() for name, part in parts.items()}
        if found != manifest["parts"]:
            wrong = sorted(set(found.items()) ^ set(manifest["parts"].items()))
            raise _damaged(f"the SHA-256 of {', '.join(sorted({name for name, _ in wrong}))} does not match")
        interface = Interface.from_dict(manifest["interface"])
        servers = tuple(parts[f"server-{party}.half"] for party in range(max(1, len(parts) - 3)))
        parameters, counts = manifest["parameters"], manifest["counts"]
        if not isinstance(parameters, dict) or not isinstance(counts, dict):
            raise ValueError("parameters or counts are no tables")
        program = Program(servers, parts["client.half"], interface.guarantee, parameters, counts)
        graph = store.from_bytes(parts["graph.json"], parts["weights.safetensors"])
        if (graph.input, graph.output_type) != (interface.input, interface.output):
            raise _damaged("its interface is not that of its network")
        return graph, interface, program
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise _damaged(f"its manifest is malformed ({error})") from error


def _read_parts(data: bytes) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise _damaged("a part is compressed")
            if len(entries) > _MAX_PARTS or len({entry.filename for entry in entries}) < len(entries):
                raise _damaged("it holds too many parts, or two of one name")
            if sum(entry.file_size for entry in entries) > len(data):
                raise _damaged("its parts are larger than the file")
            return {entry.filename: archive.read(entry) for entry in entries}
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, ValueError, struct.error) as error:
        raise _damaged(f"it is not a whole bundle file ({error})") from error


def _refuse_newer(schema: object) -> None:
    if not isinstance(schema, int) or schema > SCHEMA:
        raise BundleError(
            "The bundle was written by a newer version.",
            [
                Problem(
                    "manifest", f"Its schema is {schema}; this version reads up to {SCHEMA}.", "upgrade secure_infer."
                )
            ],
        )


def _damaged(what: str) -> BundleError:
    return BundleError(
        "The bundle can't be used.", [Problem("bundle", f"Refused because {what}.", "copy or compile it again.")]
    )
