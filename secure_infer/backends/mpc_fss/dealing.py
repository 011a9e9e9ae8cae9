"""What the dealer makes: lots of one-use correlations, from seeds of its own; it knows a plan and never a number."""

from __future__ import annotations

import hashlib
import hmac
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from secure_infer.backends.mpc_fss.dcf import generate
from secure_infer.backends.mpc_fss.generator import PRG_KEY_BYTES, Generator
from secure_infer.backends.mpc_fss.lower import by_channel
from secure_infer.backends.mpc_fss.material import Field, Gate, Layout, Name, Source, draw, gates, stored, together
from secure_infer.backends.mpc_fss.plan import AFFINE, Plan, Step
from secure_infer.backends.mpc_fss.ring import Affine, Ring, kind_of, low_bits
from secure_infer.backends.mpc_fss.secrets import masks
from secure_infer.backends.parties.streams import KEY_BYTES, Stream

EPOCH_BYTES = 16
GREETING_BYTES = KEY_BYTES + PRG_KEY_BYTES + EPOCH_BYTES
_LARGEST_LOT = 16 << 20


@dataclass(frozen=True)
class Greeting:
    """What the dealer tells a party of a plan, once.

    Attributes:
        masks: Key that the party draws its part of the lasting masks from.
        generator: Key of the generator that all comparison functions use.
        epoch: Name of both: correlations of another epoch fit other masks.
    """

    masks: bytes
    generator: bytes
    epoch: bytes

    def __repr__(self) -> str:
        return f"Greeting(epoch={self.epoch.hex()})"

    def pack(self) -> bytes:
        """As a message."""
        return self.masks + self.generator + self.epoch

    @classmethod
    def unpack(cls, data: bytes) -> Greeting:
        """What `pack` wrote."""
        return cls(data[:KEY_BYTES], data[KEY_BYTES : KEY_BYTES + PRG_KEY_BYTES], data[-EPOCH_BYTES:])


def greetings(master: bytes, plan: bytes) -> tuple[Greeting, Greeting]:
    """Both parties' greetings for a plan: the same ones whenever a dealer of the same master key meets that plan."""
    digest = hashlib.sha256(plan).digest()
    keys = [hmac.digest(master, label + digest, "sha256") for label in (b"party 0", b"party 1", b"prg", b"epoch")]
    common = keys[2][:PRG_KEY_BYTES], keys[3][:EPOCH_BYTES]
    return Greeting(keys[0], *common), Greeting(keys[1], *common)


