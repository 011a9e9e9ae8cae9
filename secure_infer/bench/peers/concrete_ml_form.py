"""A network of ours in a form that Concrete ML reads: the same function of the same weights, in Brevitas with 2 bits.

Concrete ML knows no quantizer of one bit, and quantizes the weights of a layer without a bias anew to 8 bits. So +1 and
-1 become two of the three levels of a 2-bit quantizer, behind a gain so steep that zero, the third, is never met; and
each layer gets a bias of zero. Whether the function is still the same is checked.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from secure_infer.bench.contender import Subject
from secure_infer.errors import Problem, UnsupportedNetwork

_GAIN = 1e5
_CLOSE = 1e-3


def readable(subject: Subject) -> Any:
    """The subject's network for Concrete ML's importer; networks that are no `nn.Sequential` are left as they are.

    Raises:
        UnsupportedNetwork: The rewritten network computes something else.
    """
    import torch
    from torch import nn

    if not isinstance(subject.net, nn.Sequential):
        return subject.net
    layers: list[nn.Module] = []
    for layer in copy.deepcopy(subject.net):
        _append(layers, layer)
    net = nn.Sequential(*layers).eval()
    x = torch.as_tensor(subject.calibration).float()
    with torch.no_grad():
        expected, found = (np.asarray(n(x)) for n in (copy.deepcopy(subject.net).eval(), net))
    if not np.allclose(found, expected, rtol=_CLOSE, atol=_CLOSE * float(np.abs(expected).max())):
        problem = Problem(subject.name, "In 2 bits it has other outputs.", "choose another model.")
        raise UnsupportedNetwork(f"{subject.name} has no form that Concrete ML reads.", [problem])
    return net


def _append(layers: list[Any], layer: Any) -> None:
    import torch
    from brevitas import nn as qnn
    from torch import nn

    if hasattr(layer, "sign_scale"):
        _steepen(layers)
        layers.append(_ternary(float(layer.sign_scale())))
    elif hasattr(layer, "integer_weight"):
        layers.append(_two_bits(layer))
    elif isinstance(layer, qnn.QuantIdentity) and len(layers) == 1 and isinstance(layers[0], nn.Flatten):
        # Its importer looks for the quantizer right at the input.
        layers.insert(0, layer)
    else:
        if isinstance(layer, qnn.QuantLinear | qnn.QuantConv2d) and layer.bias is None:
            layer.bias = nn.Parameter(torch.zeros(layer.weight.shape[0]))
        layers.append(layer)


def _steepen(layers: list[Any]) -> None:
    import torch
    from torch import nn

    before = layers[-1] if layers else None
    if not isinstance(before, nn.BatchNorm1d | nn.BatchNorm2d):
        problem = Problem("sign", "It follows no batch-norm.", "choose another model.")
        raise UnsupportedNetwork("The network has no form that Concrete ML reads.", [problem])
    with torch.no_grad():
        before.weight.mul_(_GAIN)
        before.bias.mul_(_GAIN)


def _ternary(scale: float) -> Any:
    from brevitas import nn as qnn
    from brevitas import quant

    # A bound of `scale` for two bits, narrow: -scale, 0 and scale.
    options = {"bit_width": 2, "narrow_range": True, "scaling_impl_type": "const", "scaling_init": scale}
    return qnn.QuantIdentity(quant.Int8ActPerTensorFloat, **options)


def _two_bits(layer: Any) -> Any:
    """A layer with weights of +1 and -1 times a scale, as a Brevitas layer of 2 bits."""
    import torch
    from brevitas import nn as qnn
    from brevitas import quant
    from torch import nn

    integers, scale = layer.integer_weight()
    kind = quant.Int8WeightPerTensorFloat if scale.numel() == 1 else quant.Int8WeightPerChannelFloat
    options = {"bias": True, "weight_quant": kind, "weight_bit_width": 2}
    if isinstance(layer, nn.Linear):
        made = qnn.QuantLinear(layer.in_features, layer.out_features, **options)
    else:
        shape = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")}
        made = qnn.QuantConv2d(layer.in_channels, layer.out_channels, layer.kernel_size, **shape, **options)
    with torch.no_grad():
        made.weight.copy_(integers * scale.reshape((-1,) + (1,) * (integers.dim() - 1)))
        made.bias.copy_(torch.zeros(len(integers)) if layer.bias is None else layer.bias)
    return made
