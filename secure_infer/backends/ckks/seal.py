"""The one file that knows the crypto library: SEAL, by TenSEAL's `sealapi`. Keys, ciphertexts, and the SEAL engine.

Serialized keys and ciphertexts come from SEAL's own format, which its loader validates against the parameters. The
library reads and writes files only; they live for a moment in memory, without a name, or in a private directory.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np

from secure_infer.backends.ckks import residues
from secure_infer.backends.ckks.engine import Capabilities
from secure_infer.backends.ckks.lower import Reals
from secure_infer.backends.ckks.parameters import Parameters, verify
from secure_infer.backends.ckks.sums import Rows, weighted_sums
from secure_infer.errors import ParametersError, Problem, UsageError, missing_extra

Handle: TypeAlias = Any
"""An object of the library, which has no types."""

_EXACT = 1e-9


class Unreadable(Exception):
    """Bytes that SEAL can't load as what they should be."""


def library() -> Any:
    """The module `tenseal.sealapi`.

    Raises:
        MissingExtra: It is not installed.
    """
    try:
        from tenseal import sealapi
    except ImportError as error:
        raise missing_extra("ckks", "ckks", "tenseal") from error
    return sealapi


class Ring:
    """A SEAL context with its encoder: what both sides have, without any key.

    Args:
        parameters: Checked against our table, and then by SEAL against its own.
    """

    def __init__(self, parameters: Parameters) -> None:
        verify(parameters)
        self.parameters, self.lib = parameters, library()
        lib = self.lib
        raw = lib.EncryptionParameters(lib.SCHEME_TYPE.CKKS)
        raw.set_poly_modulus_degree(parameters.poly_modulus_degree)
        raw.set_coeff_modulus([lib.Modulus(prime) for prime in (*parameters.primes, parameters.special)])
        self.context = lib.SEALContext(raw, True, lib.SEC_LEVEL_TYPE.TC128)
        if not self.context.parameters_set():
            raise ParametersError(
                "SEAL refuses the parameters.",
                [Problem("parameters", self.context.parameters_error_message(), "compile the model again.")],
            )
        self.encoder = lib.CKKSEncoder(self.context)
        self._ids = list(self._levels())[::-1]
        header = lib.Serialization.SEALHeader()
        self._version = header.version_major, header.version_minor

    def _levels(self) -> Iterator[Any]:
        data = self.context.first_context_data()
        while data is not None:
            yield data.parms_id()
            data = data.next_context_data()

    def id_of(self, level: int) -> Any:
        """SEAL's name for a level."""
        return self._ids[level]

    def galois_elements(self, rotations: Iterable[int]) -> list[int]:
        """Galois elements `3**k mod 2 N` of rotations to the left by k."""
        double = 2 * self.parameters.poly_modulus_degree
        return sorted(pow(3, k, double) for k in rotations)

    def encode(self, values: Reals, level: int, scale: float) -> Handle:
        """A plaintext of all slots, from one number for each or one for all."""
        plaintext = self.lib.Plaintext()
        self.encoder.encode(float(values[0]) if values.size == 1 else values, self._ids[level], scale, plaintext)
        return plaintext

    def load(self, kind: str, data: bytes) -> Handle:
        """An object of the class called `kind` from its bytes.

        Raises:
            Unreadable: They are not such an object under these parameters.
        """
        handle = getattr(self.lib, kind)()
        with _private_file(lambda path: path.write_bytes(data)) as path:
            try:
                handle.load(self.context, str(path))
            except (RuntimeError, ValueError, IndexError, MemoryError) as error:
                raise Unreadable(f"not a {kind} of these parameters ({error})") from error
        return handle

    def encrypt(self, encryptor: Handle, plaintext: Handle, level: int, scale: float, expanded: bool) -> bytes:
        """A fresh ciphertext as it is sent: half of it and a seed for the rest, or the whole."""
        if expanded:
            whole = self.lib.Ciphertext()
            encryptor.encrypt_symmetric(plaintext, whole)
            numbers, seed, _ = residues.from_seal(dump(whole))
        else:
            numbers, seed, _ = residues.from_seal(dump(encryptor.encrypt_symmetric(plaintext)))
        return residues.pack(numbers, seed, self.parameters.primes[: level + 1], scale)

    def received(self, data: bytes, level: int, scale: float, frozen: bool = False) -> Handle:
        """The ciphertext that `encrypt` wrote; left outside SEAL if that is wanted and it was sent whole.

        Raises:
            Unreadable: It is none, or one of another level or scale.
        """
        parameters = self.parameters
        try:
            numbers, seed, told = residues.unpack(data, parameters.primes[: level + 1], parameters.poly_modulus_degree)
        except ValueError as error:
            raise Unreadable(f"not a ciphertext of these parameters and this level ({error})") from error
        if told != scale:
            raise Unreadable(f"a ciphertext of scale {told:.6g} where {scale:.6g} belongs")
        if not seed and not numbers[1].any():
            raise Unreadable("a ciphertext that hides nothing")
        if not seed and frozen:
            return Frozen(numbers, scale)
        return self.load_ciphertext(self.saved(Frozen(numbers, scale), seed), level, scale)

    def saved(self, c: Frozen, seed: bytes = b"") -> bytes:
        """A frozen ciphertext in SEAL's format; the seed stands for what its residues lack."""
        return residues.to_seal(c.numbers, seed, self._ids[c.numbers.shape[1] - 1], c.scale, self._version)

    def load_ciphertext(self, data: bytes, level: int, scale: float) -> Handle:
        """A ciphertext that must have this level and scale.

        Raises:
            Unreadable: It is none, or another one.
        """
        c = self.load("Ciphertext", data)
        if c.size() != 2 or not c.is_ntt_form() or c.is_transparent():
            raise Unreadable("a ciphertext of a wrong form")
        if c.parms_id() != self._ids[level]:
            raise Unreadable("a ciphertext of a wrong level")
        if abs(c.scale / scale - 1) > _EXACT:
            raise Unreadable(f"a ciphertext of scale {c.scale:.6g} where {scale:.6g} belongs")
        return c


