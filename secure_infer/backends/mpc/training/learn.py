"""Gradient descent on integers, written once for clear values and for shares: so both give the same weights.

Values are multiples of 2**-f modulo 2^64. A product has 2 f fractional bits, of which f are rounded off; there is no
other rounding, and none that depends on chance, as CrypTen's truncation does.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from secure_infer.backends.mpc.kernels import matmul
from secure_infer.backends.mpc.training.task import Task, Weights
from secure_infer.graph.types import Integers


class Ring(Protocol):
    """What gradient descent does with numbers besides adding them."""

    def product(self, x: Integers, y: Integers) -> Integers:
        """The product of matrices."""
        ...

    def times(self, x: Integers, y: Integers) -> Integers:
        """The product element by element."""
        ...

    def rounded(self, x: Integers, places: int) -> Integers:
        """The integer nearest to `x / 2**places`; the greater of two."""
        ...

    def positive(self, x: Integers) -> Integers:
        """One where `x >= 0`, else zero."""
        ...


def half(places: int) -> int:
    """What a floor has to be given on top to round to nearest."""
    return (1 << places) >> 1


class Clear:
    """Numbers as they are."""

    def product(self, x: Integers, y: Integers) -> Integers:
        """The product of matrices."""
        return matmul(x, y)

    def times(self, x: Integers, y: Integers) -> Integers:
        """The product element by element."""
        return x * y

    def rounded(self, x: Integers, places: int) -> Integers:
        """The integer nearest to `x / 2**places`; the greater of two."""
        return (x + half(places)) >> places

    def positive(self, x: Integers) -> Integers:
        """One where `x >= 0`, else zero."""
        return (x >= 0).astype(np.int64)


def step(ring: Ring, task: Task, weights: Weights, x: Integers, y: Integers) -> Weights:
    """The weights after one mini-batch.

    Args:
        ring: The arithmetic.
        task: What is trained.
        weights: See `task.Weights`.
        x: Features, shape `(batch, features)`.
        y: One-hot classes, shape `(batch, classes)`.
    """
    bits = task.fraction_bits
    down = task.rate_bits + task.batch.bit_length() - 1
    inputs, alive = [x], []
    for layer in range(0, len(weights), 2):
        sums = ring.rounded(ring.product(inputs[-1], weights[layer]), bits) + weights[layer + 1]
        if layer + 2 == len(weights):
            inputs.append(sums)
            break
        alive.append(ring.positive(sums))
        inputs.append(ring.times(alive[-1], sums))
    error, updated = inputs.pop() - y, list(weights)
    for layer in range(len(weights) - 2, -1, -2):
        gradient = ring.product(np.ascontiguousarray(inputs[layer // 2].T), error)
        updated[layer] = weights[layer] - ring.rounded(gradient, bits + down)
        updated[layer + 1] = weights[layer + 1] - ring.rounded(error.sum(axis=0), down)
        if layer:
            back = ring.rounded(ring.product(error, np.ascontiguousarray(weights[layer].T)), bits)
            error = ring.times(alive[layer // 2 - 1], back)
    return updated


def train_clear(task: Task, x: Integers, y: Integers) -> Weights:
    """The weights after all steps on samples that one holder has in the clear; see `Task.samples`."""
    weights = task.first_weights()
    for chosen in task.batches(len(x)):
        weights = step(Clear(), task, weights, x[chosen], y[chosen])
    return weights
