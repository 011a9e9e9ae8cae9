"""Picks ring dimension and primes for a depth, inside our own table of secure sizes; refuses at compile time.

The chain is `q0, q1 ... qD` and the special prime. A ciphertext of level `l` holds `q0 .. ql`; a rescale drops `ql`.
`q0` holds the output: its scale, the last plaintext's scale (which is never divided out) and headroom for outputs
beyond their calibrated range. The special prime is the largest, since the noise of a key switch grows with
`q0 / special`.

`q1 .. qD` have `scale_bits` bits on average. In a network of squares, odd levels are dropped by squares and even ones
by matrices. A matrix gets by with a smaller prime, as only the rounding of its weights depends on it, so four bits go
from even levels to odd ones: a square then reads values of a scale two bits larger, which is where most noise arises.
Two more go from the first matrix to the last square, which makes its scale smaller and leaves more of `q0` to the last
weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from secure_infer.errors import ParametersError, Problem, UsageError

MAX_BITS: Mapping[int, Mapping[int, int]] = {
    128: {4096: 109, 8192: 218, 16384: 438, 32768: 881},
    192: {4096: 75, 8192: 152, 16384: 305, 32768: 611},
    256: {4096: 58, 8192: 118, 16384: 237, 32768: 476},
}
"""Most bits of all primes together, by classical security and ring dimension, for a ternary secret.

