"""TFHE: exact integer networks on encrypted bits and small integers, by concrete-python.

concrete-python takes seconds to import, so this package imports it only when something is compiled, made or run.
"""

from importlib.util import find_spec

from secure_infer.backends.tfhe.backend import TfheBackend
from secure_infer.errors import missing_extra

if find_spec("concrete") is None or find_spec("concrete.fhe") is None:
    raise missing_extra("tfhe", "tfhe", "concrete")

__all__ = ["TfheBackend"]
