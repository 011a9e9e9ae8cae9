"""The client: makes keys, encrypts with the secret key (so that a seed can stand for half), decrypts and rounds."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from secure_infer.backends.base import Keys
from secure_infer.backends.ckks.half import ClientHalf
from secure_infer.backends.ckks.lower import Reals
from secure_infer.backends.ckks.parameters import HEADROOM_BITS
from secure_infer.backends.ckks.seal import Handle, Ring, Unreadable, decode, dump
from secure_infer.errors import BundleError, DecryptionError, InvalidInput, KeyMismatch, Problem
from secure_infer.graph.types import Integers
from secure_infer.wire import frame

SECRET, EVALUATION, INPUT_MESSAGE, OUTPUT_MESSAGE = "ckks-secret", "ckks-evaluation", "ckks-input", "ckks-output"

_SPREAD = 64.0
"""No slot exceeds this. Slots without an output hold parts of sums, often larger than the sum; but under a wrong key,
or after a sum wrapped around the first prime, slots spread over hundreds."""


class CkksClient:
    """The client role for one program.

    Args:
        half: The client's half.
    """

    def __init__(self, half: ClientHalf) -> None:
        self._half, self._ring = half, Ring(half.parameters)

    def keygen(self) -> Keys:
        """A secret key, and evaluation keys for exactly the program's rotations, from SEAL's OS-seeded generator."""
        half, lib = self._half, self._ring.lib
        generator = lib.KeyGenerator(self._ring.context)
        meta = {"model": half.model, "key": os.urandom(16).hex()}
        relinearization = dump(generator.create_relin_keys()) if half.multiplies else b""
        elements = self._ring.galois_elements(half.rotations)
        galois = dump(generator.create_galois_keys(elements)) if elements else b""
        secret = frame.pack(SECRET, [dump(generator.secret_key())], meta)
        return Keys(secret, frame.pack(EVALUATION, [relinearization, galois], meta))

    def encrypt(self, x: Integers, keys: Keys) -> tuple[bytes, ...]:
        """One message with a ciphertext (or several, for a long input) for each sample."""
        half = self._half
        values = self._checked(x)
        key, secret = self._secret(keys)
        encryptor = self._ring.lib.Encryptor(self._ring.context, secret)
        parts = []
        for slots in half.arranged(values):
            level, scale = half.input.level, half.input.scale
            plaintext = self._ring.encode(slots, level, scale)
            parts.append(self._ring.encrypt(encryptor, plaintext, level, scale, half.expanded))
        return (frame.pack(INPUT_MESSAGE, parts, {"model": half.model, "key": key, "count": len(values)}),)

    def decrypt(self, replies: Sequence[bytes], keys: Keys) -> Reals:
        """Outputs in units of their scale, shape `(n, *output shape)`, rounded to a grid well above the noise.

        If the program was compiled with `flooding_bits`, noise from the operating system is added first.

        Raises:
            DecryptionError: A reply that does not decrypt under these keys, or whose values left the program's range.
        """
        half = self._half
        key, secret = self._secret(keys)
        parts, count = self._reply(replies, key)
        decryptor = self._ring.lib.Decryptor(self._ring.context, secret)
        blocks = [self._decrypt(decryptor, part) for part in parts]
        values = _within(half.outputs(np.reshape(blocks, (-1, half.parameters.slots)), count), 1 << HEADROOM_BITS)
        if half.flooding:
            values = values + half.flooding * _uniform(values.shape)
        if half.grid:
            values = np.rint(values / half.grid) * half.grid
        return np.asarray(values * half.output_range).reshape((-1, *half.output_shape))

    def _checked(self, x: Integers) -> Reals:
        half, x = self._half, np.asarray(x)
        problems = []
        if x.dtype.kind not in "iu":
            problems.append(Problem("input", f"Expected integers, got {x.dtype}.", "quantize the input first."))
        if x.shape[1:] != half.shape or not x.ndim:
            problems.append(
                Problem(
                    "input",
                    f"Expected shape (n, {', '.join(map(str, half.shape))}), got {x.shape}.",
                    "pass a batch of inputs of the model's shape.",
                )
            )
        elif not problems and x.size and (x.min() < half.low or x.max() > half.high):
            problems.append(Problem("input", f"Values lie outside [{half.low}, {half.high}].", "quantize the input."))
        if problems:
            raise InvalidInput("The input can't be encrypted.", problems)
        return np.asarray((x.reshape(len(x), int(np.prod(half.shape))) - half.middle) / half.half)

    def _secret(self, keys: Keys) -> tuple[str, Handle]:
        """The key's name and the secret key."""
        opened = frame.unpack(keys.secret, SECRET)
        if opened.meta.get("model") != self._half.model:
            raise other_model("secret key")
        try:
            (data,) = opened.parts
            return str(opened.meta.get("key")), self._ring.load("SecretKey", data)
        except (Unreadable, ValueError) as error:
            raise BundleError(
                "The secret key can't be read.", [Problem("secret key", f"It is damaged: {error}.", "make new keys.")]
            ) from error

    def _reply(self, replies: Sequence[bytes], key: str) -> tuple[tuple[bytes, ...], int]:
        """Its ciphertexts, and the number of samples that they are for."""
        try:
            (reply,) = replies
            opened = frame.unpack(reply, OUTPUT_MESSAGE)
        except (BundleError, ValueError) as error:
            raise _not_decrypted("it is not a whole reply of one server") from error
        if opened.meta.get("key") != key or opened.meta.get("model") != self._half.model:
            raise _not_decrypted("it was computed under other keys")
        count = opened.meta.get("count")
        expected = self._half.ciphertexts(count, self._half.output.blocks) if type(count) is int else -1
        if not isinstance(count, int) or expected != len(opened.parts):
            raise _not_decrypted("it has a wrong number of ciphertexts")
        return opened.parts, count

    def _decrypt(self, decryptor: Handle, part: bytes) -> Reals:
        try:
            c = self._ring.load_ciphertext(part, self._half.output.level, self._half.output.scale)
        except Unreadable as error:
            raise _not_decrypted(f"it holds {error}") from error
        plaintext = self._ring.lib.Plaintext()
        decryptor.decrypt(c, plaintext)
        slots = decode(self._ring, plaintext)
        return _within(slots, _SPREAD)


def _within(values: Reals, most: float) -> Reals:
    if not np.all(np.abs(values) <= most):
        raise _not_decrypted("its values lie far outside the calibrated range")
    return values


def _uniform(shape: tuple[int, ...]) -> Reals:
    """Numbers between -1 and 1 from the operating system's generator."""
    drawn = np.frombuffer(os.urandom(8 * int(np.prod(shape))), dtype=np.uint64) >> np.uint64(11)
    return np.asarray(drawn.astype(np.float64) / 2.0**52 - 1).reshape(shape)


def other_model(what: str) -> KeyMismatch:
    """The error for keys or messages of another program."""
    return KeyMismatch(
        f"The {what} was made for another model.",
        [Problem(what, "It names another program than this one.", "make or fetch keys for this model.")],
    )


def _not_decrypted(why: str) -> DecryptionError:
    return DecryptionError(
        "The reply does not decrypt.",
        [
            Problem(
                "reply",
                f"Refused because {why}.",
                "send the request again with the keys that belong to it, and keep inputs within the calibrated range.",
            )
        ],
    )
