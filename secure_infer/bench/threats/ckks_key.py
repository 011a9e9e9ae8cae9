"""What a CKKS client's decryptions give away of its secret key: the raw one, and the one that `predict` releases.

Whoever attacks is the server. It holds its own reply `(c0, c1)` and is told something of the decryption. If that is
the polynomial to the last bit, `(m - c0) / c1` is the secret, and the proof is that the client's *input message* can
then be read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from secure_infer import backends
from secure_infer.attacks.key_recovery import Exact, recover
from secure_infer.attacks.key_recovery import Ring as KeyRing
from secure_infer.backends.ckks.client import INPUT_MESSAGE, OUTPUT_MESSAGE, SECRET
from secure_infer.backends.ckks.half import ClientHalf
from secure_infer.backends.ckks.seal import Handle, Ring
from secure_infer.compiler import Compiled
from secure_infer.wire import frame

RELEASES = ("raw", "slots", "rounded")
"""What is told: the decrypted polynomial; all its complex slots in float64; or these on the client's grid, of which
`Client.predict` returns the real parts of those that hold an output."""


@dataclass(frozen=True)
class Leak:
    """What one release gave.

    Attributes:
        release: One of `RELEASES`.
        key: Whether the secret key was found.
        input_error: Root mean square error of the client's input, as read from its message with that key, in units of
            half the input's range; None without the key.
    """

    release: str
    key: bool
    input_error: float | None


@dataclass(frozen=True, eq=False)
class Request:
    """One request under fresh keys, and what the server holds of it.

    Attributes:
        ring, half: The client's parameters.
        secret: Its key, to hold candidates against.
        sent, got: The ciphertexts of the input and of the reply.
        blocks: The input as the client placed it, in units of half its range.
    """

    ring: Ring
    half: ClientHalf
    secret: Handle
    sent: Handle
    got: Handle
    blocks: npt.NDArray[np.float64]

    @classmethod
    def make(cls, compiled: Compiled, x: npt.NDArray[Any]) -> Request:
        """Run one request; `x` is one input as reals, shape `(1, *input shape)`."""
        backend = backends.load("ckks")
        role, (server,) = backend.client(compiled.program.client), backend.servers(compiled.program.servers)
        units = compiled.graph.quantize(x)
        try:
            keys = role.keygen()
            (message,) = role.encrypt(units, keys)
            reply = server.run(message, keys.evaluation)
        finally:
            server.close()
        half = ClientHalf.from_bytes(compiled.program.client)
        ring = Ring(half.parameters)
        secret = ring.load("SecretKey", frame.unpack(keys.secret, SECRET).parts[0])
        sent = ring.received(frame.unpack(message, INPUT_MESSAGE).parts[0], half.input.level, half.input.scale)
        got = ring.load("Ciphertext", frame.unpack(reply, OUTPUT_MESSAGE).parts[0])
        placed = next(iter(half.arranged((units.reshape(1, -1) - half.middle) / half.half)))
        return cls(ring, half, secret, sent, got, np.asarray(placed))

    def leak(self, release: str) -> Leak:
        """Attack one kind of release."""
        n, prime = self.half.parameters.poly_modulus_degree, self.half.parameters.primes[0]
        candidate = recover(_data(self.got, 0, n), _data(self.got, n, n), _data(self._told(release), 0, n), prime)
        found = candidate is not None and bool((candidate == _data(self.secret.data(), 0, n)).all())
        return Leak(release, found, self._input_error(candidate) if candidate is not None and found else None)

    def _told(self, release: str) -> Handle:
        """The plaintext that a server makes of what it is told."""
        plaintext = self.ring.lib.Plaintext()
        self.ring.lib.Decryptor(self.ring.context, self.secret).decrypt(self.got, plaintext)
        if release == "raw":
            return plaintext
        slots = np.asarray(self.ring.encoder.decode_complex(plaintext))
        if release == "rounded" and self.half.grid:
            slots = (np.rint(slots.real / self.half.grid) + 1j * np.rint(slots.imag / self.half.grid)) * self.half.grid
        encoded = self.ring.lib.Plaintext()
        self.ring.encoder.encode(slots.tolist(), self.ring.id_of(self.half.output.level), self.got.scale, encoded)
        return encoded

    def _input_error(self, key: Exact) -> float:
        """How well the input message is read with a key."""
        n, prime = self.half.parameters.poly_modulus_degree, self.half.parameters.primes[0]
        second = n * (self.half.input.level + 1)  # the first polynomial has a row for each prime
        values = (_data(self.sent, 0, n) + _data(self.sent, second, n) * key) % prime
        slots = _slots(_inverse_transform(values, prime), self.sent.scale)[: len(self.blocks)]
        return float(np.sqrt(np.mean((slots - self.blocks) ** 2)))


def _data(handle: Handle, start: int, count: int) -> Exact:
    """Residues of a ciphertext, plaintext or key as SEAL keeps them: values in bit-reversed order."""
    residues = handle.dyn_array()
    return np.array([residues.at(start + place) for place in range(count)], dtype=object)


def _inverse_transform(values: Exact, prime: int) -> Exact:
    """Coefficients in `(-q/2, q/2]` from SEAL's values at odd powers of its least 2N-th root, in bit-reversed order."""
    n = len(values)
    ring = KeyRing(n, prime)
    root = min(ring.roots())
    order = np.array([int(format(place, f"0{n.bit_length() - 1}b")[::-1], 2) for place in range(n)])
    back = pow(root, -1, prime)
    powers = np.array(_powers(back * back % prime, n, prime), dtype=object)
    twist = np.array(_powers(back, n, prime), dtype=object) * pow(n, -1, prime)
    return ring.center(_fourier(values[order], powers, prime) * twist)


def _fourier(values: Exact, powers: Exact, prime: int) -> Exact:
    """Sums `values[i] * powers[i j]`, by halves (Cooley, Tukey 1965)."""
    if len(values) == 1:
        return values
    even, odd = (_fourier(values[start::2], powers[::2], prime) for start in (0, 1))
    odd = odd * powers[: len(odd)] % prime
    return np.asarray(np.concatenate([even + odd, even - odd]) % prime)


def _powers(base: int, count: int, prime: int) -> list[int]:
    found = [1]
    for _ in range(count - 1):
        found.append(found[-1] * base % prime)
    return found


def _slots(coefficients: Exact, scale: float) -> npt.NDArray[np.float64]:
    """Real parts of the slots, which are values at powers of three of the complex root."""
    n = len(coefficients)
    twisted = coefficients.astype(np.float64) * np.exp(1j * np.pi * np.arange(n) / n)
    at_odd = np.fft.ifft(twisted) * n
    places = np.array([(pow(3, slot, 2 * n) - 1) // 2 for slot in range(n // 2)])
    return np.asarray(at_odd[places].real / scale)
