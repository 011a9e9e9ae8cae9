"""What the look-ups of a circuit cost: a model of their time, by the parameters that concrete chose.

A look-up is a key switch and a bootstrap. Both stream their whole key from memory, once each, and concrete's own cost
model, which counts operations, leaves that out: it is half of the time. The four constants below are fitted to a
profile of one core (AVX-512, 2 MB of cache of its own) and hold within a sixth for GLWE dimensions 1 to 4.
"""

from __future__ import annotations

import json
import math
from typing import Any

_PER_BUTTERFLY = 9.6e-11
"""Seconds for each of the N * log2(N) steps of a Fourier transform of N coefficients."""
_PER_COEFFICIENT = 2.35e-9
"""Seconds to rotate, decompose and add up one coefficient of the accumulator."""
_PER_KEY_BYTE = 1.27e-10
"""Seconds to read and multiply one byte of a key."""


def look_up_seconds(server: Any) -> float:
    """Seconds of CPU of all look-ups of a compiled circuit; its sums, and reading its inputs, are not among them.

    Args:
        server: The library's server, with its compilation feedback still on disk.
    """
    (name,) = server.program_info.function_list()
    keyset = json.loads(server.client_specs.serialize())["keyset"]
    dimensions = {key["id"]: key["params"]["lweDimension"] for key in keyset["lweSecretKeys"]}
    bootstraps = server.programmable_bootstrap_count_per_parameter(name)
    switches = server.key_switch_count_per_parameter(name)
    seconds = sum(count * _bootstrap(key) for key, count in bootstraps.items())
    return float(seconds + sum(count * _key_switch(key, dimensions) for key, count in switches.items()))


def _bootstrap(key: Any) -> float:
    n, size, levels = key.input_lwe_dimension(), key.polynomial_size(), key.level()
    width = key.glwe_dimension() + 1
    transforms = (levels + 1) * math.log2(size) * _PER_BUTTERFLY
    return float(n * width * size * (transforms + _PER_COEFFICIENT + 8 * levels * width * _PER_KEY_BYTE))


def _key_switch(key: Any, dimensions: dict[int, int]) -> float:
    rows: int = dimensions[key.input_secret_key_id()] * key.level()
    return 8 * rows * (dimensions[key.output_secret_key_id()] + 1) * _PER_KEY_BYTE
