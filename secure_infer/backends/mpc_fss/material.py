"""One-use correlations of a plan: which arrays there are, who draws them from a seed, and who is sent them.

The correlations of one sample are an item: for party 0 a seed and what both parties hold in common; for party 1 the
same and the corrections that make the parties' shares fit. Items that were dealt together are a lot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any

import numpy as np

from secure_infer.backends.mpc_fss.generator import Form, clear_roots
from secure_infer.backends.mpc_fss.plan import OWNER, Plan, Step
from secure_infer.backends.mpc_fss.ring import Ring, kind_of, low_bits, wire_kind
from secure_infer.backends.parties.streams import KEY_BYTES, Stream
from secure_infer.graph.types import Shape

Name = tuple[str, str]
"""Of a step, and of an array of it."""
_ALIGNED = 8
_WORD = np.dtype(np.uint64)


class Source(Enum):
    """Where a party has an array from."""

    SEED = "each party draws its own from its seed"
    SECOND = "party 1 draws it from its seed, party 0 has none"
    SPLIT = "party 0 draws its share from its seed, party 1 is sent its own"
    COMMON = "both are sent it"


@dataclass(frozen=True)
class Field:
    """An array of an item.

    Attributes:
        name: Of its step, and its own.
        shape: For one sample.
        kind: Type of its elements.
        source: Where a party has it from.
        bits: Drawn elements are below two to this power.
    """

    name: Name
    shape: Shape
    kind: np.dtype[Any]
    source: Source
    bits: int

    @property
    def size(self) -> int:
        """Bytes of it in an item, if it is sent: a multiple of eight, so that all arrays are aligned."""
        return -(-math.prod(self.shape) * self.kind.itemsize // _ALIGNED) * _ALIGNED


@dataclass(frozen=True)
class Gate:
    """A batch of comparison functions of one step.

    Attributes:
        label: Prefix of its arrays' names.
        form: Of each function.
        count: How many there are for one sample.
    """

    label: str
    form: Form
    count: int


def gates(plan: Plan, step: Step) -> list[Gate]:
    """The comparison functions that a step calls for, in the order of its rounds."""
    p, kind = step.parameters, kind_of(step.ring)
    match step.kind:
        case "Compare":
            return [Gate("", Form(p["bits"] - 1, 1, kind), step.size * p["thresholds"][1])]
        case "CompareLinear":
            outputs, inputs = p["weight"]
            return [Gate("", Form(p["bits"] - 1, 1 + outputs, kind), inputs * p["thresholds"][1])]
        case "Max":
            return [Gate(f"{i} ", Form(p["bits"] - 1, 2, kind), n) for i, n in enumerate(tournament(step))]
        case "Shift":
            return [
                Gate("low ", Form(p["places"], 1, kind), step.size),
                Gate("all ", Form(p["bits"], 1, kind), step.size),
            ]
        case _:
            return []


def tournament(step: Step) -> list[int]:
    """Pairs that are compared in each round of a maximum over windows, for one sample."""
    left, found = math.prod(step.parameters["kernel"]), []
    while left > 1:
        found.append(step.size * (left // 2))
        left -= left // 2
    return found


class Layout:
    """All arrays of an item, in the order in which they are drawn and stored."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    @cached_property
    def fields(self) -> list[Field]:
        """Of all steps; and a zero-sharing, drawn by both from a key that they have in common."""
        found = [field for step in self.plan.steps for field in self._step(step)]
        return [*found, Field(("", "zero"), (KEY_BYTES,), np.dtype(np.uint8), Source.COMMON, 8)]

    def item_bytes(self, party: int) -> int:
        """Bytes of an item as a party is sent it."""
        sent = (Source.COMMON, Source.SPLIT) if party else (Source.COMMON,)
        return KEY_BYTES + sum(field.size for field in self.fields if field.source in sent)

    def unpack(self, lot: bytes | memoryview, party: int) -> dict[Name, Ring]:
        """All arrays of a lot as a party holds them, each of shape `(items, *shape)`; drawn and read."""
        rows = np.frombuffer(lot, np.uint8).reshape(-1, self.item_bytes(party))
        streams = [Stream(row[:KEY_BYTES].tobytes()) for row in rows]
        found, place = {}, KEY_BYTES
        for field in self.fields:
            sent = field.source is Source.COMMON or (party == 1 and field.source is Source.SPLIT)
            if sent:
                used = math.prod(field.shape) * field.kind.itemsize
                piece = rows[:, place : place + used]
                found[field.name] = piece.view(field.kind).reshape(len(rows), *field.shape)
                place += field.size
            elif not (party == 0 and field.source is Source.SECOND):
                found[field.name] = draw(field, streams)
        return found

    def _step(self, step: Step) -> list[Field]:
        kind, p = kind_of(step.ring), step.parameters
        source = self.plan.rings[step.inputs[0]]
        shape = self.plan.shapes[step.inputs[0]]

        def field(name: str, shape: Shape, how: Source, bits: int = step.ring, kind: Any = kind) -> Field:
            return Field((step.name, name), shape, np.dtype(kind), how, bits)

        made = [each for gate in gates(self.plan, step) for each in _gate_fields(step, gate)]
        match step.kind:
            case "Linear" | "Conv2d":
                who = Source.SECOND if self.plan.mode == OWNER else Source.SEED
                return [field("mask", shape, who), field("product", step.shape, Source.SPLIT)]
            case "Compare":
                levels = p["thresholds"][1]
                mask = field("mask", (step.size,), Source.SEED, p["bits"], wire_kind(p["bits"]))
                return [mask, field("top", (levels * step.size,), Source.SPLIT), *made] if levels else []
            case "CompareLinear":
                mask = field("mask", (p["weight"][1],), Source.SEED, p["bits"], wire_kind(p["bits"]))
                (gate,) = gates(self.plan, step)
                return [mask, field("top", (gate.count, gate.form.payload), Source.SPLIT), *made]
            case "Max":
                for i, count in enumerate(tournament(step)):
                    made.append(field(f"{i} mask", (count,), Source.SEED))
                    made += [field(f"{i} {name}", (count,), Source.SPLIT) for name in ("top", "product")]
                return made
            case "Shift":
                mask = field("mask", (step.size,), Source.SEED, p["bits"], wire_kind(p["bits"]))
                return [mask, field("high", (step.size,), Source.SPLIT), *made]
            case "Lookup":
                entries, mask_kind = p["table"][1], wire_kind(p["bits"])
                mask = field("mask", (step.size,), Source.SEED, p["bits"], mask_kind)
                tables = [field(name, (step.size, entries), Source.SPLIT) for name in ("one", "table")]
                return [mask, *tables]
            case "Polynomial":
                degree = p["coefficients"][1] - 1
                powers = field("powers", (degree, step.size), Source.SPLIT)
                terms = field("terms", (degree + 1, step.size), Source.SPLIT)
                return [field("mask", (step.size,), Source.SEED, source), powers, terms]
            case _:
                return []


