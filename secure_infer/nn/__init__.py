"""The training side: layers that every protocol can evaluate, what to replace and by what. Needs torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secure_infer.nn.layers import (
        BinaryConv2d,
        BinaryLinear,
        ChebyshevActivation,
        PolynomialActivation,
        Sign,
        Square,
        range_penalty,
    )
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
    # Data sets and recipes are read without torch, and layers other than the quantized ones without brevitas.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "quantizers" if name.startswith("quant_") else "layers"
    return getattr(import_module(f"secure_infer.nn.{home}"), name)
