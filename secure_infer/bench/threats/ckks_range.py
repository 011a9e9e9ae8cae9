"""CKKS overflow: inputs far out of range, from a client that skips its own check."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np

from secure_infer import backends
from secure_infer.backends.ckks.client import CkksClient
from secure_infer.backends.ckks.half import ClientHalf
from secure_infer.bench.threats.cells import Cell, Deployment, Settings
from secure_infer.compiler import Compiled
from secure_infer.errors import DecryptionError, InvalidInput
from secure_infer.graph.interpret import interpret_real

FACTORS = (1, 1.5, 2, 2.5, 3, 3.5, 4, 8, 64, 1024)
"""How many times beyond the calibrated range inputs are."""


def overflow(deployment: Deployment, settings: Settings) -> Cell:
    """Send images scaled far out of range; what comes back is refused, wrong in silence, or right."""
    if deployment.protocol != "ckks":
        return Cell(
            why_not="Values do not overflow here: there is no encryption."
            if not deployment.encrypted
            else "Inputs are exact integers of fixed width, which the client's encoding can't exceed."
        )
    compiled = deployment.weights.compiled("ckks")
    images, _ = deployment.right(settings.keys)
    kinds, seconds = _sent(compiled, compiled.graph.quantize(images.numpy()))
    n = sum(sum(found.values()) for factor, found in kinds.items() if factor > 1)
    silent = sum(found["wrong"] for factor, found in kinds.items() if factor > 1)
    details: dict[str, Any] = {"by_factor": {str(factor): found for factor, found in kinds.items()}}
    details |= {"honest_client_refuses": _refused(compiled, images.numpy()), "server_seconds": seconds}
    return Cell(
        "out-of-range inputs answered wrongly in silence, where the client skips its check",
        silent,
        n,
        access="a client of one's own",
        mode="executed",
        queries=float(n),
        per="client",
        seconds=sum(seconds.values()) * len(images),
        details=details,
    )


def _sent(compiled: Compiled, units: Any) -> tuple[dict[float, dict[str, int]], dict[str, float]]:
    """What became of the inputs at each factor, and the server's mean seconds at the least and the greatest."""
    program = compiled.program
    half = ClientHalf.from_bytes(program.client)
    reach = int(FACTORS[-1]) * max(abs(half.low), abs(half.high))
    careless = CkksClient(replace(half, low=-reach, high=reach))
    (server,) = backends.load("ckks").servers(program.servers)
    keys = careless.keygen()
    bound, kinds, spent = compiled.guarantee.error_bound or 0.0, {}, {}
    try:
        for factor in FACTORS:
            found = {"refused": 0, "wrong": 0, "right": 0}
            start = time.perf_counter()
            for sample in np.rint(units[:, None] * factor).astype(np.int64):
                (message,) = careless.encrypt(sample, keys)
                reply = server.run(message, keys.evaluation)
                try:
                    output = compiled.graph.dequantize(careless.decrypt((reply,), keys))
                except DecryptionError:
                    found["refused"] += 1
                    continue
                true = compiled.graph.dequantize(interpret_real(compiled.graph, sample))
                found["right" if np.abs(output - true).max() <= bound else "wrong"] += 1
            kinds[factor], spent[factor] = found, (time.perf_counter() - start) / len(units)
    finally:
        server.close()
    return kinds, {str(factor): spent[factor] for factor in (FACTORS[0], FACTORS[-1])}


def _refused(compiled: Compiled, images: Any) -> bool:
    """Whether our own client refuses to send such inputs at all."""
    try:
        compiled.client().interface.quantize(images * FACTORS[-1])
    except InvalidInput:
        return True
    return False
