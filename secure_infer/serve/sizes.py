"""How long messages and evaluation keys of a model can be at most, from what its bundle says of its parameters.

The front refuses what is longer before it reads it. The bounds are those of uncompressed objects; clients send less.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from secure_infer.bundle import Interface

_WORD = 8
_FRAME = 1 << 16
_OBJECT = 1 << 10
"""Allowance for the header that a library writes before each ciphertext or key."""


@dataclass(frozen=True)
class Sizes:
    """Bounds of what is sent to one party of a model.

    Attributes:
        message_kind: Kind of the frame that a message is; None for any.
        sample_bytes: Most bytes of one sample in a message.
        sample_parts: Most parts of the frame for one sample.
        keys_kind: Kind of the frame that evaluation keys are; None for any.
        keys_bytes: Most bytes of evaluation keys; 0 where there are none.
    """

    message_kind: str | None = None
    sample_bytes: int = 64 << 20
    sample_parts: int = 1 << 10
    keys_kind: str | None = None
    keys_bytes: int = 4 << 30

    def message_bytes(self, samples: int) -> int:
        """Most bytes of a message of so many samples."""
        return _FRAME + samples * (self.sample_bytes + self.sample_parts * _OBJECT)


def sizes(interface: Interface, parameters: Mapping[str, Any]) -> Sizes:
    """The bounds for a model; wide ones where the protocol or its parameters are not known here."""
    elements = math.prod(interface.input.shape)
    try:
        match interface.protocol:
            case "clear":
                return Sizes("integers", _WORD * elements, 1, "", 0)
            case "mpc" | "mpc-fss" | "mpc-spu":
                return Sizes("mpc-share", _WORD * elements, 1, "", 0)
            case "ckks":
                return _ckks(parameters)
            case "tfhe":
                return _tfhe(elements, parameters)
    except (KeyError, TypeError, ValueError):
        pass
    return Sizes()


def _ckks(parameters: Mapping[str, Any]) -> Sizes:
    """Ciphertexts are two polynomials over the primes but the special one.

    A key for one rotation, or for relinearization, holds for each such prime two polynomials over all primes (Microsoft
    SEAL 4, `KSwitchKeys`).
    """
    degree, primes = int(parameters["poly_modulus_degree"]), len(parameters["modulus_bits"])
    blocks = int(parameters["input_ciphertexts"])
    polynomial = _WORD * degree
    key = (primes - 1) * (2 * primes * polynomial + _OBJECT)
    keys = _FRAME + (int(parameters["rotation_keys"]) + 1) * key
    return Sizes("ckks-input", blocks * 2 * (primes - 1) * polynomial, blocks, "ckks-evaluation", keys)


def _tfhe(elements: int, parameters: Mapping[str, Any]) -> Sizes:
    """A sample is one LWE ciphertext an element, of the dimension of the largest GLWE secret key at most."""
    dimension = max(int(p["polynomial_size"]) * int(p["glwe_dimension"]) for p in parameters["parameter_sets"])
    spent = parameters["bytes"]
    keys = int(spent["bootstrapping_keys"]) + int(spent["keyswitching_keys"])
    sample = _WORD * elements * (dimension + 1)
    return Sizes("tfhe-message", sample, 1, "tfhe-evaluation", _FRAME + keys + keys // 8)
