"""Measures what one SEAL operation costs on this machine, at a program's own parameters and levels."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np

from secure_infer.backends.ckks.half import ClientHalf
from secure_infer.backends.ckks.seal import Handle, Ring, SealEngine, dump

_REPEATS = 7


class Stopwatch:
    """Times operations under keys that are made for this and thrown away.

    Args:
        half: Says which parameters.
    """

    def __init__(self, half: ClientHalf) -> None:
        self._half, self._ring = half, Ring(half.parameters)
        lib, context = self._ring.lib, self._ring.context
        generator = lib.KeyGenerator(context)
        self._engine = SealEngine(self._ring)
        self._encryptor = lib.Encryptor(context, generator.secret_key())
        if half.multiplies:
            self._engine.relinearization = lib.RelinKeys()
            generator.create_relin_keys(self._engine.relinearization)
        self._engine.galois = lib.GaloisKeys()
        generator.create_galois_keys(self._ring.galois_elements([1]), self._engine.galois)

    def seconds(self, name: str) -> float:
        """Median CPU seconds of an operation called as in `Program.counts`: `"operation@level"`."""
        operation, _, level = name.partition("@")
        times = []
        for _ in range(_REPEATS):
            act = self._prepared(operation, int(level))
            start = time.process_time()
            act()
            times.append(time.process_time() - start)
        return float(np.median(times))

    def _prepared(self, operation: str, level: int) -> Callable[[], Handle]:
        engine, half = self._engine, self._half
        scale = 2.0**20
        values = np.linspace(-1, 1, half.parameters.slots)
        plaintext = self._ring.encode(values, level, scale)
        c, other = self._ring.lib.Ciphertext(), self._ring.lib.Ciphertext()
        self._encryptor.encrypt_symmetric(plaintext, c)
        self._encryptor.encrypt_symmetric(plaintext, other)
        product = engine.multiply_plain(c, plaintext)
        sent = dump(self._encryptor.encrypt_symmetric(plaintext))
        acts: Mapping[str, Callable[[], Handle]] = {
            "inputs": lambda: self._ring.load_ciphertext(sent, level, scale),
            "rotations": lambda: engine.rotate(c, 1),
            "plain_multiplications": lambda: engine.add(product, engine.multiply_plain(c, plaintext)),
            "constant_multiplications": lambda: engine.add(
                product, engine.multiply_plain(c, engine.constant(0.5, level, scale))
            ),
            "multiplications": lambda: engine.multiply(c, c),
            "rescales": lambda: engine.rescale(product, scale**2 / half.parameters.primes[level]),
        }
        return acts[operation]
