"""Measures what one SEAL operation costs on this machine, at a program's own parameters and levels."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np

from secure_infer.backends.ckks.parameters import Parameters
from secure_infer.backends.ckks.seal import Handle, Ring, SealEngine

_REPEATS = 7


class Stopwatch:
    """Times operations under keys that are made for this and thrown away.

    Args:
        parameters: Ring and primes.
        multiplies: Whether products of ciphertexts are among the operations.
        expanded: Whether ciphertexts are sent whole.
    """

    def __init__(self, parameters: Parameters, multiplies: bool, expanded: bool) -> None:
        self._parameters, self._ring, self._expanded = parameters, Ring(parameters), expanded
        lib, context = self._ring.lib, self._ring.context
        generator = lib.KeyGenerator(context)
        self._engine = SealEngine(self._ring)
        self._encryptor = lib.Encryptor(context, generator.secret_key())
        if multiplies:
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
        engine, parameters = self._engine, self._parameters
        scale = 2.0**20
        values = np.linspace(-1, 1, parameters.slots)
        plaintext = self._ring.encode(values, level, scale)
        c, other = self._ring.lib.Ciphertext(), self._ring.lib.Ciphertext()
        self._encryptor.encrypt_symmetric(plaintext, c)
        self._encryptor.encrypt_symmetric(plaintext, other)
        product = engine.multiply_plain(c, plaintext)
        sent = self._ring.encrypt(self._encryptor, plaintext, level, scale, self._expanded)
        acts: Mapping[str, Callable[[], Handle]] = {
            "inputs": lambda: self._ring.received(sent, level, scale),
            "rotations": lambda: engine.rotate(c, 1),
            "plain_multiplications": lambda: engine.add(product, engine.multiply_plain(c, plaintext)),
            "constant_multiplications": lambda: engine.add(
                product, engine.multiply_plain(c, engine.constant(0.5, level, scale))
            ),
            "multiplications": lambda: engine.multiply(c, c),
            "rescales": lambda: engine.rescale(product, scale**2 / parameters.primes[level]),
        }
        return acts[operation]


def measured(parameters: Parameters, expanded: bool) -> dict[str, float]:
    """Seconds of what the cost model weighs against each other, at every level: `Costs.measured`."""
    stopwatch = Stopwatch(parameters, multiplies=False, expanded=expanded)
    operations = ("rotations", "plain_multiplications", "inputs")
    names = [f"{operation}@{level}" for operation in operations for level in range(parameters.depth + 1)]
    return {name: stopwatch.seconds(name) for name in names}
