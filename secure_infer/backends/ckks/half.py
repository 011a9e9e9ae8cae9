"""The client's half of a program: parameters, layouts and ranges; never weights."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np

from secure_infer.backends.ckks import batch
from secure_infer.backends.ckks.lower import Indices, Reals
from secure_infer.backends.ckks.packing import spread
from secure_infer.backends.ckks.parameters import Parameters, verify
from secure_infer.backends.ckks.plan import Vector
from secure_infer.backends.ckks.store import SCHEMA, parameters_from, require_schema
from secure_infer.errors import BundleError, Problem
from secure_infer.graph.types import Shape
from secure_infer.wire import frame

KIND = "ckks-client"
_MOST_BLOCKS = 1 << 10


@dataclass(frozen=True, eq=False)
class ClientHalf:
    """All that a client needs.

    Attributes:
        model: Names the program: SHA-256 of the server's half.
        parameters: Ring and primes.
        rotations: Rotations for which the server needs Galois keys.
        multiplies: Whether it needs relinearization keys.
        shape: Shape of one input.
        low: Least input, in integer units.
        high: Greatest input.
        middle: Subtracted from inputs ...
        half: ... which are then divided by this.
        input: Level, scale and layout of the ciphertexts sent.
        columns: Which input each slot of them holds, shape `(period, blocks)`; -1 for none.
        output_shape: Shape of one output.
        output: Level, scale and layout of the ciphertexts received.
        positions: Where each output is read: `block * slots + slot`.
        output_range: Slots times this are outputs in units of their scale.
        grid: Slots are rounded to multiples of this; 0 for not at all.
        batch: Slots hold samples, and each ciphertext one element.
        flooding: Uniform noise up to this is added to slots before they are rounded; 0 for none.
        expanded: Ciphertexts are sent whole, and not one half of them as a seed.
    """

    model: str
    parameters: Parameters
    rotations: tuple[int, ...]
    multiplies: bool
    shape: Shape
    low: int
    high: int
    middle: float
    half: float
    input: Vector
    columns: Indices
    output_shape: Shape
    output: Vector
    positions: tuple[int, ...]
    output_range: float
    grid: float
    batch: bool = False
    flooding: float = 0.0
    expanded: bool = False

    def arranged(self, values: Reals) -> Iterator[Reals]:
        """The slots of each ciphertext for samples `(n, inputs)`, between -1 and 1."""
        if self.batch:
            for chunk in batch.chunks(values, self.parameters.poly_modulus_degree):
                yield from chunk
        else:
            for known in np.pad(values, ((0, 0), (0, 1))):
                yield from (spread(known[column], self.parameters.slots, 0) for column in self.columns.T)

    def outputs(self, slots: Reals, count: int) -> Reals:
        """The outputs of so many samples, shape `(count, outputs)`, in the slots `(ciphertexts, slots)` of a reply."""
        if self.batch:
            blocks = slots.reshape(-1, self.output.blocks, self.parameters.slots)
            return batch.unchunked(blocks, count, self.parameters.poly_modulus_degree)
        return slots.reshape(count, self.output.blocks * self.parameters.slots)[:, list(self.positions)]

    def ciphertexts(self, count: int, blocks: int) -> int:
        """How many ciphertexts hold a vector of so many blocks for so many samples."""
        return blocks * (batch.ciphertexts_of(count, self.parameters.poly_modulus_degree) if self.batch else count)

    def to_bytes(self) -> bytes:
        """The half as a frame: numbers as JSON, columns as compressed little-endian integers of 32 bits."""
        meta = {**asdict(replace(self, columns=np.zeros((0, 0), np.int64))), "schema": SCHEMA}
        del meta["columns"]
        return frame.pack(KIND, [zlib.compress(self.columns.astype("<i4").tobytes())], meta)

    @classmethod
    def from_bytes(cls, data: bytes) -> ClientHalf:
        """The half that `to_bytes` wrote.

        Raises:
            BundleError: It is none, or of a newer schema.
        """
        opened = frame.unpack(data, KIND)
        meta = dict(opened.meta)
        require_schema(KIND, meta.pop("schema", None))
        try:
            meta |= {name: tuple(meta[name]) for name in ("rotations", "shape", "output_shape", "positions")}
            meta |= {name: Vector(**meta[name]) for name in ("input", "output")}
            half = cls(
                **{**meta, "parameters": parameters_from(meta["parameters"]), "columns": np.zeros((0, 0), np.int64)}
            )
            half._check()
            (packed,) = opened.parts
            return replace(half, columns=half._unpacked(packed))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, zlib.error) as error:
            raise BundleError(
                "The client half can't be read.",
                [Problem(KIND, f"{type(error).__name__}: {error}.", "fetch or compile the model again.")],
            ) from error

    def _unpacked(self, packed: bytes) -> Indices:
        """The columns, of exactly the stated shape; ValueError if they name no input."""
        shape = self.input.period, self.input.blocks
        size = 4 * math.prod(shape)
        data = zlib.decompressobj().decompress(packed, size + 1)
        if len(data) != size:
            raise ValueError("columns of another size")
        columns = np.frombuffer(data, "<i4").astype(np.int64).reshape(shape)
        if columns.min() < -1 or columns.max() >= math.prod(self.shape):
            raise ValueError("columns out of range")
        return columns

    def _check(self) -> None:
        """Raise ValueError for numbers that can't be used: the half comes from a server that need not be trusted."""
        verify(self.parameters)
        slots, depth = self.parameters.slots, self.parameters.depth
        vectors = [number for v in (self.input, self.output) for number in (v.level, v.blocks, v.period)]
        if type(self.batch) is not bool or type(self.expanded) is not bool:
            raise ValueError("batch or expanded is no truth value")
        whole = (*self.shape, *self.output_shape, *self.positions, *self.rotations, *vectors)
        if not all(type(number) is int for number in whole) or math.prod(self.shape) > _MOST_BLOCKS * slots:
            raise ValueError("shapes, positions, rotations or vectors out of range")
        sent, most = self.input, batch.MOST_ELEMENTS if self.batch else _MOST_BLOCKS
        sound = {
            "rotations": len(set(self.rotations)) == len(self.rotations) and all(0 < k < slots for k in self.rotations),
            "layout": 0 < sent.blocks <= most and 0 < sent.period <= slots and 0 < self.output.blocks < 1 << 15,
            "levels": 0 <= sent.level <= depth and 0 <= self.output.level <= depth,
            "positions": len(self.positions) == math.prod(self.output_shape)
            and all(0 <= position < self.output.blocks * slots for position in self.positions),
            "numbers": all(
                math.isfinite(n) and n > 0
                for n in (self.half, self.output_range, sent.scale, self.output.scale, *self.shape, *self.output_shape)
            ),
            "range": math.isfinite(self.middle)
            and self.low <= self.high
            and 0 <= self.grid < 1
            and 0 <= self.flooding < 1,
        }
        wrong = [name for name, good in sound.items() if not good]
        if wrong:
            raise ValueError(f"{', '.join(wrong)} out of range")
