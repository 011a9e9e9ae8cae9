"""The client's half of a program: parameters, layouts and ranges; never weights."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from secure_infer.backends.ckks.packing import Layout, packed
from secure_infer.backends.ckks.parameters import Parameters, verify
from secure_infer.backends.ckks.plan import Vector
from secure_infer.backends.ckks.store import SCHEMA, parameters_from
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
        output_shape: Shape of one output.
        output: Level, scale and layout of the ciphertexts received.
        positions: Where each output is read: `block * slots + slot`.
        output_range: Slots times this are outputs in units of their scale.
        grid: Slots are rounded to multiples of this; 0 for not at all.
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
    output_shape: Shape
    output: Vector
    positions: tuple[int, ...]
    output_range: float
    grid: float

    @property
    def input_layout(self) -> Layout:
        """Where inputs lie."""
        return packed(math.prod(self.shape), self.parameters.slots)

    def to_bytes(self) -> bytes:
        """The half as a frame."""
        return frame.pack(KIND, [], {"schema": SCHEMA, **asdict(self)})

    @classmethod
    def from_bytes(cls, data: bytes) -> ClientHalf:
        """The half that `to_bytes` wrote.

        Raises:
            BundleError: It is none, or of a newer schema.
        """
        meta = dict(frame.unpack(data, KIND).meta)
        schema = meta.pop("schema", None)
        if not isinstance(schema, int) or schema > SCHEMA:
            raise BundleError(
                "The client half was written by a newer version.",
                [Problem(KIND, f"Its schema is {schema}; this version reads up to {SCHEMA}.", "upgrade secure_infer.")],
            )
        try:
            meta |= {name: tuple(meta[name]) for name in ("rotations", "shape", "output_shape", "positions")}
            meta |= {name: Vector(**meta[name]) for name in ("input", "output")}
            half = cls(**{**meta, "parameters": parameters_from(meta["parameters"])})
            half._check()
            return half
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise BundleError(
                "The client half can't be read.",
                [Problem(KIND, f"{type(error).__name__}: {error}.", "fetch or compile the model again.")],
            ) from error

    def _check(self) -> None:
        """Raise ValueError for numbers that can't be used: the half comes from a server that need not be trusted."""
        verify(self.parameters)
        slots, depth = self.parameters.slots, self.parameters.depth
        vectors = [number for v in (self.input, self.output) for number in (v.level, v.blocks, v.period)]
        whole = (*self.shape, *self.output_shape, *self.positions, *self.rotations, *vectors)
        if not all(type(number) is int for number in whole) or math.prod(self.shape) > _MOST_BLOCKS * slots:
            raise ValueError("shapes, positions, rotations or vectors out of range")
        sent, inputs = self.input, self.input_layout
        sound = {
            "rotations": len(set(self.rotations)) == len(self.rotations) and all(0 < k < slots for k in self.rotations),
            "layout": (sent.blocks, sent.period) == (inputs.blocks, inputs.period) and 0 < self.output.blocks < 1 << 15,
            "levels": 0 <= sent.level <= depth and 0 <= self.output.level <= depth,
            "positions": len(self.positions) == math.prod(self.output_shape)
            and all(0 <= position < self.output.blocks * slots for position in self.positions),
            "numbers": all(
                math.isfinite(n) and n > 0
                for n in (self.half, self.output_range, sent.scale, self.output.scale, *self.shape, *self.output_shape)
            ),
            "range": math.isfinite(self.middle) and self.low <= self.high and 0 <= self.grid < 1,
        }
        wrong = [name for name, good in sound.items() if not good]
        if wrong:
            raise ValueError(f"{', '.join(wrong)} out of range")
