"""Builds a graph node by node, and moves the real scales of values between weights, types and later layers.

A value's true meaning is `real = scale_c * integer + offset_c`, kept beside the graph. The scale in the graph's types
follows it where the types are read: at additions, at activations, and at the output.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np

from secure_infer.frontends.quantize import Reals
from secure_infer.graph import INPUT, Conv2d, Graph, Linear, Max, Node, Op, Polynomial, Reshape, Sum, TensorType
from secure_infer.graph.types import ACCUMULATOR_BITS, Integers, TypeProblem

_DEAD = 1e-6
_STEPS = 255


@dataclass(frozen=True, eq=False)
class Value:
    """A node's value and its real meaning, a scale and an offset for all of it or for each channel.

    Attributes:
        name: Name of the graph's node.
        scale: Shape `(1,)` or `(channels,)`; may be negative.
        offset: Shape `(1,)` or `(channels,)`.
    """

    name: str
    scale: Reals
    offset: Reals

    def affine(self, gain: Reals, shift: Reals) -> Value:
        """The same integers read as `gain_c * real + shift_c`."""
        return Value(self.name, self.scale * gain, self.offset * gain + shift)


class Builder:
    """A graph in the making.

    Args:
        kind: Type of the input.
    """

    def __init__(self, kind: TensorType) -> None:
        self.input = kind
        self.types: dict[str, TensorType] = {INPUT: kind}
        self.shared: set[str] = set()
        self._nodes: dict[str, Node] = {}
        self._unrounded: dict[str, Reals] = {}

    def add(self, label: str, op: Op, *inputs: str, unrounded: Reals | None = None) -> str:
        """Append a node and return its name; `unrounded` are a product's weights, in its units."""
        base = re.sub(r"\W+", "_", label).strip("_") or "node"
        name, number = base, 1
        while name in self.types:
            name, number = f"{base}_{number}", number + 1
        self.types[name] = self._infer(op, inputs)
        self._nodes[name] = Node(name, op, inputs)
        if unrounded is not None:
            self._unrounded[name] = unrounded
        return name

    def graph(self, output: Value) -> Graph:
        """The finished graph, without nodes that nothing reads."""
        needed = {output.name}
        for node in reversed(self._nodes.values()):
            if node.name in needed:
                needed.update(node.inputs)
        nodes = tuple(node for node in self._nodes.values() if node.name in needed)
        return Graph(self.input, nodes, output.name, np.asarray(output.offset, dtype=np.float64))

    def uniform(self, value: Value, label: str) -> float:
        """Give the value's type one scale, as every product asks for, and return it; its true scale is the value's."""
        kind = self.types[value.name]
        if len(kind.scale) == 1:
            return kind.scale[0]
        chain = self._chain(value.name)
        if chain is None:
            raise TypeProblem("Its channels have different scales.", f"put an activation before {label}.")
        scale = float(np.abs(kind.scale).mean()) or 1.0
        self._rescale(chain, (scale,))
        return scale

    def positive(self, value: Value, label: str) -> Value:
        """The value with scales of zero or more: rows of the product that made it are negated where needed."""
        if (value.scale >= 0).all():
            return value
        signs = np.where(value.scale < 0, -1, 1)
        value = self._own_product(value, label)
        self._multiply(value.name, signs)
        return Value(value.name, value.scale * signs, value.offset)

    def at_scale(self, value: Value, scale: float, label: str) -> Value:
        """The value with one given scale: the product that made it gets its weights rounded to that scale."""
        value = self._own_product(value, label)
        chain = self._chain(value.name) or []
        if self._product(chain[-1]).bias.any():
            value = self._identity(value, label)
            chain = [value.name]
        rows = self._unrounded[chain[-1]] * self._rows(chain[-1], value.scale / scale)
        self._unrounded[chain[-1]] = rows
        product = replace(self._product(chain[-1]), weight=np.rint(rows).astype(np.int64), weight_scale=(1.0,))
        self._replace(chain[-1], product)
        self._follow(chain)
        return self.settle(Value(value.name, np.array([scale]), value.offset), label)

    def without_dead(self, value: Value, label: str) -> Value:
        """The value with zeros for channels of (nearly) no gain, whose scale may then be that of the others."""
        size = np.abs(value.scale)
        kind, shift = self.types[value.name], float(np.abs(value.offset).max())
        reach = size * max(abs(kind.low), abs(kind.high))
        dead = reach <= _DEAD * max(float(reach.max()), shift)
        if not dead.any():
            return value
        usual = shift / _STEPS if dead.all() else float(np.median(size[~dead]))
        value = self._identity(value, label)
        self._multiply(value.name, np.where(dead, 0, 1))
        return Value(value.name, np.where(dead, usual or 1.0, value.scale), value.offset)

    def add_integers(self, value: Value, amount: Integers, label: str) -> Value:
        """The value plus an integer for each channel, so that `amount * scale` leaves its offset."""
        value = self._own_product(value, label)
        chain = self._chain(value.name) or []
        if any(isinstance(self._nodes[name].op, Sum) for name in chain):
            value = self._identity(value, label)
            chain = [value.name]
        product = self._product(chain[-1])
        bias = product.bias + np.broadcast_to(amount, product.bias.shape)
        self._replace(chain[-1], replace(product, bias=bias))
        self._follow(chain)
        return Value(value.name, value.scale, value.offset - amount * value.scale)

    def settle(self, value: Value, label: str, insert: bool = True) -> Value:
        """Make the type's scale the true one; if nothing else can, by a node that multiplies by one (`insert`)."""
        kind = self.types[value.name]
        if np.allclose(value.scale, kind.scale, rtol=1e-9, atol=0):
            return value
        chain = self._chain(value.name)
        if chain is None or self.shared.intersection(chain):
            if not insert:
                return value
            value = self._identity(value, label)
            chain = [value.name]
        self._rescale(chain, tuple(map(float, value.scale)))
        return value

    def shifted(self, value: Value, bits: int, label: str) -> Value:
        """The value rounded to so many bits, by a polynomial that is the identity over the reals."""
        kind = self.types[value.name]
        shift = kind.bits - bits
        if shift <= 0:
            return value
        scale = self.uniform(value, label)
        op = Polynomial(np.array([0, 1]), shift, (scale * 2.0**shift,))
        return Value(self.add(f"{label}_shift", op, value.name), value.scale * 2.0**shift, value.offset)

    def sharpness(self, name: str) -> float | None:
        """Greatest weight, in integer units, of a typical row of the product that made a value; None if none did."""
        chain = self._chain(name)
        if chain is None:
            return None
        rows = self._unrounded[chain[-1]]
        return float(np.median(np.abs(rows.reshape(len(rows), -1)).max(axis=1)))

    def _infer(self, op: Op, inputs: tuple[str, ...]) -> TensorType:
        kind = op.infer(*(self.types[name] for name in inputs))
        if kind.bits > ACCUMULATOR_BITS:
            raise TypeProblem(f"Its values need {kind.bits} bits.", "use fewer bits for weights or inputs (n_bits).")
        return kind

    def _product(self, name: str) -> Linear | Conv2d:
        op = self._nodes[name].op
        assert isinstance(op, Linear | Conv2d)
        return op

    def _chain(self, name: str) -> list[str] | None:
        """Names from a value back to the product that made it, through poolings; None if there is no such product."""
        names = []
        while name != INPUT:
            names.append(name)
            node = self._nodes[name]
            if isinstance(node.op, Linear | Conv2d):
                return names
            kept = isinstance(node.op, Reshape) and self.types[node.inputs[0]].shape[:1] == node.op.shape[:1]
            if not (kept or isinstance(node.op, Sum | Max)):
                return None
            name = node.inputs[0]
        return None

    def _own_product(self, value: Value, label: str) -> Value:
        """The value made by a product whose integers nobody else reads, so that they can be changed."""
        chain = self._chain(value.name)
        changeable = chain is not None and not self.shared.intersection(chain)
        if changeable and not any(isinstance(self._nodes[name].op, Max) for name in chain or ()):
            return value
        return self._identity(value, label)

    def _identity(self, value: Value, label: str) -> Value:
        self.uniform(value, label)
        shape = self.types[value.name].shape
        ones, bias = np.ones((shape[0], 1, 1, 1), dtype=np.int64), np.zeros(shape[0], dtype=np.int64)
        op: Linear | Conv2d = Conv2d(ones, bias, groups=shape[0])
        if len(shape) == 1:
            op = Linear(np.eye(shape[0], dtype=np.int64), bias)
        name = self.add(f"{label}_gain", op, value.name, unrounded=op.weight.astype(np.float64))
        return replace(value, name=name)

    def _rows(self, product: str, gain: Reals) -> Reals:
        """One number for each output, shaped to multiply the weights of a product."""
        weight = self._product(product).weight
        return np.broadcast_to(gain, weight.shape[:1]).reshape((-1,) + (1,) * (weight.ndim - 1))

    def _multiply(self, name: str, signs: Integers) -> None:
        chain = self._chain(name) or []
        product = self._product(chain[-1])
        rows = self._rows(chain[-1], signs.astype(np.float64))
        self._unrounded[chain[-1]] = self._unrounded[chain[-1]] * rows
        weight = product.weight * rows.astype(np.int64)
        self._replace(chain[-1], replace(product, weight=weight, bias=product.bias * signs))
        self._follow(chain)

    def _rescale(self, chain: list[str], scale: tuple[float, ...]) -> None:
        """Let the type at the head of a chain have a scale, by the weight_scale of the product at its end."""
        product = self._product(chain[-1])
        divisor = np.prod([op.divisor for op in (self._nodes[n].op for n in chain) if isinstance(op, Sum)], initial=1.0)
        inputs = self.types[self._nodes[chain[-1]].inputs[0]].scale[0]
        weight_scale = tuple(float(s * divisor / inputs) for s in scale)
        self._replace(chain[-1], replace(product, weight_scale=weight_scale))
        self._follow(chain)

    def _replace(self, name: str, op: Op) -> None:
        self._nodes[name] = replace(self._nodes[name], op=op)

    def _follow(self, chain: list[str]) -> None:
        for name in reversed(chain):
            node = self._nodes[name]
            self.types[name] = self._infer(node.op, node.inputs)
