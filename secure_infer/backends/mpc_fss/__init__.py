"""Two servers compute on shares; every comparison is one round, by function secret sharing. numpy and AES alone."""

from secure_infer.backends.mpc_fss.backend import MpcFssBackend

__all__ = ["MpcFssBackend"]
