"""Made-up records in the form that the harness writes, for tests of the report only."""

from __future__ import annotations

from typing import Any

import numpy as np

_RUN_S = {"clear": 2e-4, "tfhe": 0.8, "ckks": 0.06, "mpc": 0.02}


def record(
    protocol: str, model: str = "net", peer: str | None = None, slower: float = 1.0, **changes: Any
) -> dict[str, Any]:
    rng = np.random.default_rng(len(model) + len(peer or ""))
    n, run = 20, (_RUN_S[protocol] * slower * rng.lognormal(0, 0.1, 20)).tolist()
    encrypted = protocol != "clear"
    wall = {
        "compile": 1.2,
        "keygen": 3.1 if encrypted else None,
        "encrypt": 4e-3,
        "run": float(np.median(run)),
        "decrypt": 1e-3,
    }
    found = {
        "case": "made-up",
        "protocol": protocol,
        "model": model,
        "fingerprint": "0" * 64,
        "peer": peer,
        "mode": "encrypted",
        "batch": 1,
        "options": {},
        "n": n,
        "n_encrypted": n if encrypted else 0,
        "accuracy": 0.95,
        "accuracy_interval": [0.76, 0.99],
        "accuracy_clear": 0.95,
        "accuracy_clear_full": 0.962,
        "n_clear_full": 449,
        "agreement": 1.0,
        "max_error": 0.0,
        "wall_s": wall,
        "cpu_s": dict(wall),
        "run_s_all": run,
        "bytes": {"evaluation_keys": 9e7, "evaluation_keys_sent": 3e7 if encrypted else 0, "input": 5e4, "output": 2e4},
        "counts": {"look_ups": 64} if encrypted else {},
        "floor_s": wall["run"] / 2 if encrypted else None,
        "floor_ratio": 2.0 if encrypted else None,
        "floor": None,
        "parameters": {},
        "host": {"cpu": "Some CPU", "cores": 2, "memory_gib": 8.0, "os": "Linux", "python": "3.11.0"},
        "peak_memory": 1_500_000_000,
        "load": {"start": 0.4, "end": 1.7},
        "versions": {"secure_infer": "0.1.0"},
        "commit": "0123456789abcdef",
        "at": "2026-01-02T03:04:05+00:00",
    }
    return found | changes
