"""A polynomial of degree d in `ceil(log2(d + 1))` levels: p = q x^(2^(k-1)) + r, and so on down to degree one.

The recursion of Paterson and Stockmeyer (1973) with powers of two only: coefficients meet the variable in the linear
leaves, which cost one level, and each of the k - 1 further levels is one product with a repeated square. Scales are
solved from the target downwards, so that a product and the remainder that is added to it always agree exactly.
"""

from __future__ import annotations

from typing import Generic

import numpy as np

from secure_infer.backends.ckks.engine import C, Engine, P
from secure_infer.backends.ckks.lower import Reals
from secure_infer.backends.ckks.packing import spread
from secure_infer.backends.ckks.parameters import Parameters
from secure_infer.backends.ckks.plan import Step


class _Node(Generic[C, P]):
    """A polynomial that is evaluated to one level and scale.

    A constant has only `constant`. A leaf has `linear`, at one level above. A product has `high`, of which the
    ciphertext or the constant is multiplied by the square number `square`, and `low`, which is added.
    """

    def __init__(self, tree: Tree[C, P], table: Reals, k: int, level: int, scale: float, factor: bool = False) -> None:
        self.level, self.scale = level, scale
        self.constant: P | None = None
        self.linear: P | None = None
        self.high: _Node[C, P] | None = None
        self.low: _Node[C, P] | None = None
        self.is_constant = not table[1:].any()
        while k > 1 and not table[1 << k - 1 :].any():
            k -= 1
        self.square = k - 1
        prime = tree.parameters.primes[level + 1] if not self.is_constant else 1
        if self.is_constant:
            self.constant = tree.encode(table[0], level, scale, smallest=factor)
        elif k == 1:
            self.constant = tree.encode(table[0], level, scale)
            self.linear = tree.encode(table[1], level + 1, scale * prime / tree.scales[0], smallest=True)
        else:
            half = 1 << k - 1
            self.high = _Node(tree, table[half:], k - 1, level + 1, scale * prime / tree.scales[k - 1], True)
            self.low = _Node(tree, table[:half], k - 1, level, scale)


class Tree(Generic[C, P]):
    """The polynomials of one block, encoded.

    Args:
        engine: Does the arithmetic.
        parameters: Ring and primes.
        step: The step that they end.
        block: Which block of it.
    """

    def __init__(self, engine: Engine[C, P], parameters: Parameters, step: Step, block: int) -> None:
        assert step.coefficients is not None
        self.engine, self.parameters, self._turn = engine, parameters, step.affine.turn
        levels = step.affine.level - step.result.level
        self.scales = [step.affine.scale]
        for i in range(levels - 1):
            self.scales.append(self.scales[-1] ** 2 / parameters.primes[step.affine.level - i])
        table = step.coefficients[:, block]
        if not table[1:].any():
            # A constant still has to become a ciphertext; its linear part is then the least that can be encoded.
            table = table.copy()
            table[1] = np.finfo(np.float64).tiny
        self._root: _Node[C, P] = _Node(self, table, levels, step.result.level, step.result.scale)

    def encode(self, row: Reals, level: int, scale: float, smallest: bool = False) -> P | None:
        """Encode coefficients; `smallest` makes the least nonzero plaintext of what would round to zero."""
        values = row if row.size == 1 else spread(row, self.parameters.slots, self._turn)
        plaintext = self.engine.encode(values, level, scale)
        if plaintext is None and smallest:
            return self.engine.encode(np.full(values.shape, 1 / scale), level, scale)
        return plaintext

    def __call__(self, x: C) -> C:
        """The polynomials at `x`."""
        powers = [x]
        for scale in self.scales[1:]:
            powers.append(self.engine.rescale(self.engine.multiply(powers[-1], powers[-1]), scale))
        return self._evaluate(self._root, powers)

    def _evaluate(self, node: _Node[C, P], powers: list[C]) -> C:
        engine = self.engine
        power = engine.lower(powers[node.square], node.level + 1)
        if node.high is None:
            assert node.linear is not None
            result = engine.multiply_plain(power, node.linear)
        elif node.high.is_constant:
            assert node.high.constant is not None
            result = engine.multiply_plain(power, node.high.constant)
        else:
            result = engine.multiply(self._evaluate(node.high, powers), power)
        result = engine.rescale(result, node.scale)
        low = node.low
        if low is not None and not low.is_constant:
            return engine.add(result, self._evaluate(low, powers))
        constant = node.constant if low is None else low.constant
        return result if constant is None else engine.add_plain(result, constant)
