"""A ciphertext as its residues: out of SEAL's format and back, and in a dense form for the wire.

SEAL stores a residue in 8 bytes and compresses what it saves, which takes longer than most of its arithmetic. Here a
residue takes as many bytes as its prime has, uncompressed:

    scale      8     of the plaintext inside, float64
    seed       64    that the second polynomial grows from; absent if that polynomial is there too
    residues   -     for each polynomial and prime: the low 4, then the next 2, then the last byte of all coefficients,
                     as far as the prime has them

All numbers are little endian. The level is not told: the program fixes it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from secure_infer.errors import missing_extra

Residues: TypeAlias = npt.NDArray[np.uint64]
"""Shape `(polynomials, primes, N)`."""

_HEAD = struct.Struct("<HBBBBHQ")
_CIPHERTEXT = struct.Struct("<4QBQQQdQ")
_WORDS = struct.Struct("<Q")
_MAGIC = 0xA15E
_BLAKE2XB = 1
_SEED = 64
_SCALE = struct.Struct("<d")
_FORMS = (("<u4", 4), ("<u2", 2), ("u1", 1))


def from_seal(data: bytes) -> tuple[Residues, bytes, float]:
    """Residues of a ciphertext that SEAL saved, the seed of its second polynomial (empty if that is there), scale."""
    body = memoryview(_opened(data))
    *_, degree, primes, scale, _ = _CIPHERTEXT.unpack_from(body)
    words = memoryview(_opened(body[_CIPHERTEXT.size :]))
    (count,) = _WORDS.unpack_from(words)
    end = _WORDS.size + 8 * count
    residues = np.frombuffer(words[_WORDS.size : end], "<u8").reshape(-1, primes, degree)
    seed = b"" if len(residues) > 1 else bytes(body[len(body) - _SEED :])
    return residues, seed, scale


def _opened(data: bytes | memoryview) -> bytes | memoryview:
    """What follows a header of SEAL's, without its compression."""
    _, size, _, _, mode, _, length = _HEAD.unpack_from(data)
    content = data[size:length]
    if mode == 0:
        return content
    if mode == 1:
        return zlib.decompress(content)
    return bytes(_zstandard().ZstdDecompressor().decompressobj().decompress(content))


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise missing_extra("ckks", "ckks", "zstandard") from error
    return zstandard


def to_seal(residues: Residues, seed: bytes, name: Sequence[int], scale: float, version: tuple[int, int]) -> bytes:
    """The bytes of a ciphertext that SEAL loads.

    Args:
        residues: All, or those of the first polynomial.
        seed: Of the second; empty if its residues are there.
        name: SEAL's name for the level.
        scale: Of the plaintext inside.
        version: SEAL's, major and minor.
    """
    _, primes, degree = residues.shape
    words = _headed(version, _WORDS.pack(residues.size), np.ascontiguousarray(residues, "<u8").tobytes())
    grown = _headed(version, bytes([_BLAKE2XB]), seed) if seed else b""
    return _headed(version, _CIPHERTEXT.pack(*name, 1, 2, degree, primes, scale, 1), words, grown)


def _headed(version: tuple[int, int], *parts: bytes) -> bytes:
    length = _HEAD.size + sum(map(len, parts))
    return b"".join((_HEAD.pack(_MAGIC, _HEAD.size, *version, 0, 0, length), *parts))


def pack(residues: Residues, seed: bytes, primes: Sequence[int], scale: float) -> bytes:
    """The dense form of a ciphertext."""
    rows = (row for polynomial in residues for row in zip(polynomial, primes, strict=True))
    planes = (plane for row, prime in rows for plane in _split(row, prime))
    return b"".join((_SCALE.pack(scale), seed, *planes))


def unpack(data: bytes, primes: Sequence[int], degree: int) -> tuple[Residues, bytes, float]:
    """Residues, seed and scale of the dense form.

    Raises:
        ValueError: It is of another length, or holds what is no residue.
    """
    size = degree * sum(map(_width, primes))
    seeded = len(data) == _SCALE.size + _SEED + size
    if not seeded and len(data) != _SCALE.size + 2 * size:
        raise ValueError("another length")
    (scale,) = _SCALE.unpack_from(data)
    at = _SCALE.size + _SEED * seeded
    residues = np.empty((1 if seeded else 2, len(primes), degree), np.uint64)
    for polynomial in residues:
        for row, prime in zip(polynomial, primes, strict=True):
            at = _join(row, data, at, prime)
    return residues, data[_SCALE.size : _SCALE.size + _SEED] if seeded else b"", scale


def _width(prime: int) -> int:
    return (prime.bit_length() + 7) // 8


def _planes(prime: int) -> Iterator[tuple[str, int, int]]:
    """Type, bytes and shift of each plane of a prime's residues."""
    width, done = _width(prime), 0
    for kind, size in _FORMS:
        while done + size <= width:
            yield kind, size, 8 * done
            done += size


def _split(row: npt.NDArray[np.uint64], prime: int) -> Iterator[bytes]:
    for kind, _, shift in _planes(prime):
        yield (row >> np.uint64(shift)).astype(kind).tobytes()


def _join(row: npt.NDArray[np.uint64], data: bytes, at: int, prime: int) -> int:
    """Fill a row from what begins `at`, and say where it ends."""
    for kind, size, shift in _planes(prime):
        plane = np.frombuffer(data, kind, len(row), at)
        at += size * len(row)
        if shift:
            row |= plane.astype(np.uint64) << np.uint64(shift)
        else:
            row[:] = plane
    if row.max() >= prime:
        raise ValueError("numbers that are no residues")
    return at
