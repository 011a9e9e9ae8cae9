"""The seam between a plan and what does its arithmetic: SEAL on ciphertexts, or numpy on vectors that stand for them.

Both engines run the same plan by the same code, so what the clear one shows about packing, levels and scales holds for
the encrypted run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeVar

from secure_infer.backends.ckks.lower import Reals
from secure_infer.backends.ckks.sums import Rows


@dataclass(frozen=True)
class Capabilities:
    """What an engine can do beyond the operations that all have.

    Attributes:
        hoisting: Rotations of one ciphertext share their work, so `rotate_many` costs less than as many rotations.
        bootstrap: Levels can be regained, so depth has no limit.
        gil: Operations hold the interpreter's lock, so only processes, and not threads, run at once.
        sums: Sums of many frozen ciphertexts times numbers are had at once: the engine is a `Summing` one.
    """

    hoisting: bool = False
    bootstrap: bool = False
    gil: bool = True
    sums: bool = False


C = TypeVar("C")
P = TypeVar("P")


class Engine(Protocol[C, P]):
    """Arithmetic on ciphertexts `C` and encoded plaintexts `P`.

    An operation may reuse its first argument's memory only where it says "in place". An engine refuses parameters that
    `parameters.verify` refuses, before it touches a key.
    """

    capabilities: ClassVar[Capabilities]

    def encode(self, values: Reals, level: int, scale: float) -> P | None:
        """Encode one vector of all slots, or one number for all of them; None if it rounds to zero."""
        ...

    def constant(self, value: float, level: int, scale: float) -> P:
        """Encode one number in all slots, quickly; it may be used until the next one is encoded."""
        ...

    def lower(self, c: C, level: int) -> C:
        """Drop primes, down to a level; the scale stays."""
        ...

    def rotate(self, c: C, steps: int) -> C:
        """Slot i of the result is slot `i + steps` of the argument, cyclically."""
        ...

    def rotate_many(self, c: C, steps: Sequence[int]) -> list[C]:
        """What `rotate` gives for each; zero steps give the argument itself."""
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


class Summing(Engine[C, P], Protocol[C, P]):
    """An engine whose ciphertexts can be frozen: laid open to sums, and to nothing else until they are thawed."""

    def freeze(self, c: C) -> C:
        """The same ciphertext, laid open; itself if it already is."""
        ...

    def thaw(self, c: C) -> C:
        """The same ciphertext for all other operations; itself if it is not frozen."""
        ...

    def is_frozen(self, c: C) -> bool:
        """Whether it is laid open."""
        ...

    def sums(self, sources: Sequence[C], groups: Sequence[Rows], level: int, scale: float) -> Iterator[C]:
        """A ciphertext for each row: frozen sources of this level or above, times whole numbers; not rescaled.

        Args:
            sources: What rows read.
            groups: The rows; their numbers count from zero.
            level: Of the results.
            scale: Of the results.
        """
        ...
