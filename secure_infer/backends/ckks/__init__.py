"""CKKS on SEAL: approximate arithmetic on encrypted reals, for networks of linear layers and polynomials.

    lower -> normalize -> plan (parameters, packing) -> run on an engine (clear, or seal)

Only `seal` knows the crypto library; everything before it is numpy.
"""

from secure_infer.backends.ckks.backend import CkksBackend

__all__ = ["CkksBackend"]
