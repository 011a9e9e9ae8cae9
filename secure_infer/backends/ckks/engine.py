"""The seam between a plan and what does its arithmetic: SEAL on ciphertexts, or numpy on vectors that stand for them.

Both engines run the same plan by the same code, so what the clear one shows about packing, levels and scales holds for
the encrypted run.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

from secure_infer.backends.ckks.lower import Reals

C = TypeVar("C")
P = TypeVar("P")


class Engine(Protocol[C, P]):
    """Arithmetic on ciphertexts `C` and encoded plaintexts `P`.

    An operation may reuse its first argument's memory only where it says "in place".
    """

    def encode(self, values: Reals, level: int, scale: float) -> P | None:
        """Encode one vector of all slots; None if it rounds to zero."""
        ...

    def lower(self, c: C, level: int) -> C:
        """Drop primes, down to a level; the scale stays."""
        ...

    def rotate(self, c: C, steps: int) -> C:
        """Slot i of the result is slot `i + steps` of the argument, cyclically."""
        ...

    def multiply_plain(self, c: C, p: P) -> C:
        """Product with a plaintext; not rescaled."""
        ...

    def multiply(self, a: C, b: C) -> C:
        """Product of ciphertexts, relinearized; not rescaled."""
        ...

    def add(self, a: C, b: C) -> C:
        """Sum, in place of `a`."""
        ...

    def add_plain(self, c: C, p: P) -> C:
        """Sum with a plaintext, in place of `c`."""
        ...

    def rescale(self, c: C, scale: float) -> C:
        """Divide by the last prime, in place; `scale` is the exact scale that results."""
        ...
