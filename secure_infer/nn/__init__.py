"""The training side: layers that every protocol can evaluate, what to replace and by what. Needs torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from secure_infer.nn.layers import (
    BinaryConv2d,
    BinaryLinear,
    ChebyshevActivation,
    PolynomialActivation,
    Sign,
    Square,
    range_penalty,
)

if TYPE_CHECKING:
    from secure_infer.nn.quantizers import quant_conv2d, quant_identity, quant_linear, quant_relu

__all__ = [
    "BinaryConv2d",
    "BinaryLinear",
    "ChebyshevActivation",
    "PolynomialActivation",
    "Sign",
    "Square",
    "quant_conv2d",
    "quant_identity",
    "quant_linear",
    "quant_relu",
    "range_penalty",
]


def __getattr__(name: str) -> Any:
    # These need brevitas, which nothing else here does.
    if not name.startswith("quant_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("secure_infer.nn.quantizers"), name)
