"""Our own check of the noise in keys and ciphertexts that concrete chose, against a table for 128 and 132 bits.

The table holds, for binary secrets and a modulus of 2**64, the least standard deviation for which every attack of the
lattice estimator (Albrecht, Player and Scott, J. Math. Cryptology 9(3), 2015) takes 2**bits operations: the linear
models `log2(sigma / q) = slope * n + bias` that were fitted to the estimator for TFHE and are published with it
(concrete's "parameter curves"). At n = 1024 and 2048 they agree within two bits of noise with the tables for ternary
secrets of the Homomorphic Encryption Standard (Albrecht et al., 2018): q = 2**27 and 2**54 at sigma = 3.2.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from secure_infer.errors import ParametersError, Problem

_CURVES = {128: (-0.026599462343105267, 2.981543184145991), 132: (-0.025696778711484593, 2.675931372549016)}
_LEAST_DIMENSION = 450
_LEAST_LOG2 = 2 - 64
"""Noise has to reach the two lowest bits at least."""
_TOLERANCE = 0.01


def least_noise(dimension: int, bits: int) -> float:
    """Binary logarithm of the least secure standard deviation, as a share of the modulus.

    Args:
        dimension: Of the secret: bits.
        bits: Of security, 128 or 132.
    """
    slope, bias = _CURVES[bits]
    return max(slope * dimension + bias, _LEAST_LOG2) if dimension >= _LEAST_DIMENSION else 0.0


def require_secure(specs: bytes, bits: int) -> list[dict[str, Any]]:
    """Every key and input of a circuit with its noise and the least that is secure.

    Args:
        specs: Keys and circuits as JSON, from `roles.description`.
        bits: Of security asked for.

    Raises:
        ParametersError: Something has less noise than it needs; all of it is listed.
    """
    found: list[dict[str, Any]] = [
        {"what": what, "dimension": n, "log2_noise": round(noise, 2), "log2_least": round(least_noise(n, bits), 2)}
        for what, n, noise in sorted(set(_noises(json.loads(specs))))
    ]
    problems = [
        Problem(
            row["what"],
            f"Dimension {row['dimension']} needs noise of 2**{row['log2_least']} for {bits} bits of security; concrete "
            f"chose 2**{row['log2_noise']}.",
            "install the version of concrete-python that this package names; do not use these parameters.",
        )
        for row in found
        if row["log2_noise"] < row["log2_least"] - _TOLERANCE
    ]
    if problems:
        raise ParametersError(f"The parameters do not reach {bits} bits of security.", problems)
    return found


def _noises(specs: dict[str, Any]) -> Iterator[tuple[str, int, float]]:
    """Name, dimension of the secret, and binary logarithm of the standard deviation."""
    keys = specs["keyset"]
    for key in (entry["params"] for entry in keys["lweBootstrapKeys"]):
        yield "bootstrapping key", key["polynomialSize"] * key["glweDimension"], _log2(key["variance"])
    for key in (entry["params"] for entry in keys["lweKeyswitchKeys"]):
        yield "keyswitching key", key["outputLweDimension"], _log2(key["variance"])
    for key in (entry["params"] for entry in keys["packingKeyswitchKeys"]):
        dimension = key["glweDimension"] * key["polynomialSize"]
        yield "packing key", dimension, _log2(key["variance"])
    for gate in specs["circuits"][0]["inputs"]:
        encryption = gate["typeInfo"]["lweCiphertext"]["encryption"]
        yield "input", encryption["lweDimension"], _log2(encryption["variance"])


def _log2(variance: float) -> float:
    return math.log2(variance) / 2 if variance > 0 else -math.inf
