"""AES-256 in counter mode: the random numbers of parties and dealer, which two holders of a key draw alike."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from secure_infer.graph.types import Integers

KEY_BYTES = 32
_BLOCK = 16


def fresh_key() -> bytes:
    """A 256-bit key from the operating system."""
    return os.urandom(KEY_BYTES)


class Stream:
    """The key stream of one key; two holders of the key who draw the same sizes draw the same values."""

    def __init__(self, key: bytes) -> None:
        # A key serves one stream, so the counter may start at zero.
        self._encryptor = Cipher(algorithms.AES256(key), modes.CTR(bytes(_BLOCK))).encryptor()

    def words(self, size: Sequence[int]) -> Integers:
        """Uniform elements of Z_2^64, as int64 of shape `size`."""
        count = math.prod(size)
        return np.frombuffer(self._draw(8 * count), dtype=np.int64, count=count).reshape(tuple(size))

    def elements(self, size: Sequence[int], kind: npt.DTypeLike) -> npt.NDArray[Any]:
        """Uniform elements of the ring of an unsigned integer type, of shape `size`."""
        dtype = np.dtype(kind)
        count = math.prod(size)
        return np.frombuffer(self._draw(dtype.itemsize * count), dtype=dtype, count=count).reshape(tuple(size))

    def bits(self, size: Sequence[int]) -> npt.NDArray[np.uint8]:
        """Uniform bits, as uint8 of shape `size`."""
        count = math.prod(size)
        packed = np.frombuffer(self._draw((count + 7) // 8), dtype=np.uint8)
        return np.unpackbits(packed, count=count).reshape(tuple(size))

    def _draw(self, count: int) -> bytearray:
        buffer = bytearray(count + _BLOCK)  # `update_into` wants room for one block more
        self._encryptor.update_into(bytes(count), buffer)
        return buffer