def lot_size(layout: Layout, wanted: int) -> int:
    """Items to deal at once: as many as are wanted, but no lot larger than memory likes."""
    return max(1, min(wanted, _LARGEST_LOT // layout.item_bytes(1)))


class Dealing:
    """Makes lots for one plan.

    Args:
        plan: The public plan.
        both: What both parties were greeted with.
    """

    def __init__(self, plan: Plan, both: tuple[Greeting, Greeting]) -> None:
        self.layout, self._plan = Layout(plan), plan
        self._generator = Generator(both[0].generator)
        first, second = (masks(plan, party, greeting.masks) for party, greeting in enumerate(both))
        self._masks = {name: first[name] + second[name] for name in first}
        self._affine = {
            step.name: Affine(step.parameters, self._masks[step.name, "weight"])
            for step in plan.steps
            if step.kind in AFFINE
        }

    def lot(self, count: int) -> tuple[bytes, bytes]:
        """Both parties' parts of so many fresh items."""
        return _Lot(self, count).pack()

    def correlate(self, lot: _Lot, step: Step) -> None:
        """Set what the parties' arrays of a step have to add up to, and what they have in common."""
        match step.kind:
            case "Linear" | "Conv2d":
                lot.total[step.name, "product"] = self._affine[step.name](lot.sum(step.name, "mask"))
            case "Compare" | "CompareLinear":
                self._compare(lot, step)
            case "Max":
                self._maximum(lot, step)
            case "Shift":
                self._shift(lot, step)
            case "Lookup":
                self._look_up(lot, step)
            case "Polynomial":
                self._polynomial(lot, step)

    def _compare(self, lot: _Lot, step: Step) -> None:
        """The top bit of each masked number, and a function for its low bits; each times what the bit is wanted for."""
        if not step.parameters["thresholds"][1]:
            return
        bits, kind = step.parameters["bits"], kind_of(step.ring)
        offsets = spread(self._masks[step.name, "thresholds"], self._plan.given(step))
        alpha = low_bits(lot.sum(step.name, "mask")[:, None] + offsets, bits).astype(np.uint64)
        alpha = alpha.reshape(lot.count, -1)
        top, low = _split(alpha, bits)
        wanted = self._wanted(step)
        lot.total[step.name, "top"] = top.astype(kind)[..., None] * wanted
        (gate,) = gates(self._plan, step)
        self._functions(lot, step, gate, low, (1 - 2 * top.astype(kind))[..., None] * wanted)

    def _wanted(self, step: Step) -> Ring:
        """One; before a linear layer one and a column of its weights for each comparison: `(count, payload)`."""
        if step.kind == "Compare":
            return np.ones((1, 1), kind_of(step.ring))
        return with_ones(self._masks[step.name, "weight"], step.parameters["thresholds"][1], 1)

    def _maximum(self, lot: _Lot, step: Step) -> None:
        for i, gate in enumerate(gates(self._plan, step)):
            mask = lot.sum(step.name, f"{i} mask")
            top, low = _split(mask.astype(np.uint64), step.parameters["bits"])
            top = top.astype(mask.dtype)
            lot.total[step.name, f"{i} top"], lot.total[step.name, f"{i} product"] = top, mask * top
            self._functions(lot, step, gate, low, np.stack([1 - 2 * top, mask * (1 - 2 * top)], axis=-1))

    def _shift(self, lot: _Lot, step: Step) -> None:
        places, bits, kind = step.parameters["places"], step.parameters["bits"], kind_of(step.ring)
        mask = low_bits(lot.sum(step.name, "mask"), bits).astype(np.uint64)
        lot.total[step.name, "high"] = (mask >> np.uint64(places)).astype(kind)
        low, whole = gates(self._plan, step)
        ones = np.ones((*mask.shape, 1), dtype=kind)
        self._functions(lot, step, low, mask & np.uint64((1 << places) - 1), ones)
        wrap = kind.type((1 << (bits - places)) % (1 << step.ring))
        self._functions(lot, step, whole, mask, ones * wrap)

    def _look_up(self, lot: _Lot, step: Step) -> None:
        bits, entries = step.parameters["bits"], step.parameters["table"][1]
        mask = low_bits(lot.sum(step.name, "mask"), bits).astype(np.intp)[..., None]
        places = np.arange(entries)
        lot.total[step.name, "one"] = (places == mask).astype(kind_of(step.ring))
        table = spread(self._masks[step.name, "table"], step.shape).T  # (size, entries)
        index = (places - mask) % entries
        lot.total[step.name, "table"] = np.take_along_axis(np.broadcast_to(table, index.shape), index, axis=-1)

    def _polynomial(self, lot: _Lot, step: Step) -> None:
        degree, kind = step.parameters["coefficients"][1] - 1, kind_of(step.ring)
        mask = lot.sum(step.name, "mask")
        powers = [np.ones_like(mask)]
        for _ in range(degree):
            powers.append(powers[-1] * mask)
        rows = spread(self._masks[step.name, "coefficients"], step.shape)
        lot.total[step.name, "powers"] = np.stack([*powers[1:], powers[0]], axis=1)[:, :degree]
        terms = [
            sum(rows[k] * kind.type(math.comb(k, j)) * sign(powers[k - j], k - j) for k in range(j, degree + 1))
            for j in range(degree + 1)
        ]
        lot.total[step.name, "terms"] = np.stack([np.broadcast_to(term, mask.shape) for term in terms], axis=1)

    def _functions(self, lot: _Lot, step: Step, gate: Gate, alpha: Ring, beta: Ring) -> None:
        """Comparison functions of one step, alpha `(items, n)` and beta `(items, n, payload)`."""
        if not gate.count:
            return
        roots = tuple(together(lot.drawn[party][step.name, f"{gate.label}roots"]) for party in (0, 1))
        found = generate(gate.form, self._generator, together(alpha), together(beta), (roots[0], roots[1]))
        lot.common[step.name, f"{gate.label}leaves"] = _items(found.leaves[None], lot.count)[:, 0]
        for name, values in (("seeds", found.seeds), ("values", found.values)):
            lot.common[step.name, gate.label + name] = _items(values, lot.count)


class _Lot:
    """A lot that is being made.

    Attributes:
        count: Its items.
        drawn: What each party draws, by name.
        total: What the parties' parts of an array have to add up to.
        common: What both are sent.
    """

    def __init__(self, dealing: Dealing, count: int) -> None:
        self.count, self._layout = count, dealing.layout
        self._seeds = [[os.urandom(KEY_BYTES) for _ in range(count)] for _ in (0, 1)]
        self.drawn = [self._draw(party) for party in (0, 1)]
        self.total: dict[Name, Ring] = {}
        zero = np.frombuffer(os.urandom(KEY_BYTES * count), np.uint8).reshape(count, KEY_BYTES)
        self.common: dict[Name, Ring] = {("", "zero"): zero}
        for step in dealing.layout.plan.steps:
            dealing.correlate(self, step)

    def sum(self, step: str, name: str) -> Ring:
        """An array that the parties draw, shape `(items, ...)`."""
        parts: Sequence[Ring] = [drawn[step, name] for drawn in self.drawn if (step, name) in drawn]
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]

    def pack(self) -> tuple[bytes, bytes]:
        """Both parties' parts."""
        return self._pack(0), self._pack(1)

    def _pack(self, party: int) -> bytes:
        columns = [np.frombuffer(b"".join(self._seeds[party]), np.uint8).reshape(self.count, KEY_BYTES)]
        for field in self._layout.fields:
            if field.source is Source.COMMON:
                columns.append(stored(field, self.common[field.name]))
            elif field.source is Source.SPLIT and party == 1:
                columns.append(stored(field, self._rest(field)))
        return bytes(np.concatenate(columns, axis=1).data)

    def _rest(self, field: Field) -> Ring:
        total = self.total[field.name].reshape(self.count, *field.shape)
        return np.asarray(total - self.drawn[0][field.name])

    def _draw(self, party: int) -> dict[Name, Ring]:
        streams = [Stream(seed) for seed in self._seeds[party]]
        absent = Source.SPLIT if party else Source.SECOND
        return {
            field.name: draw(field, streams)
            for field in self._layout.fields
            if field.source not in (Source.COMMON, absent)
        }


def spread(rows: Ring, shape: tuple[int, ...]) -> Ring:
    """Rows `(channels | 1, k)`, one value for each of the k columns and each element: `(k, size)`."""
    columns = by_channel(rows, shape)
    return np.broadcast_to(columns, (len(columns), *shape)).reshape(len(columns), -1)


def with_ones(weight: Ring, levels: int, one: int) -> Ring:
    """A one and a column of the weights for each comparison, `(levels * inputs, 1 + outputs)`."""
    column = np.full((weight.shape[1], 1), one, weight.dtype)
    return np.tile(np.concatenate([column, weight.T], axis=1), (levels, 1))


def sign(values: Ring, power: int) -> Ring:
    """Values times `(-1)**power`."""
    return np.asarray(-values if power % 2 else values)


def _split(values: Ring, bits: int) -> tuple[Ring, Ring]:
    """The top one of so many bits, and the bits below."""
    below = np.uint64(bits - 1)
    return values >> below & np.uint64(1), values & np.uint64((1 << (bits - 1)) - 1)


def _items(values: Ring, count: int) -> Ring:
    """Corrections `(levels, items * n, ...)` by item: `(items, levels, n, ...)`."""
    return np.moveaxis(values.reshape(len(values), count, values.shape[1] // count, *values.shape[2:]), 1, 0)
