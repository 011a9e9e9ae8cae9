"""Keys of a circuit: the secret as a key set without evaluation keys (kilobytes), the evaluation keys compressed."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable
from typing import Any

from concrete import fhe

from secure_infer.backends.base import Keys
from secure_infer.backends.tfhe.segments import checked
from secure_infer.errors import BundleError, KeyMismatch, Problem
from secure_infer.wire import frame

SECRET, EVALUATION = "tfhe-secret", "tfhe-evaluation"


def circuit_id(specs: bytes) -> str:
    """SHA-256 of what defines keys and ciphertexts: the name of a circuit towards keys and messages."""
    return hashlib.sha256(json.dumps(json.loads(specs), sort_keys=True).encode()).hexdigest()


def generate(specs: bytes) -> Keys:
    """Fresh keys; 128 bits from the operating system's random numbers seed the secret, as many the encryption noise.

    The same seed gives the same secret with and without evaluation keys, so the part that the client has to keep holds
    only the secret: the library's own dump would repeat all evaluation keys.
    """
    seed = secrets.randbits(128)
    small, whole = fhe.Keys(_without_evaluation_keys(specs)), fhe.Keys(fhe.ClientSpecs.deserialize(specs))
    small.generate(secret_seed=seed, encryption_seed=secrets.randbits(128))
    whole.generate(secret_seed=seed, encryption_seed=secrets.randbits(128))
    meta = {"circuit": circuit_id(specs), "keys": secrets.token_hex(16)}
    return Keys(
        frame.pack(SECRET, [small.serialize()], meta), frame.pack(EVALUATION, [whole.evaluation.serialize()], meta)
    )


def open_secret(secret: bytes, circuit: str) -> tuple[Any, str]:
    """The key set of a serialized secret, and the name of the keys.

    Raises:
        BundleError: Not a whole secret key.
        KeyMismatch: Keys of another circuit.
    """
    return _open(secret, SECRET, circuit, fhe.Keys.deserialize)


def open_evaluation(evaluation: bytes, circuit: str) -> tuple[Any, str]:
    """The evaluation keys, and the name of the keys; raises as `open_secret` does."""
    return _open(evaluation, EVALUATION, circuit, fhe.EvaluationKeys.deserialize)


def _open(data: bytes, kind: str, circuit: str, deserialize: Callable[[bytes], Any]) -> tuple[Any, str]:
    received = frame.unpack(data, kind)
    if len(received.parts) != 1 or not isinstance(received.meta.get("keys"), str):
        raise BundleError(
            f"This is not a usable {kind}.", [Problem(kind, "Its frame holds something else.", "make the keys again.")]
        )
    if received.meta.get("circuit") != circuit:
        raise KeyMismatch(
            "These keys were made for another model.",
            [Problem(kind, "The circuit they name is not this one.", "make keys with this model's client half.")],
        )
    try:
        return deserialize(checked(received.parts[0], kind)), str(received.meta["keys"])
    except RuntimeError as error:
        raise BundleError(
            f"This is not a usable {kind}.", [Problem(kind, "concrete can't read it.", "make the keys again.")]
        ) from error


def _without_evaluation_keys(specs: bytes) -> Any:
    description = json.loads(specs)
    for kind in ("lweBootstrapKeys", "lweKeyswitchKeys", "packingKeyswitchKeys"):
        description["keyset"][kind] = []
    return fhe.ClientSpecs.deserialize(json.dumps(description).encode())