def dump(handle: Handle) -> bytes:
    """The bytes of an object, or of a seed-compressed one that has not been expanded."""
    with _private_file(lambda path: handle.save(str(path))) as path:
        return path.read_bytes()


@contextmanager
def _private_file(fill: Callable[[Path], object]) -> Iterator[Path]:
    """A file that `fill` has written, which nobody else can open and which is gone afterwards.

    Raises:
        UsageError: There is no room for it, neither in memory (containers may grant little) nor in the usual place.
    """
    with ExitStack() as stack:
        for place in (_nameless, _in_folder):
            with suppress(RuntimeError, OSError, AttributeError):  # AttributeError: no such call on this system
                path = stack.enter_context(place())
                fill(path)
                break
        else:
            raise UsageError(
                "A key or ciphertext can't be written.",
                [Problem("temporary folder", "It is full, or can't be written to.", "free space, or set TMPDIR.")],
            )
        yield path


@contextmanager
def _nameless() -> Iterator[Path]:
    """A file in memory that no folder lists: it is gone even when the process is killed."""
    descriptor = os.memfd_create("ckks")
    try:
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


@contextmanager
def _in_folder() -> Iterator[Path]:
    """A file in a temporary directory of mode 0700."""
    with tempfile.TemporaryDirectory(prefix="ckks-") as folder:
        yield Path(folder) / "object"


@dataclass(frozen=True, eq=False)
class Frozen:
    """A ciphertext outside SEAL: its residues, of shape `(2, level + 1, N)`, and its scale."""

    numbers: residues.Residues
    scale: float