def _gate_fields(step: Step, gate: Gate) -> list[Field]:
    form, n = gate.form, gate.count
    if not n:
        return []
    name = (step.name, gate.label)
    return [
        Field((name[0], f"{gate.label}roots"), (n, 2), _WORD, Source.SEED, 64),
        Field((name[0], f"{gate.label}seeds"), (form.levels, n, 2), _WORD, Source.COMMON, 64),
        Field((name[0], f"{gate.label}values"), (form.levels, n, form.payload), form.kind, Source.COMMON, 64),
        Field((name[0], f"{gate.label}leaves"), (n, form.leaves, form.payload), form.kind, Source.COMMON, 64),
    ]


def draw(field: Field, streams: list[Stream]) -> Ring:
    """One party's elements of an array, from its stream for each item: shape `(items, *shape)`."""
    drawn = np.stack([stream.elements(field.shape, field.kind) for stream in streams])
    if field.name[1].endswith("roots"):
        return clear_roots(drawn.reshape(-1, 2)).reshape(drawn.shape)
    return low_bits(drawn, field.bits)


def stored(field: Field, values: Ring) -> Ring:
    """An array of a lot as it is sent: bytes, shape `(items, size)`."""
    flat = np.ascontiguousarray(values).reshape(len(values), -1).view(np.uint8)
    return np.pad(flat, ((0, 0), (0, field.size - flat.shape[1])))


def together(values: Ring) -> Ring:
    """Arrays of several items `(items, ...)`, with all that counts samples in one axis: `(items * first, ...)`."""
    return values.reshape(-1, *values.shape[2:])


def by_level(values: Ring) -> Ring:
    """Corrections of several items, `(items, levels, n, ...)`, as of more functions: `(levels, items * n, ...)`."""
    if len(values) == 1:
        return np.asarray(values[0])
    moved = np.moveaxis(values, 0, 1)
    return np.reshape(moved, (moved.shape[0], moved.shape[1] * moved.shape[2], *moved.shape[3:]))


Material = Mapping[Name, Ring]
"""Arrays of several items, by name, each of shape `(items, *shape)`."""
