"""Keys of a circuit: the secret as a key set without evaluation keys (kilobytes), the evaluation keys compressed."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable
from typing import Any

from concrete import fhe
from concrete.compiler import ProgramInfo

from secure_infer.backends.base import Keys
from secure_infer.backends.tfhe.segments import checked
from secure_infer.errors import BundleError, KeyMismatch, Problem
from secure_infer.wire import frame

SECRET, EVALUATION = "tfhe-secret", "tfhe-evaluation"


def circuit_id(specs: bytes) -> str:
    """SHA-256 of what defines keys and ciphertexts: the name of a circuit towards keys and messages."""
    return hashlib.sha256(json.dumps(json.loads(specs), sort_keys=True).encode()).hexdigest()


def key_set(specs: bytes) -> str:
    """SHA-256 of the parameters of all keys and of the noise of inputs: circuits that agree in it share their keys.

    The noise belongs to it because a half that asked for less of it would lay open keys that other models use, too.
    """
    whole = json.loads(specs)
    inputs = [gate["typeInfo"]["lweCiphertext"]["encryption"] for c in whole["circuits"] for gate in c["inputs"]]
    described = [whole["keyset"], sorted(json.dumps(noise, sort_keys=True) for noise in inputs)]
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def summary(specs: bytes) -> str:
    """The bootstrapping keys of a circuit in words."""
    return " and ".join(
        "keys of polynomial size {polynomialSize}, GLWE dimension {glweDimension}, LWE dimension {inputLweDimension} "
        "and {levelCount} levels".format(**key["params"])
        for key in json.loads(specs)["keyset"]["lweBootstrapKeys"]
    )


def restriction(specs: bytes) -> Any:
    """What makes the compiler choose the key set of a circuit again.

    Raises:
        ValueError: These are no specs.
    """
    try:
        return ProgramInfo.deserialize(specs).get_keyset_info().get_restriction()
    except RuntimeError as error:
        raise ValueError("the description of the keys can't be read") from error


def generate(specs: bytes) -> Keys:
    """Fresh keys; 128 bits from the operating system's random numbers seed the secret, as many the encryption noise.

    The same seed gives the same secret with and without evaluation keys, so the part that the client has to keep holds
    only the secret: the library's own dump would repeat all evaluation keys.
    """
    seed = secrets.randbits(128)
    small, whole = fhe.Keys(_without_evaluation_keys(specs)), fhe.Keys(fhe.ClientSpecs.deserialize(specs))
    small.generate(secret_seed=seed, encryption_seed=secrets.randbits(128))
    whole.generate(secret_seed=seed, encryption_seed=secrets.randbits(128))
    meta = {"key_set": key_set(specs), "keys": secrets.token_hex(16)}
    return Keys(
        frame.pack(SECRET, [small.serialize()], meta), frame.pack(EVALUATION, [whole.evaluation.serialize()], meta)
    )


def open_secret(secret: bytes, expected: str) -> tuple[Any, str]:
    """The keys of a serialized secret, and their name.

    Args:
        secret: What `generate` gave.
        expected: The key set that the circuit calls for.

    Raises:
        BundleError: Not a whole secret key.
        KeyMismatch: Keys of another set.
    """
    return _open(secret, SECRET, expected, fhe.Keys.deserialize)


def open_evaluation(evaluation: bytes, expected: str) -> tuple[Any, str]:
    """The evaluation keys, and the name of the keys; raises as `open_secret` does."""
    return _open(evaluation, EVALUATION, expected, fhe.EvaluationKeys.deserialize)


def expanded_bytes(specs: bytes) -> int:
    """Bytes of a circuit's evaluation keys in memory, uncompressed: a matrix of 64-bit words for each."""
    keyset = json.loads(specs)["keyset"]
    words = 0
    for key in keyset["lweBootstrapKeys"]:
        p = key["params"]
        words += p["inputLweDimension"] * p["levelCount"] * (p["glweDimension"] + 1) ** 2 * p["polynomialSize"]
    for key in keyset["lweKeyswitchKeys"]:
        p = key["params"]
        words += p["inputLweDimension"] * p["levelCount"] * (p["outputLweDimension"] + 1)
    return 8 * words


def _open(data: bytes, kind: str, expected: str, deserialize: Callable[[bytes], Any]) -> tuple[Any, str]:
    received = frame.unpack(data, kind)
    if len(received.parts) != 1 or not isinstance(received.meta.get("keys"), str):
        raise BundleError(
            f"This is not a usable {kind}.", [Problem(kind, "Its frame holds something else.", "make the keys again.")]
        )
    if received.meta.get("key_set") != expected:
        raise KeyMismatch(
            "These keys were made for another model.",
            [
                Problem(
                    kind,
                    "Its parameters are not those that this model calls for.",
                    "make keys with this model's client half, or compile the model with keys_of= the other one.",
                )
            ],
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
