"""One server's side of a run: steps on shares, one message for each opening, all randomness dealt before."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from secure_infer.backends.mpc_fss.dcf import Corrections, Foresight, evaluate, foresee, foreseeable
from secure_infer.backends.mpc_fss.dealing import Greeting, sign, spread, with_ones
from secure_infer.backends.mpc_fss.generator import Generator
from secure_infer.backends.mpc_fss.material import Gate, Layout, Material, Name, by_level, gates, together
from secure_infer.backends.mpc_fss.plan import AFFINE, OWNER, Plan, Step
from secure_infer.backends.mpc_fss.ring import Affine, Ring, embed, kind_of, low_bits, pair, wire_kind
from secure_infer.backends.mpc_fss.secrets import masks, opened
from secure_infer.backends.mpc_fss.wire import Wire
from secure_infer.backends.parties.streams import Stream
from secure_infer.graph.graph import INPUT
from secure_infer.graph.interpret import windows
from secure_infer.graph.types import Integers

_FORESEEN = ("nodes", "totals")


class Evaluator:
    """One server's copy of a network.

    Args:
        plan: What everybody knows.
        party: 0 or 1.
        shares: Its shares of the secret arrays.
        greeting: From the dealer.
        theirs: The other party's masked secrets.
    """

    def __init__(self, plan: Plan, party: int, shares: Mapping[Name, Ring], greeting: Greeting, theirs: bytes) -> None:
        self.plan, self.layout, self._party, self._shares = plan, Layout(plan), party, dict(shares)
        self._generator = Generator(greeting.generator)
        held = masks(plan, party, greeting.masks)
        self._known = opened(plan, shares, held, theirs)
        self._weights: dict[str, Affine] = {}
        self._differences: dict[str, Affine] = {}
        self._wanted: dict[str, Ring] = {}
        self._gates = {step.name: gates(plan, step) for step in plan.steps}
        self._offsets = {
            step.name: spread(self._known[step.name, "thresholds"], plan.given(step))
            for step in plan.steps
            if step.parameters.get("thresholds", (1, 0))[1]
        }
        for step in plan.steps:
            if step.kind == "CompareLinear":
                name = (step.name, "weight")
                self._wanted[step.name] = with_ones(held[name], step.parameters["thresholds"][1], 1 - party)
                self._differences[step.name] = Affine(step.parameters, self._known[name])
            if step.kind in AFFINE:
                name = (step.name, "weight")
                if plan.mode != OWNER or party == 0:
                    self._weights[step.name] = Affine(step.parameters, self._shares.pop(name))
                if plan.mode != OWNER or party == 1:
                    self._differences[step.name] = Affine(step.parameters, self._known.pop(name))

    def prepare(self, lot: bytes | memoryview) -> dict[Name, Ring]:
        """Unpack a lot, and do all work on it that needs no input: what linear layers add to their products."""
        material = self.layout.unpack(lot, self._party)
        for step in self.plan.steps:
            if step.kind in AFFINE:
                rest = material[step.name, "product"]
                if step.name in self._differences:
                    rest = rest + self._differences[step.name](material[step.name, "mask"])
                bias = self._shares[step.name, "bias"]
                material[step.name, "product"] = rest + bias.reshape((-1,) + (1,) * (len(step.shape) - 1))
        shape, kind = self.plan.shapes[self.plan.output], kind_of(self.plan.rings[self.plan.output])
        zero = [Stream(key.tobytes()).elements(shape, kind) for key in material["", "zero"]]
        material["", "zero"] = np.stack(zero) if self._party == 0 else -np.stack(zero)
        return material

    def foresee(self, item: Material) -> Iterator[Callable[[], Material]]:
        """What can be evaluated of one item's comparison functions before a run: each gives further arrays of the item.

        A run does without, if there was no time.
        """
        for step in self.plan.steps:
            for gate in self._gates[step.name]:
                if (step.name, gate.label + "nodes") not in item and foreseeable(gate.form, gate.count):
                    yield partial(self._foresee, step, gate, item)

    def run(self, share: Integers, material: Material, wire: Wire) -> Integers:
        """This party's share of the outputs, `(n, *output shape)`, fresh whatever the network.

        Args:
            share: Its share of the inputs, `(n, *input shape)`.
            material: n items, which no other run has used or will use.
            wire: To the other party.
        """
        values: dict[str, Ring] = {INPUT: embed(share, kind_of(self.plan.input_ring))}
        for step in self.plan.steps:
            values[step.name] = self._step(step, [values[name] for name in step.inputs], material, wire)
        wire.finish()
        return np.asarray(values[self.plan.output] + material["", "zero"], dtype=np.int64)

    def _step(self, step: Step, inputs: Sequence[Ring], material: Material, wire: Wire) -> Ring:
        p, x = step.parameters, inputs[0]
        match step.kind:
            case "Linear" | "Conv2d":
                return self._affine(step, x, material, wire)
            case "Add":
                return np.asarray(x.dtype.type(p["gains"][0]) * x + x.dtype.type(p["gains"][1]) * inputs[1])
            case "Sum":
                view = windows(x, pair(p["kernel"]), pair(p["stride"]), pair(p["padding"]))
                return np.asarray(view.sum(axis=(-2, -1), dtype=x.dtype))
            case "Reshape":
                return x.reshape(len(x), *step.shape)
            case "Max":
                return self._maximum(step, x, material, wire)
            case "Compare":
                return self._compare(step, x, material, wire)
            case "CompareLinear":
                return self._compare_and_multiply(step, x, material, wire)
            case "Lookup":
                return self._look_up(step, x, material, wire)
            case "Polynomial":
                return self._polynomial(step, x, material, wire)
            case _:
                return self._shift(step, x, material, wire)

    def _own(self, value: int, kind: np.dtype[Any]) -> Any:
        """This party's share of a public number: party 0 has all of it."""
        return kind.type(value % (1 << 8 * kind.itemsize) if self._party == 0 else 0)

    def _affine(self, step: Step, x: Ring, material: Material, wire: Wire) -> Ring:
        """Shares of `W x + bias`; one message, from both (outsourced) or from party 1 (owner).

        Outsourced, e = x - a is opened, and party i adds `W_i e` to its share of `W a + bias`. Under an owner, party 1
        alone masks its share, and party 0 multiplies the sum of what it has and what it is told.
        """
        rest = material[step.name, "product"]
        if self.plan.mode == OWNER:
            if self._party == 1:
                wire.tell(x - material[step.name, "mask"])
                return rest
            return rest + self._weights[step.name](x + wire.hear(x.shape, x.dtype))
        masked = x - material[step.name, "mask"]
        return rest + self._weights[step.name](masked + wire.swap(masked))

    def _compare(self, step: Step, x: Ring, material: Material, wire: Wire) -> Ring:
        """`base + gain * #{thresholds <= x}`, in one round: see PROTOCOL.md."""
        levels, kind = step.parameters["thresholds"][1], kind_of(step.ring)
        base = self._shares[step.name, "base"][0]
        if not levels:
            return np.full(x.shape, base, dtype=kind)
        below = self._below(step, self._own(1, kind), x, material, wire)
        count = self._own(levels, kind) - below.reshape(len(x), levels, -1).sum(axis=1, dtype=kind)
        return np.reshape(base + kind.type(step.parameters["gain"]) * count, x.shape)

    def _compare_and_multiply(self, step: Step, x: Ring, material: Material, wire: Wire) -> Ring:
        """`weight #{thresholds > x} + bias` in the round of the comparisons: see PROTOCOL.md."""
        below = self._below(step, self._wanted[step.name], x, material, wire)
        below = below.reshape(len(x), step.parameters["thresholds"][1], -1, below.shape[-1])
        kind = below.dtype
        counts, masked = below[..., 0].sum(axis=1, dtype=kind), below[..., 1:].sum(axis=(1, 2), dtype=kind)
        return np.asarray(self._differences[step.name](counts) + masked + self._shares[step.name, "bias"])

    def _below(self, step: Step, wanted: Any, x: Ring, material: Material, wire: Wire) -> Ring:
        """Shares of `wanted [x < t]`, for each comparison: `(n, count, payload)`."""
        n, bits = len(x), step.parameters["bits"]
        opened = self._open(step.name, "mask", x.reshape(n, -1), bits, material, wire)
        points = low_bits(opened[:, None] + self._offsets[step.name], bits).astype(np.uint64).reshape(n, -1)
        (gate,) = self._gates[step.name]
        share = self._functions(step, gate, points & np.uint64((1 << (bits - 1)) - 1), material)
        share += material[step.name, "top"].reshape(share.shape)
        flipped = (points >> np.uint64(bits - 1)).astype(bool)[..., None]
        return np.where(flipped, wanted - share, share)

    def _maximum(self, step: Step, x: Ring, material: Material, wire: Wire) -> Ring:
        """A tournament: `max(a, b) = a + relu(b - a)`, all pairs of a round at once."""
        p, fill = step.parameters, self._shares[step.name, "fill"][0]
        view = windows(x, pair(p["kernel"]), pair(p["stride"]), pair(p["padding"]), fill=fill)
        values = view.reshape(*view.shape[:4], -1)
        for i, gate in enumerate(self._gates[step.name]):
            half = values.shape[-1] // 2
            left, right, rest = np.split(values, [half, 2 * half], axis=-1)
            positive = self._relu(step, gate, i, (right - left).reshape(len(x), -1), material, wire)
            values = np.concatenate([left + positive.reshape(left.shape), rest], axis=-1)
        return np.ascontiguousarray(values[..., 0])

    def _relu(self, step: Step, gate: Gate, i: int, x: Ring, material: Material, wire: Wire) -> Ring:
        """Shares of `x [x >= 0]` for x `(n, count)`: with h = x + r open, it is `h b - r b` for the bit b."""
        bits, kind = step.parameters["bits"], x.dtype
        mask = material[step.name, f"{i} mask"]
        masked = x + mask
        opened = masked + wire.swap(masked)
        points = low_bits(opened, bits).astype(np.uint64)
        shares = self._functions(step, gate, points & np.uint64((1 << (bits - 1)) - 1), material)
        negative = material[step.name, f"{i} top"] + shares[..., 0]
        product = material[step.name, f"{i} product"] + shares[..., 1]
        flipped = (points >> np.uint64(bits - 1)).astype(bool)
        bit = np.where(flipped, negative, self._own(1, kind) - negative)
        return np.asarray(opened * bit - np.where(flipped, product, mask - product))

    def _look_up(self, step: Step, x: Ring, material: Material, wire: Wire) -> Ring:
        """`table[x]` with a one-time table: a secret unit vector times what is open of the table, plus the rest."""
        bits, entries = step.parameters["bits"], step.parameters["table"][1]
        shifted = (x - self._shares[step.name, "fill"][0]).reshape(len(x), -1)
        opened = self._open(step.name, "mask", shifted, bits, material, wire).astype(np.intp)[..., None]
        places = (opened - np.arange(entries)) % entries
        units = np.take_along_axis(material[step.name, "one"], places, axis=-1)
        table = spread(self._known[step.name, "table"], step.shape).T
        rest = np.take_along_axis(material[step.name, "table"], opened, axis=-1)[..., 0]
        return np.asarray((units * table).sum(axis=-1, dtype=table.dtype) + rest).reshape(x.shape)

    def _polynomial(self, step: Step, x: Ring, material: Material, wire: Wire) -> Ring:
        """`sum_k c_k x**k` in one round: x = h - r with h open, and r's powers are dealt."""
        degree, kind = step.parameters["coefficients"][1] - 1, x.dtype
        flat, n = x.reshape(len(x), -1), len(x)
        opened = self._open(step.name, "mask", flat, step.ring, material, wire) if degree else flat
        ones = np.full((n, 1, step.size), self._own(1, kind))
        powers = np.concatenate([ones, material[step.name, "powers"]], axis=1)
        rows = spread(self._known[step.name, "coefficients"], step.shape)
        result, power = np.zeros_like(flat), np.ones_like(flat)
        for j in range(degree + 1):
            term = material[step.name, "terms"][:, j].copy()
            for k in range(j, degree + 1):
                term += rows[k] * kind.type(math.comb(k, j)) * sign(powers[:, k - j], k - j)
            result += term * power
            power = power * opened
        return result.reshape(x.shape)

    def _shift(self, step: Step, x: Ring, material: Material, wire: Wire) -> Ring:
        """`floor(x / 2**places)`, exactly: shares of the borrow of the low bits and of the wrap of all of them."""
        places, bits, kind = step.parameters["places"], step.parameters["bits"], kind_of(step.ring)
        shifted = x.reshape(len(x), -1) + self._own(1 << (bits - 1), x.dtype)
        points = self._open(step.name, "mask", shifted, bits, material, wire).astype(np.uint64)
        low, whole = self._gates[step.name]
        borrow = self._functions(step, low, points & np.uint64((1 << places) - 1), material)[..., 0]
        wrap = self._functions(step, whole, points, material)[..., 0]
        result = wrap - borrow - material[step.name, "high"]
        if self._party == 0:
            result += (points >> np.uint64(places)).astype(kind) - self._own(1 << (bits - 1 - places), kind)
        return np.asarray(result).reshape(x.shape)

    def _open(self, step: str, mask: str, x: Ring, bits: int, material: Material, wire: Wire) -> Ring:
        """`x + mask` modulo `2**bits`, for x `(n, count)`; one round."""
        masked = low_bits(x.astype(wire_kind(bits)) + material[step, mask], bits)
        return low_bits(masked + wire.swap(masked), bits)

    def _functions(self, step: Step, gate: Gate, points: Ring, material: Material) -> Ring:
        """Shares of a step's comparison functions at `points`, `(n, count)`: shape `(n, count, payload)`."""
        if not gate.count:
            return np.zeros((*points.shape, gate.form.payload), dtype=gate.form.kind)
        roots, common = _keys(step, gate, material)
        nodes, totals = (material.get((step.name, gate.label + name)) for name in _FORESEEN)
        foreseen = None if nodes is None or totals is None else Foresight(together(nodes), together(totals))
        found = evaluate(gate.form, self._generator, self._party, roots, common, together(points), foreseen)
        return found.reshape(*points.shape, -1)

    def _foresee(self, step: Step, gate: Gate, item: Material) -> Material:
        found = foresee(gate.form, self._generator, self._party, *_keys(step, gate, item))
        arrays = (found.nodes[None], found.totals[None])
        return {(step.name, gate.label + name): array for name, array in zip(_FORESEEN, arrays, strict=True)}


def _keys(step: Step, gate: Gate, material: Material) -> tuple[Ring, Corrections]:
    """A party's seeds and corrections of the functions of all items."""
    arrays = {name: material[step.name, gate.label + name] for name in ("roots", "seeds", "values", "leaves")}
    common = Corrections(by_level(arrays["seeds"]), by_level(arrays["values"]), together(arrays["leaves"]))
    return together(arrays["roots"]), common