Source: Homomorphic Encryption Security Standard, HomomorphicEncryption.org, 2018, table 1.
"""
HEADROOM_BITS = 3
"""An output may exceed its calibrated range by this power of two before it wraps."""
SCALE_BITS = range(26, 32)
"""Scales that are chosen automatically; below, noise takes over."""
_LARGEST_PRIME = 60
_FIRST_PRIME = 58
_LEAST_LAST_SCALE = 12
_GAP = 2
_SHIFTED = 4
_SHIFTED_AT_ENDS = 2


@dataclass(frozen=True)
class Parameters:
    """A ring and a chain of primes.

    Attributes:
        poly_modulus_degree: Ring dimension N; there are N / 2 slots.
        primes: `q0 .. qD`.
        special: The special prime.
        scale_bits: Bits of the scale of inputs and of what polynomials make.
        affine_bits: Bits of the scale of what polynomials read.
        security: Bits of security that the table gives.
    """

    poly_modulus_degree: int
    primes: tuple[int, ...]
    special: int
    scale_bits: int
    affine_bits: int
    security: int

    @property
    def slots(self) -> int:
        """Reals in one ciphertext."""
        return self.poly_modulus_degree // 2

    @property
    def depth(self) -> int:
        """The level of a fresh ciphertext."""
        return len(self.primes) - 1

    @property
    def total_bits(self) -> int:
        """Bits of the product of all primes, rounded up."""
        return _product(self.primes, self.special).bit_length()

    @property
    def scale(self) -> float:
        """Scale of inputs and of what polynomials make."""
        return 2.0**self.scale_bits

    @property
    def affine_scale(self) -> float:
        """Scale of what polynomials read."""
        return 2.0**self.affine_bits

    @property
    def output_scale(self) -> float:
        """Scale of the result: all of the first prime but a sign and the headroom."""
        return 2.0 ** (self.primes[0].bit_length() - 1 - HEADROOM_BITS)


def choose(depth: int, squares: bool, options: Mapping[str, Any], savings: Sequence[Problem] = ()) -> Parameters:
    """The smallest secure ring that holds `depth` levels, with the largest scale that fits.

    Args:
        depth: Rescales on the longest path.
        squares: Whether all polynomials are plain squares.
        options: `poly_modulus_degree`, `scale_bits` and `security`, all optional.
        savings: Where the network could save a level, for the error.

    Raises:
        UsageError: An option of a wrong type or outside its range.
        ParametersError: Nothing fits.
    """
    _check(options)
    security = options.get("security", 128)
    degrees = [options["poly_modulus_degree"]] if "poly_modulus_degree" in options else list(MAX_BITS[security])
    scales = [options["scale_bits"]] if "scale_bits" in options else list(SCALE_BITS)[::-1]
    for degree in degrees:
        for scale_bits in scales:
            sizes = _sizes(depth, squares, scale_bits, MAX_BITS[security][degree], exact="scale_bits" in options)
            *data, special = primes(degree, sizes) or [0]
            if special:
                affine_bits = scale_bits + (_SHIFTED // 2 if squares else 0)
                return Parameters(degree, tuple(data), special, scale_bits, affine_bits, security)
    degree, limit = degrees[-1], MAX_BITS[security][degrees[-1]]
    raise ParametersError(
        f"No {security}-bit secure parameters hold {depth} levels.",
        [
            Problem(
                "depth",
                f"The network spends {depth} levels of at least {min(scales)} bits; N = {degree} allows "
                f"{limit} bits in all.",
                "make the network shallower, lower scale_bits, or raise poly_modulus_degree.",
            ),
            *savings,
        ],
    )


def _sizes(depth: int, squares: bool, scale_bits: int, limit: int, exact: bool) -> list[int]:
    """Bits of `q0, q1 .. qD, special`; empty if the last plaintext's scale would be too small."""
    rest = limit - depth * scale_bits
    first = min(_FIRST_PRIME, (rest - _GAP) // 2)
    special = min(_LARGEST_PRIME, rest - first)
    last_scale = first - 1 - scale_bits - HEADROOM_BITS
    if last_scale < (_LEAST_LAST_SCALE if exact else scale_bits - 9):
        return []
    levels = [scale_bits] * depth
    if squares and depth and depth % 2 == 0:
        levels = [scale_bits + (-_SHIFTED if level % 2 else _SHIFTED) for level in range(depth)]
        levels[0] += _SHIFTED_AT_ENDS
        levels[-1] -= _SHIFTED_AT_ENDS
    return [first, *levels, special]


def _check(options: Mapping[str, Any]) -> None:
    security = options.get("security", 128)
    allowed: dict[str, tuple[int, ...]] = {
        "security": tuple(MAX_BITS),
        "poly_modulus_degree": tuple(MAX_BITS[128]),
        "scale_bits": tuple(range(16, 46)),
    }
    problems = [
        Problem(
            name,
            f"Expected {name} in {{{', '.join(map(str, values))}}}, got {options[name]!r}.",
            "leave it out to have it chosen." if name != "security" else "leave it out for 128 bits.",
        )
        for name, values in allowed.items()
        if name in options and (isinstance(options[name], bool) or options[name] not in values)
    ]
    if problems:
        raise UsageError(f"These options do not fit CKKS (security {security!r}).", problems)


def verify(parameters: Parameters) -> None:
    """Check primes that arrived from elsewhere against the table.

    Raises:
        ParametersError: They are insecure or malformed.
    """
    degree, security = parameters.poly_modulus_degree, parameters.security
    limit = MAX_BITS.get(security, {}).get(degree, 0)
    chain = (*parameters.primes, parameters.special)
    problems = []
    if parameters.total_bits > limit:
        problems.append(
            Problem(
                "parameters",
                f"N = {degree} allows {limit} bits at {security}-bit security, these have {parameters.total_bits}.",
                "compile the model again.",
            )
        )
    elif len(set(chain)) != len(chain) or any(p % (2 * degree) != 1 or not is_prime(p) for p in chain):
        problems.append(
            Problem(
                "parameters",
                "The moduli are not distinct primes congruent to 1 modulo 2 N.",
                "compile the model again.",
            )
        )
    if problems:
        raise ParametersError("The parameters are not secure.", problems)


def primes(degree: int, bits: Sequence[int]) -> list[int]:
    """Distinct primes of the given sizes, each congruent to 1 modulo 2 * degree, the largest ones first.

    Returns:
        An empty list if there are not enough.
    """
    found: list[int] = []
    for size in bits:
        candidate = ((1 << size) - 1) // (2 * degree) * (2 * degree) + 1
        while candidate in found or candidate >> size or not is_prime(candidate):
            candidate -= 2 * degree
            if candidate.bit_length() < size:
                return []
        found.append(candidate)
    return found


def is_prime(n: int) -> bool:
    """Whether an integer below 2**64 is prime: Miller-Rabin with the first twelve primes, which is exact there."""
    witnesses = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
    if n < 2 or any(n % p == 0 for p in witnesses):
        return n in witnesses
    odd, twos = n - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    return all(_passes(n, witness, odd, twos) for witness in witnesses)


def _passes(n: int, witness: int, odd: int, twos: int) -> bool:
    x = pow(witness, odd, n)
    if x in (1, n - 1):
        return True
    for _ in range(twos - 1):
        x = x * x % n
        if x == n - 1:
            return True
    return False


def _product(data: Sequence[int], special: int) -> int:
    result = special
    for prime in data:
        result *= prime
    return result
