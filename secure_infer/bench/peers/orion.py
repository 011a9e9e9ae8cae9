"""Orion, a compiler from PyTorch to CKKS on Lattigo, as its version 2 comes from the package index (MIT)."""

from __future__ import annotations

from secure_infer.bench.peers.foreign import Foreign


class Orion(Foreign):
    """Compiled, keyed and run as its manual shows, on one image that the client sends as it is."""

    name = "orion"
    packages = "orion-v2-compiler orion-v2-evaluator"
    adapter = "orion_adapter.py"
