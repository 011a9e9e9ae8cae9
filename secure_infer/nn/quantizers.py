"""Short constructors for the quantization-aware layers of Brevitas, with 1 to 8 bits. Needs brevitas."""

from __future__ import annotations

from typing import Any

import brevitas.nn as qnn
from brevitas import quant
from torch import nn

from secure_infer.errors import UsageError


def quant_linear(in_features: int, out_features: int, bits: int, bias: bool = True, **options: Any) -> nn.Module:
    """A Brevitas `QuantLinear` with symmetric weights of 1 to 8 bits; 1 bit means +1 and -1 times a scale."""
    layer: nn.Module = qnn.QuantLinear(in_features, out_features, bias, **_weight_options(bits), **options)
    return layer


def quant_conv2d(
    in_channels: int, out_channels: int, kernel_size: int | tuple[int, int], bits: int, **options: Any
) -> nn.Module:
    """A Brevitas `QuantConv2d` with symmetric weights of 1 to 8 bits; options as in `torch.nn.Conv2d`."""
    layer: nn.Module = qnn.QuantConv2d(in_channels, out_channels, kernel_size, **_weight_options(bits), **options)
    return layer


def quant_relu(bits: int, **options: Any) -> nn.Module:
    """A Brevitas `QuantReLU`: outputs `0 ... 2**bits - 1` times a scale."""
    layer: nn.Module = qnn.QuantReLU(bit_width=_checked(bits), **options)
    return layer


def quant_identity(bits: int, signed: bool = True, **options: Any) -> nn.Module:
    """A Brevitas `QuantIdentity`, for the input or after an addition; 1 bit means +1 and -1 times a scale."""
    if _checked(bits) == 1 and signed:
        kind = quant.SignedBinaryActPerTensorConst
        options = {"scaling_init": 1.0, **options}
    else:
        kind = quant.Int8ActPerTensorFloat if signed else quant.Uint8ActPerTensorFloat
    layer: nn.Module = qnn.QuantIdentity(kind, bit_width=bits, **options)
    return layer


def _weight_options(bits: int) -> dict[str, Any]:
    if _checked(bits) == 1:
        return {"weight_quant": quant.SignedBinaryWeightPerTensorConst, "weight_scaling_init": 0.1}
    return {"weight_quant": quant.Int8WeightPerTensorFloat, "weight_bit_width": bits}


def _checked(bits: int) -> int:
    if not 1 <= bits <= 8:
        raise UsageError(f"Expected bits={bits} in [1, 8].")
    return bits
