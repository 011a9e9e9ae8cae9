"""Two-party computation on secret shares, with CrypTen; the client's half needs numpy alone."""

from secure_infer.backends.mpc.backend import MpcBackend

__all__ = ["MpcBackend"]
