"""The key of an approximate scheme from shared decryptions (Li, Micciancio, EUROCRYPT 2021), on a small ring.

A CKKS decryption is `m' = b + a s mod q`, with the noise of the encryption in it. Whoever holds the ciphertext `(b, a)`
and is told `m'` to the last bit solves for the secret: `s = (m' - b) / a`. Rounding or flooding what is told spoils it,
at the price of bits; averaging several releases wins some of them back from flooding, none from rounding.

Everything here is a demonstration on exact Python integers in a ring far too small to be secure, with keys drawn from a
seeded generator; the same arithmetic serves against the real client, see `recover`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from secure_infer.attacks.statistics import Interval, wilson
from secure_infer.errors import InvalidInput, Problem

Exact = npt.NDArray[np.object_]
Complex = npt.NDArray[np.complex128]
Countermeasure = Literal["rounding", "flooding"]


def recover(b: Exact, a: Exact, message: Exact, modulus: int) -> Exact | None:
    """The secret key, if `message` is the decryption of `(b, a)` to the last bit.

    Args:
        b: Values of the ciphertext's first polynomial at the roots of the ring, integers mod `modulus`, shape `(N,)`.
        a: Those of the second one.
        message: Those of the decrypted polynomial.
        modulus: A prime.

    Returns:
        The values of the candidate `(message - b) / a`, shape `(N,)`; None if `a` has no inverse.
    """
    if any(value % modulus == 0 for value in a):
        return None
    inverse = np.array([pow(int(value), -1, modulus) for value in a], dtype=object)
    return np.asarray((message - b) * inverse % modulus)


@dataclass(frozen=True)
class Ring:
    """Integers mod q with `X^N = -1`, where q is a prime that splits the ring; polynomials as values at N roots.

    Attributes:
        degree: N, a power of two.
        modulus: q, a prime with `q = 1 mod 2 N`.
    """

    degree: int
    modulus: int

    def values(self, coefficients: Exact) -> Exact:
        """Values at the odd powers of a 2N-th root of unity, shape `(N,)`."""
        return np.asarray(self._powers() @ coefficients % self.modulus)

    def coefficients(self, values: Exact) -> Exact:
        """The polynomial with these values; coefficients in `(-q/2, q/2]`."""
        back = self._powers(-1).T @ values * pow(self.degree, -1, self.modulus)
        return self.center(np.asarray(back))

    def center(self, x: Exact) -> Exact:
        """Residues of least magnitude."""
        x = x % self.modulus
        return np.asarray(np.where(x > self.modulus // 2, x - self.modulus, x))

    def roots(self) -> list[int]:
        """All elements of order exactly 2N, where polynomials are evaluated."""
        base = _root_of_unity(2 * self.degree, self.modulus)
        found, square = [base], base * base % self.modulus
        for _ in range(self.degree - 1):
            found.append(found[-1] * square % self.modulus)
        return found

    def _powers(self, sign: int = 1) -> Exact:
        root = _root_of_unity(2 * self.degree, self.modulus)
        table = [pow(root, k, self.modulus) for k in range(2 * self.degree)]
        odd, places = 2 * np.arange(self.degree) + 1, np.arange(self.degree)
        powers = np.array(table, dtype=object)
        return np.asarray(powers[sign * np.outer(odd, places) % (2 * self.degree)])


@dataclass(frozen=True)
class ToyCkks:
    """CKKS on a small ring, in exact integers: one level, a ternary secret, N / 2 complex slots.

    Attributes:
        degree: N, a power of two.
        modulus_bits: Bits of q.
        scale_bits: Bits by which slots are scaled.
        error: Standard deviation of the encryption noise, in units of a coefficient.
    """

    degree: int = 64
    modulus_bits: int = 50
    scale_bits: int = 30
    error: float = 3.2

    def __post_init__(self) -> None:
        if self.degree < 4 or self.degree & (self.degree - 1) or not 10 <= self.scale_bits < self.modulus_bits - 4:
            raise InvalidInput(
                "There is no such toy.",
                [Problem("parameters", f"{self}.", "give a power of two, and a scale well below the modulus.")],
            )

    @property
    def ring(self) -> Ring:
        """Its ring: the greatest fitting prime of `modulus_bits` bits."""
        return Ring(self.degree, _prime(self.modulus_bits, 2 * self.degree))

    def keygen(self, rng: np.random.Generator) -> Exact:
        """Coefficients of a secret in {-1, 0, 1}, shape `(N,)`."""
        return np.asarray(rng.integers(-1, 2, self.degree), dtype=object)

    def encrypt(self, slots: Complex, secret: Exact, rng: np.random.Generator) -> tuple[Exact, Exact]:
        """Values of `(b, a)` with `b = m + e - a s`; slots of shape `(N / 2,)` and magnitude about 1."""
        ring = self.ring
        a = np.array([int(rng.integers(ring.modulus)) for _ in range(self.degree)], dtype=object)
        noise = np.rint(rng.normal(0, self.error, self.degree)).astype(np.int64).astype(object)
        b = (ring.values(self.encode(slots) + noise) - a * ring.values(secret)) % ring.modulus
        return b, a

    def decrypt(self, b: Exact, a: Exact, secret: Exact) -> Complex:
        """All slots to the last bit: what must not be shared."""
        ring = self.ring
        return self.decode(ring.coefficients((b + a * ring.values(secret)) % ring.modulus))

    def encode(self, slots: Complex) -> Exact:
        """Coefficients whose values at the complex roots are the scaled slots, rounded to integers."""
        matrix = self._embedding()
        back = 2 / self.degree * np.real(np.conj(matrix).T @ slots)
        return np.asarray(np.rint(back * 2.0**self.scale_bits).astype(np.int64), dtype=object)

    def decode(self, coefficients: Exact) -> Complex:
        """Slots, shape `(N / 2,)`."""
        return np.asarray(self._embedding() @ coefficients.astype(np.float64) / 2.0**self.scale_bits)

    def attack(self, b: Exact, a: Exact, released: Sequence[Complex]) -> Exact | None:
        """A secret from releases of one decryption, or None; whoever attacks sees by itself whether it is ternary."""
        ring = self.ring
        message = self.encode(np.mean(released, axis=0))
        values = recover(b, a, ring.values(message), ring.modulus)
        found = None if values is None else ring.coefficients(values)
        return found if found is not None and all(abs(value) <= 1 for value in found) else None

    def _embedding(self) -> Complex:
        roots = np.exp(1j * np.pi * (2 * np.arange(self.degree // 2) + 1) / self.degree)
        return np.asarray(roots[:, None] ** np.arange(self.degree))


@dataclass(frozen=True)
class Point:
    """One point of the curve: keys lost against bits lost.

    Attributes:
        countermeasure: "rounding" or "flooding".
        bits: By how many bits its error exceeds that of the encryption, in the standard deviation of a slot.
        releases: Times that one decryption is told, each with fresh noise.
        n: Keys attacked.
        lost: Keys found.
        interval: 95 % interval (Wilson) of the share of these.
        precision_bits: Bits after the point that what is told keeps.
    """

    countermeasure: Countermeasure
    bits: float
    releases: int
    n: int
    lost: int
    interval: Interval
    precision_bits: float

    def as_dict(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return {**asdict(self), "interval": list(self.interval)}


def curve(
    toy: ToyCkks,
    countermeasure: Countermeasure,
    bits: Sequence[float],
    *,
    releases: int = 1,
    n: int = 20,
    seed: int = 0,
) -> list[Point]:
    """Keys lost against bits lost.

    Args:
        toy: Parameters.
        countermeasure: How what is told is spoiled: rounded to a grid, or with Gaussian noise added.
        bits: How far above the encryption's own error to spoil it; negative ones spoil less than that error.
        releases: Times that one decryption is told; fresh noise averages out, rounding does not.
        n: Fresh keys for each point.
        seed: Of keys and noise.

    Raises:
        InvalidInput: No keys or no releases.
    """
    if n < 1 or releases < 1:
        raise InvalidInput("There is nothing to attack.", [Problem("curve", f"n {n}, releases {releases}.", "give 1.")])
    points = []
    for bit in bits:
        rng = np.random.default_rng([seed, round(1000 * bit) & 0xFFFF, releases])
        size = _slot_error(toy) * 2.0**bit
        lost = sum(_one(toy, countermeasure, size, releases, rng) for _ in range(n))
        kept = -np.log2(np.hypot(size, _slot_error(toy)))
        points.append(Point(countermeasure, bit, releases, n, lost, wilson(lost, n), float(kept)))
    return points


def _one(toy: ToyCkks, countermeasure: str, size: float, releases: int, rng: np.random.Generator) -> bool:
    """Whether one fresh key is lost."""
    half = toy.degree // 2
    slots = rng.uniform(-1, 1, half) + 1j * rng.uniform(-1, 1, half)
    secret = toy.keygen(rng)
    b, a = toy.encrypt(slots, secret, rng)
    known = toy.decrypt(b, a, secret)
    if countermeasure == "rounding":
        told = [_rounded(known, size * 12**0.5)] * releases
    else:
        told = [known + size * (rng.normal(size=half) + 1j * rng.normal(size=half)) for _ in range(releases)]
    found = toy.attack(b, a, told)
    return found is not None and bool((found == secret).all())


def _rounded(slots: Complex, grid: float) -> Complex:
    """Both parts to multiples of `grid`, whose error is that of a uniform variable: `grid / sqrt(12)`."""
    return np.asarray((np.rint(slots.real / grid) + 1j * np.rint(slots.imag / grid)) * grid)


def _slot_error(toy: ToyCkks) -> float:
    """Standard deviation of the encryption's error in the real (or imaginary) part of a slot."""
    return float(toy.error * (toy.degree / 2) ** 0.5 / 2.0**toy.scale_bits)


def _prime(bits: int, order: int) -> int:
    """The greatest prime of so many bits that is 1 mod `order`."""
    candidate = ((1 << bits) - 1) // order * order + 1
    while candidate >= 1 << bits or not _is_prime(candidate):
        candidate -= order
    return candidate


def _is_prime(n: int) -> bool:
    """Miller and Rabin's test; its first twelve prime bases decide below 2^78 (Sorenson, Webster 2015)."""
    bases = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
    if n < 2 or any(n % p == 0 for p in bases):
        return n in bases
    twos = ((n - 1) & (1 - n)).bit_length() - 1
    odd = (n - 1) >> twos
    for base in bases:
        x = pow(base, odd, n)
        if x not in (1, n - 1) and all((x := x * x % n) != n - 1 for _ in range(twos - 1)):
            return False
    return True


def _root_of_unity(order: int, modulus: int) -> int:
    """An element of exactly this order, a power of two."""
    candidates = (pow(base, (modulus - 1) // order, modulus) for base in range(2, modulus))
    return next(root for root in candidates if pow(root, order // 2, modulus) == modulus - 1)
