"""Trees cut into blocks, each of which is one look-up of a small number made of comparison bits.

A block is a part of a tree below some node. Its number counts the conditions on the way to the node that hold, and
below that the outcomes of its own comparisons, as digits of a mixed radix: of k edges of one feature, some first ones
are passed, which is one of k + 1 outcomes. Where not all conditions hold, the block's value is zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import product
from typing import TypeAlias

import numpy as np

from secure_infer.frontends.tabular.bins import Binned, Leaf, Split
from secure_infer.graph.types import Integers

Bit: TypeAlias = tuple[int, int]
"""Feature and edge of a comparison."""
Conditions: TypeAlias = Mapping[tuple[int, bool], int]
"""On the way to a node: the greatest edge passed of each feature (True), and the least one not passed (False)."""

_COST = (0, 90, 92, 100, 142, 230, 526)
"""What a look-up of so many bits costs under TFHE, if its value is to be added to many others; only ratios count."""


@dataclass(frozen=True, eq=False)
class LookUp:
    """`table[bias + sum of weights * bits]`, which is then multiplied by a row of outputs.

    Attributes:
        weights: Weight of each bit.
        bias: Constant.
        table: One value for each number.
        row: What the value adds to each output, shape `(outputs,)`.
    """

    weights: Mapping[Bit, int]
    bias: int
    table: Integers
    row: Integers


@dataclass(frozen=True, eq=False)
class Cut:
    """Trees as look-ups.

    Attributes:
        bits: Bits of the widest look-up.
        look_ups: All of them.
        linear: What single bits add to the outputs, without a look-up.
        constant: What is added always, shape `(outputs,)`.
    """

    bits: int
    look_ups: Sequence[LookUp]
    linear: Mapping[Bit, Integers]
    constant: Integers


def cut(trees: Sequence[Binned], look_up_tables: bool) -> Cut:
    """Cut trees into the cheapest look-ups of one width.

    Args:
        trees: They add up.
        look_up_tables: Whether tables are as cheap as comparisons of their width (TFHE); if not (MPC), each leaf
            becomes one comparison: do all conditions hold?
    """
    constant = reduce(np.add, [_most_common(tree) for tree in trees])
    rest = [_Cutter(_most_common(tree)) for tree in trees]
    linear: dict[Bit, Integers] = {}
    curved: list[tuple[Binned, _Cutter]] = []
    for tree, cutter in zip(trees, rest, strict=True):
        if len({feature for feature, _ in _bits(tree)}) > 1:
            curved.append((tree, cutter))
        else:
            constant = constant + _straight(tree, cutter.base, linear)
    if not curved:
        return Cut(0, [], linear, constant)
    deepest = max(_conditions(tree) for tree, _ in curved)
    if not look_up_tables:
        found = [look for tree, cutter in curved for look in cutter.leaves(tree)]
        return Cut(deepest.bit_length(), found, linear, constant)
    widths = range(least := deepest.bit_length(), max(least + 1, len(_COST)))
    costs = {bits: sum(c.count(tree, bits) for tree, c in curved) * _cost(bits) for bits in widths}
    bits = min(costs, key=costs.__getitem__)
    return Cut(bits, [look for tree, c in curved for look in c.look_ups(tree, bits)], linear, constant)


def _cost(bits: int) -> int:
    return _COST[bits] if bits < len(_COST) else _COST[-1] << (bits - len(_COST) + 1)


def _straight(tree: Binned, base: Integers, linear: dict[Bit, Integers]) -> Integers:
    """Add a tree of one feature to `linear`: a sum of steps; returns its value below all edges, less its base."""
    bits = sorted(_bits(tree))
    values = [_value(tree, dict.fromkeys([bit[0] for bit in bits], passed)) for passed in _passed(bits)]
    for bit, below, above in zip(bits, values, values[1:], strict=False):
        linear[bit] = linear.get(bit, np.zeros_like(base)) + above - below
    return values[0] - base


def _passed(bits: Sequence[Bit]) -> list[int]:
    """A bin below all edges, and the bin just above each edge."""
    return [-1, *(edge for _, edge in bits)]


def _value(tree: Binned, bins: Mapping[int, int]) -> Integers:
    """The leaf of a row that passes the edges up to `bins[feature]` of each feature."""
    while isinstance(tree, Split):
        tree = tree.above if bins[tree.feature] >= tree.edge else tree.below
    return tree.value


def _bits(tree: Binned) -> set[Bit]:
    if isinstance(tree, Leaf):
        return set()
    return {(tree.feature, tree.edge)} | _bits(tree.below) | _bits(tree.above)


def _leaves(tree: Binned) -> Iterator[Integers]:
    if isinstance(tree, Leaf):
        yield tree.value
    else:
        yield from _leaves(tree.below)
        yield from _leaves(tree.above)


def _most_common(tree: Binned) -> Integers:
    values, counts = np.unique(np.stack(list(_leaves(tree))), axis=0, return_counts=True)
    return np.asarray(values[counts.argmax()])


def _conditions(tree: Binned, held: Conditions | None = None) -> int:
    """The most conditions on the way to any leaf."""
    if isinstance(tree, Leaf):
        return len(held or {})
    return max(_conditions(part, after) for part, after in _branches(tree, held or {}))


def _branches(node: Split, held: Conditions) -> tuple[tuple[Binned, Conditions], tuple[Binned, Conditions]]:
    """Both children, each with the conditions on the way to it; a tighter one takes the place of its forerunner."""
    below, above = ({**held, (node.feature, passed): node.edge} for passed in (False, True))
    return (node.below, below), (node.above, above)


@dataclass(eq=False)
class _Cutter:
    """Cuts one tree whose values are meant relative to a base."""

    base: Integers
    _needs: dict[int, tuple[Binned, dict[int, list[int]], list[Integers]]] = field(default_factory=dict)

    def count(self, node: Binned, bits: int, held: Conditions | None = None) -> int:
        """The fewest look-ups of so many bits for the part below a node."""
        held = held or {}
        whole = self._whole(node, bits, len(held))
        if (whole is not None and whole <= 1) or isinstance(node, Leaf):
            return whole or 0
        parts = sum(self.count(part, bits, after) for part, after in _branches(node, held))
        return parts if whole is None else min(whole, parts)

    def look_ups(self, node: Binned, bits: int, held: Conditions | None = None) -> Iterator[LookUp]:
        """Those look-ups."""
        held = held or {}
        if self._whole(node, bits, len(held)) == self.count(node, bits, held):
            yield from self._block(node, held)
        elif isinstance(node, Split):
            for part, after in _branches(node, held):
                yield from self.look_ups(part, bits, after)

    def leaves(self, node: Binned, held: Conditions | None = None) -> Iterator[LookUp]:
        """One look-up for each leaf that differs from the base."""
        held = held or {}
        if isinstance(node, Leaf):
            yield from self._block(node, held, values_as_rows=True)
            return
        for part, after in _branches(node, held):
            yield from self.leaves(part, after)

    def _need(self, node: Binned) -> tuple[dict[int, list[int]], list[Integers]]:
        """Edges by feature below a node, and its leaves' distinct values; kept, since they are asked for often."""
        if id(node) not in self._needs:
            edges: dict[int, list[int]] = {}
            for feature, edge in sorted(_bits(node)):
                edges.setdefault(feature, []).append(edge)
            values = np.unique(np.stack(list(_leaves(node))) - self.base, axis=0)
            self._needs[id(node)] = node, edges, [row for row in values if row.any()]
        return self._needs[id(node)][1:]

    def _whole(self, node: Binned, bits: int, conditions: int) -> int | None:
        """Look-ups that the part below a node needs as one block; None if its number is too wide."""
        edges, values = self._need(node)
        if not values:
            return 0
        if (conditions + 1) * math.prod(len(e) + 1 for e in edges.values()) > 1 << bits:
            return None
        return min(len(values), int(np.any(values, axis=0).sum()))

    def _block(self, node: Binned, held: Conditions, values_as_rows: bool = False) -> Iterator[LookUp]:
        """Look-ups of 0 and 1, one for each value, or of the values themselves, one for each output, if not more."""
        edges, values = self._need(node)
        if not values:
            return
        place, weights, bias = 1, {}, 0
        for feature, steps in edges.items():
            weights.update({(feature, edge): place for edge in steps})
            place *= len(steps) + 1
        for (feature, passed), edge in held.items():
            # A condition's edge lies outside the span that is left for the block, so no bit is counted twice.
            weights[feature, edge] = place if passed else -place
            bias += 0 if passed else place
        outcomes = product(*[[-1, *steps] for steps in reversed(edges.values())])
        rows = [_value(node, dict(zip(reversed(edges), bins, strict=True))) - self.base for bins in outcomes]
        active = np.stack(rows)
        table = np.zeros((place * (len(held) + 1), len(self.base)), dtype=np.int64)
        table[place * len(held) :] = active
        used = np.flatnonzero(active.any(axis=0))
        if values_as_rows or len(values) < len(used):
            for row in values:
                yield LookUp(weights, bias, (table == row).all(axis=1).astype(np.int64), row)
        else:
            for column in used:
                yield LookUp(weights, bias, table[:, column], np.eye(len(self.base), dtype=np.int64)[column])