class SealEngine:
    """Arithmetic on SEAL ciphertexts; `relinearization` and `galois` are set to a client's keys before a run."""

    capabilities: ClassVar[Capabilities] = Capabilities(sums=True)

    def __init__(self, ring: Ring) -> None:
        self._ring, self._evaluator = ring, ring.lib.Evaluator(ring.context)
        self._new = ring.lib.Ciphertext
        self._scratch = ring.lib.Plaintext()
        self._double = 2 * ring.parameters.poly_modulus_degree
        self.relinearization: Handle = None
        self.galois: Handle = None

    def encode(self, values: Reals, level: int, scale: float) -> Handle | None:
        """Encode one vector of all slots, or one number for all of them; None if it rounds to zero."""
        plaintext = self._ring.encode(values, level, scale)
        return None if plaintext.is_zero() else plaintext

    def constant(self, value: float, level: int, scale: float) -> Handle:
        """Encode one number in all slots, into the same plaintext every time."""
        self._ring.encoder.encode(value, self._ring.id_of(level), scale, self._scratch)
        return self._scratch

    def lower(self, c: Handle, level: int) -> Handle:
        """Drop primes."""
        target = self._ring.id_of(level)
        if c.parms_id() == target:
            return c
        lowered = self._new()
        self._evaluator.mod_switch_to(c, target, lowered)
        return lowered

    def dump(self, c: Handle) -> bytes:
        """A ciphertext's bytes, in SEAL's format."""
        return self._ring.saved(c) if isinstance(c, Frozen) else dump(c)

    def load(self, data: bytes) -> Handle:
        """The ciphertext that `dump` wrote, not frozen."""
        return self._ring.load("Ciphertext", data)

    def load_frozen(self, data: bytes) -> Handle:
        """The ciphertext that `dump` wrote, frozen."""
        return Frozen(*residues.from_seal(data)[::2])

    def is_frozen(self, c: Handle) -> bool:
        """Whether it is laid open."""
        return isinstance(c, Frozen)

    def freeze(self, c: Handle) -> Handle:
        """The same ciphertext, laid open; itself if it already is."""
        return c if isinstance(c, Frozen) else self.load_frozen(dump(c))

    def thaw(self, c: Handle) -> Handle:
        """The same ciphertext for all other operations; itself if it is not frozen."""
        return self._ring.load("Ciphertext", self._ring.saved(c)) if isinstance(c, Frozen) else c

    def sums(self, sources: Sequence[Handle], groups: Sequence[Rows], level: int, scale: float) -> Iterator[Handle]:
        """A ciphertext for each row: frozen sources of this level or above, times whole numbers; not rescaled."""
        primes = self._ring.parameters.primes[: level + 1]
        for numbers in weighted_sums([c.numbers for c in sources], groups, primes):
            yield self.thaw(Frozen(numbers, scale))

    def rotate(self, c: Handle, steps: int) -> Handle:
        """Rotate left."""
        rotated = self._new()
        self._evaluator.apply_galois(c, pow(3, steps, self._double), self.galois, rotated)
        return rotated

    def rotate_many(self, c: Handle, steps: Sequence[int]) -> list[Handle]:
        """Rotate left by each; SEAL has no hoisting."""
        return [self.rotate(c, k) if k else c for k in steps]

    def multiply_plain(self, c: Handle, p: Handle) -> Handle:
        """Product with a plaintext."""
        product = self._new()
        self._evaluator.multiply_plain(c, p, product)
        return product

    def multiply(self, a: Handle, b: Handle) -> Handle:
        """Product of ciphertexts, relinearized."""
        product = self._new()
        if a is b:
            self._evaluator.square(a, product)
        else:
            self._evaluator.multiply(a, b, product)
        self._evaluator.relinearize_inplace(product, self.relinearization)
        return product

    def add(self, a: Handle, b: Handle) -> Handle:
        """Sum, in place of `a`."""
        self._evaluator.add_inplace(a, b)
        return a

    def add_plain(self, c: Handle, p: Handle) -> Handle:
        """Sum with a plaintext, in place of `c`."""
        self._evaluator.add_plain_inplace(c, p)
        return c

    def rescale(self, c: Handle, scale: float) -> Handle:
        """Divide by the last prime, in place, and take the planned scale for the one SEAL's rounding gives."""
        self._evaluator.rescale_to_next_inplace(c)
        if abs(c.scale / scale - 1) > _EXACT:
            raise Unreadable(f"a ciphertext of scale {c.scale:.6g} where {scale:.6g} belongs")
        c.scale = scale
        return c


def decode(ring: Ring, plaintext: Handle) -> Reals:
    """All slots of a plaintext."""
    return np.asarray(ring.encoder.decode_double(plaintext), dtype=np.float64)
