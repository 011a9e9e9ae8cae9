"""What one look-up costs on this machine, measured on circuits that hold nothing else."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import numpy as np

from secure_infer.backends.base import Program
from secure_infer.backends.tfhe.lookup import LookUp, Split
from secure_infer.graph.types import Integers
from secure_infer.wire import frame

ELEMENTS = 16
Kind = tuple[int, int, str]


def look_up_seconds(program: Program) -> dict[str, float]:
    """Mean seconds of CPU of one look-up over the kinds in `program`, weighted by their number.

    Each kind runs under the program's own keys on `ELEMENTS` freshly encrypted integers of the same width, with no
    linear layer before it: what is left over in the whole circuit is the price of its sums and of reading its input.
    """
    kinds: Counter[Kind] = Counter()
    for layer in program.parameters["layers"].values():
        method = layer["method"]
        if method == "ladder":  # its rungs are look-ups of the widest one's kind
            method = "approximate" if layer["approximate"] else "truncate"
        kinds[(layer["bits"], layer["removed"], method)] += layer["elements"]
    if not kinds:
        return {}
    from secure_infer.backends.tfhe.roles import SERVER

    half = frame.unpack(program.servers[0], SERVER)
    restrictions: dict[str, Any] = {"dimensions": [], "log_sizes": [], "levels": []}
    settings = {**half.meta["settings"], **restrictions, "shared": True, "specs": half.parts[1]}
    seconds = look_ups = 0.0
    for kind, elements in kinds.items():
        cost, count = _measure(kind, settings)
        seconds, look_ups = seconds + cost * elements, look_ups + count * elements
    return {"look_ups": seconds / look_ups}


def _measure(kind: Kind, settings: dict[str, Any]) -> tuple[float, float]:
    """Seconds of CPU, and look-ups, of one element of a kind."""
    from secure_infer.backends.tfhe.circuit import look_up, pin_bits, trace
    from secure_infer.backends.tfhe.roles import configuration, discard_files

    bits = kind[0]
    plan = _typical(*kind)
    sample = np.arange(ELEMENTS, dtype=np.int64) % (1 << (bits - 1))
    circuit = trace(lambda x: look_up(pin_bits(x, bits), plan), sample, configuration(**settings))
    circuit.keygen()
    encrypted = circuit.encrypt(sample)
    circuit.run(encrypted)  # the first run decompresses the keys
    start = time.process_time()
    circuit.run(encrypted)
    seconds = time.process_time() - start
    count = circuit.programmable_bootstrap_count
    discard_files(circuit.server)
    return seconds / ELEMENTS, count / ELEMENTS


def _typical(bits: int, removed: int, method: str) -> LookUp | Split:
    """A plan of a kind; what its tables hold makes no difference to time."""
    zero: Integers = np.zeros(1, dtype=np.int64)
    half = 1 << (bits - removed - 1)
    table = (np.arange(-half, half) >= 0).astype(np.int64)[None]
    whole = LookUp(bits, removed, method == "approximate", zero, table, zero)
    return Split(whole, LookUp(bits, removed, False, zero, table << removed, zero)) if method == "split" else whole
