"""Three servers of which no two collude (ABY3), or two (Cheetah), through SPU; nobody deals."""

from secure_infer.backends.mpc_spu.backend import MpcSpuBackend

__all__ = ["MpcSpuBackend"]
