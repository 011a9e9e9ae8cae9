"""The clear engine: numpy vectors that stand for ciphertexts, with levels, scales and the noise that SEAL would add.

It checks that levels and scales agree wherever SEAL requires it, counts operations, and tracks the variance of each
slot's error, from which the guarantee's bound follows; with a random generator it also draws that noise.

Noise of one operation, as the variance of a coefficient (Cheon et al. 2017; Kim, Papadimitriou, Polyakov 2022), for
errors of standard deviation 3.2 and a uniform ternary secret:

    encryption       3.2^2 + 1/12
    encoding         1/12
    rescale          (1 + 2 N / 3) / 12
    key switch       sum over primes q of the level of N q^2 / 12 * (3.2 / special)^2, + (1 + 2 N / 3) / 12

A coefficient variance V is V * N / 2 / scale^2 on the real part of a slot. Errors of different slots are taken as
independent, as the canonical embedding makes them nearly. A key switch treats slots unequally: SEAL's digits lie in
[0, q) instead of around zero, and their mean q / 2 in every coefficient is a polynomial that is large near x = 1. So
N / 12 becomes N / 12 + 1 / |1 - zeta|^2 for a slot at the root zeta, a hundred times the deviation in the worst slot.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from secure_infer.backends.ckks.engine import Capabilities
from secure_infer.backends.ckks.lower import Indices, Reals
from secure_infer.backends.ckks.parameters import Parameters

_ERROR = 3.2**2
_ROUNDING = 1 / 12
_EXACT = 1e-12


@dataclass(frozen=True, eq=False)
class Cipher:
    """What stands for a batch of ciphertexts.

    Attributes:
        values: Slots, shape `(n, slots)`.
        variance: Variance of each slot's error, shape `(slots,)`.
        level: Primes after the first.
        scale: Scale of the plaintext inside.
    """

    values: Reals
    variance: Reals
    level: int
    scale: float


@dataclass(frozen=True, eq=False)
class Plain:
    """What stands for an encoded plaintext; `variance` is that of its rounding, the same in every slot."""

    values: Reals
    variance: float
    level: int
    scale: float


class ClearEngine:
    """Arithmetic on vectors.

    Args:
        parameters: Ring and primes.
        rng: Draws the noise; None leaves it out, and only tracks it.
        slots: Which slots vectors stand for; all if left out. Rotations need all.

    Attributes:
        slots: Length of a vector.
        counts: How often each operation ran for one ciphertext, as `"operation@level"`.
    """

    capabilities: ClassVar[Capabilities] = Capabilities()

    def __init__(
        self, parameters: Parameters, rng: np.random.Generator | None = None, slots: Indices | None = None
    ) -> None:
        self._parameters, self._rng = parameters, rng
        digits = digit_power(parameters.poly_modulus_degree)
        self._digits = digits if slots is None else digits[slots]
        self.slots = len(self._digits)
        self.counts: Counter[str] = Counter()

    def encrypt(self, values: Reals, level: int, scale: float) -> Cipher:
        """A fresh ciphertext of `(n, slots)` values."""
        variance = self._slot_variance(_ERROR + _ROUNDING, scale)
        return self._noisy(Cipher(values, np.zeros(values.shape[-1]), level, scale), variance)

    def encode(self, values: Reals, level: int, scale: float) -> Plain | None:
        """Encode one vector of all slots, or one number for all of them; None if it rounds to zero."""
        if np.abs(values).max() * scale < 0.5:
            return None
        if values.size == 1:
            return self.constant(float(values[0]), level, scale)
        variance = self._slot_variance(_ROUNDING, scale)
        if self._rng is not None:
            values = values + np.sqrt(variance) * self._rng.standard_normal(values.shape)
        return Plain(values, variance, level, scale)

    def constant(self, value: float, level: int, scale: float) -> Plain:
        """Encode one number in all slots: its rounding is the same everywhere."""
        error = 0.0 if self._rng is None else self._rng.uniform(-0.5, 0.5) / scale
        return Plain(np.array([value + error]), _ROUNDING / scale**2, level, scale)

    def lower(self, c: Cipher, level: int) -> Cipher:
        """Drop primes."""
        _require(level <= c.level, "a level can't be raised")
        return Cipher(c.values, c.variance, level, c.scale)

    def rotate(self, c: Cipher, steps: int) -> Cipher:
        """Rotate left."""
        self.counts[f"rotations@{c.level}"] += 1
        rolled = Cipher(np.roll(c.values, -steps, axis=-1), np.roll(c.variance, -steps), c.level, c.scale)
        return self._noisy(rolled, self._key_switch(c.level, c.scale))

    def rotate_many(self, c: Cipher, steps: Sequence[int]) -> list[Cipher]:
        """Rotate left by each."""
        return [self.rotate(c, k) if k else c for k in steps]

    def multiply_plain(self, c: Cipher, p: Plain) -> Cipher:
        """Product with a plaintext."""
        _require(c.level == p.level, "levels differ")
        kind = "plain" if p.values.size > 1 else "constant"
        self.counts[f"{kind}_multiplications@{c.level}"] += 1
        variance = c.variance * p.values**2 + p.variance * np.mean(c.values**2, axis=0)
        return Cipher(c.values * p.values, variance, c.level, self._fitting(c.scale * p.scale, c.level))

    def multiply(self, a: Cipher, b: Cipher) -> Cipher:
        """Product of ciphertexts; errors of the factors are added, not their variances, since they may be related."""
        _require(a.level == b.level, "levels differ")
        self.counts[f"multiplications@{a.level}"] += 1
        variance = (_peak(a) * np.sqrt(b.variance) + _peak(b) * np.sqrt(a.variance)) ** 2
        scale = self._fitting(a.scale * b.scale, a.level)
        return self._noisy(Cipher(a.values * b.values, variance, a.level, scale), self._key_switch(a.level, scale))

    def add(self, a: Cipher, b: Cipher) -> Cipher:
        """Sum."""
        _require(a.level == b.level and _same(a.scale, b.scale), "levels or scales differ")
        return Cipher(a.values + b.values, a.variance + b.variance, a.level, a.scale)

    def add_plain(self, c: Cipher, p: Plain) -> Cipher:
        """Sum with a plaintext."""
        _require(c.level == p.level and _same(c.scale, p.scale), "levels or scales differ")
        return Cipher(c.values + p.values, c.variance + p.variance, c.level, c.scale)

    def rescale(self, c: Cipher, scale: float) -> Cipher:
        """Divide by the last prime."""
        _require(c.level > 0, "no level is left")
        _require(_same(c.scale / self._parameters.primes[c.level], scale), "the planned scale is not what results")
        self.counts[f"rescales@{c.level}"] += 1
        rescaled = Cipher(c.values, c.variance, c.level - 1, scale)
        return self._noisy(rescaled, self._slot_variance(self._secret_rounding(), scale))

    def _fitting(self, scale: float, level: int) -> float:
        bits = sum(float(np.log2(float(q))) for q in self._parameters.primes[: level + 1])
        _require(np.log2(scale) < bits - 1, "the scale exceeds the primes that are left")
        return scale

    def _noisy(self, c: Cipher, variance: Reals | float) -> Cipher:
        values = c.values
        if self._rng is not None:
            values = values + np.sqrt(variance) * self._rng.standard_normal(values.shape)
        return Cipher(values, c.variance + variance, c.level, c.scale)

    def _key_switch(self, level: int, scale: float) -> Reals:
        ratios = sum((q / self._parameters.special) ** 2 for q in self._parameters.primes[: level + 1])
        rounding = self._slot_variance(self._secret_rounding(), scale)
        return self._slot_variance(_ERROR * ratios, scale) * self._digits + rounding

    def _secret_rounding(self) -> float:
        return (1 + 2 * self._parameters.poly_modulus_degree / 3) * _ROUNDING

    def _slot_variance(self, coefficient: float, scale: float) -> float:
        return coefficient * self._parameters.poly_modulus_degree / 2 / scale**2


def digit_power(degree: int) -> Reals:
    """Mean square of a digit's value at the root of each slot, for digits uniform in [0, 1); shape `(degree / 2,)`."""
    exponents = np.array([pow(3, slot, 2 * degree) for slot in range(degree // 2)])
    return np.asarray(degree * _ROUNDING + 1 / (2 * np.sin(np.pi * exponents / (2 * degree))) ** 2)


class ScheduleError(Exception):
    """A plan that SEAL would refuse: our bug, never the user's."""


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise ScheduleError(what)


def _same(a: float, b: float) -> bool:
    return abs(a / b - 1) < _EXACT


def _peak(c: Cipher) -> Reals:
    return np.asarray(np.abs(c.values).max(axis=0))
