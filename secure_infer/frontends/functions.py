"""Calls of functions and methods, read as the layers they stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from secure_infer.frontends.context import to_numpy
from secure_infer.frontends.linear import Addition, Affine
from secure_infer.frontends.pooling import Reshaping, SpatialMean
from secure_infer.graph.types import TypeProblem

Make = Callable[..., nn.Module]

_IMAGE = ("kernel_size", "stride", "padding")


class Squaring(nn.Module):
    """`x * x`, in the form of a polynomial layer."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return x * x

    def polynomial(self) -> Tensor:
        """`((0, 0, 1),)`."""
        return torch.tensor([[0.0, 0.0, 1.0]])


class _Constant(nn.Module):
    """Tensors that the network computed from its parameters, under the names that a layer's handler reads."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        self.__dict__.update(attributes)


class LinearCall(_Constant):
    """`functional.linear` with constant weights."""


class ConvCall(_Constant):
    """`functional.conv2d` with constant weights."""


class BatchNormCall(_Constant):
    """`functional.batch_norm` with constant statistics."""


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Module:
    return LinearCall(weight=weight, bias=bias)


def _conv(
    weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> nn.Module:
    return ConvCall(weight=weight, bias=bias, stride=stride, padding=padding, dilation=dilation, groups=groups)


def _batch_norm(
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> nn.Module:
    if training:
        raise TypeProblem("It normalizes by the batch.", "pass training=self.training.")
    return BatchNormCall(running_mean=running_mean, running_var=running_var, weight=weight, bias=bias, eps=eps)


def _dropout(p: float = 0.5, training: bool = True, inplace: bool = False) -> nn.Module:
    if training:
        raise TypeProblem("It drops values even in evaluation.", "pass training=self.training.")
    return nn.Identity()


def _clamp(min: float = -np.inf, max: float = np.inf) -> nn.Module:
    return nn.Hardtanh(min, max)


def _power(exponent: Any) -> nn.Module:
    if exponent == 2:
        return Squaring()
    raise TypeProblem(f"It takes the power {exponent}.", "use a PolynomialActivation.")


def _mean(dim: Any = None, keepdim: bool = False) -> nn.Module:
    if dim is None:
        raise TypeProblem("It takes the mean over the batch too.", "take it over height and width: dim=(2, 3).")
    return SpatialMean((dim,) if isinstance(dim, int) else tuple(dim))


def _reshaping(*shape: Any, **options: Any) -> nn.Module:
    return Reshaping()


def _idle(*_: Any, **__: Any) -> nn.Module:
    return nn.Identity()


def _attribute(name: str) -> nn.Module:
    if name != "value":  # of a Brevitas tensor
        raise TypeProblem(f"It reads the attribute {name}.", "use layers, or functions of torch.")
    return nn.Identity()


def _max_pool(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> nn.Module:
    return nn.MaxPool2d(kernel_size, stride, padding, dilation, return_indices, ceil_mode)


FUNCTIONS: Mapping[str, Make] = {
    "linear": _linear,
    "conv2d": _conv,
    "batch_norm": _batch_norm,
    "relu": nn.ReLU,
    "relu_": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardtanh": nn.Hardtanh,
    "clamp": _clamp,
    "clip": _clamp,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "celu": nn.CELU,
    "softplus": nn.Softplus,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "hardsigmoid": nn.Hardsigmoid,
    "softsign": nn.Softsign,
    "logsigmoid": nn.LogSigmoid,
    "log_sigmoid": nn.LogSigmoid,
    "silu": nn.SiLU,
    "gelu": lambda approximate="none": nn.GELU(approximate),
    "mish": nn.Mish,
    "hardswish": nn.Hardswish,
    "square": Squaring,
    "pow": _power,
    "avg_pool2d": nn.AvgPool2d,
    "adaptive_avg_pool2d": nn.AdaptiveAvgPool2d,
    "max_pool2d": _max_pool,
    "mean": _mean,
    "flatten": _reshaping,
    "view": _reshaping,
    "reshape": _reshaping,
    "squeeze": _reshaping,
    "unsqueeze": _reshaping,
    "contiguous": _idle,
    "clone": _idle,
    "to": _idle,
    "float": _idle,
    "double": _idle,
    "detach": _idle,
    "getattr": _attribute,
    "dropout": _dropout,
    "dropout2d": _dropout,
    "softmax": lambda dim=None, **_: nn.Softmax(dim),
    "log_softmax": lambda dim=None, **_: nn.LogSoftmax(dim),
}
"""What a function stands for, by its name: a maker of the layer from the arguments after the first."""

ARITHMETIC = ("add", "iadd", "sub", "isub", "mul", "imul", "truediv", "itruediv", "div", "neg")


def as_layer(node: fx.Node, data: Mapping[fx.Node, Any], constants: Mapping[fx.Node, Any]) -> nn.Module | None:
    """The layer that a call of a function or method stands for; None if there is none.

    Args:
        node: The call.
        data: Nodes that depend on the input.
        constants: Results of the others.

    Raises:
        TypeProblem: Arguments that no layer has.
    """
    name = function_name(node)
    args = [constants.get(a, a) if isinstance(a, fx.Node) else a for a in node.args]
    options = {k: constants.get(v, v) if isinstance(v, fx.Node) else v for k, v in node.kwargs.items()}
    if name in ARITHMETIC:
        return _arithmetic(name.removeprefix("i") if name != "iadd" else "add", node, args, options, data)
    if name not in FUNCTIONS or not isinstance(node.args[0] if node.args else None, fx.Node):
        return None
    if any(arg in data for arg in node.all_input_nodes[1:]) and FUNCTIONS[name] is not _reshaping:
        raise TypeProblem("It combines several values.", "use layers with constant parameters.")
    options.pop("input", None)
    if name.endswith("relu_") or name in _ELEMENTWISE:
        options.pop("inplace", None)
    try:
        return FUNCTIONS[name](*args[1:], **options)
    except TypeError as error:
        raise TypeProblem(f"Its arguments are not understood ({error}).", "use the layer from torch.nn.") from error


_ELEMENTWISE = (
    "relu",
    "relu6",
    "hardtanh",
    "leaky_relu",
    "elu",
    "selu",
    "celu",
    "silu",
    "mish",
    "hardswish",
    "hardsigmoid",
)


def function_name(node: fx.Node) -> str:
    """Name of the function or method that a node calls."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def _arithmetic(
    name: str, node: fx.Node, args: list[Any], options: dict[str, Any], data: Mapping[fx.Node, Any]
) -> nn.Module:
    if options.get("alpha", 1) != 1 or options.get("rounding_mode") is not None:
        raise TypeProblem("It has options beyond its two operands.", "use plain arithmetic.")
    operands = [*args, *(options[k] for k in ("input", "other") if k in options)]
    tensors = [isinstance(o, fx.Node) and o in data for o in operands]
    if name == "neg":
        return Affine(-np.ones(1), np.zeros(1))
    if all(tensors):
        if name in ("add", "sub"):
            return Addition(1 if name == "add" else -1)
        if name == "mul" and operands[0] is operands[1]:
            return Squaring()
        raise TypeProblem("It multiplies or divides two values.", "only x * x is possible.")
    constant = _constant(operands[tensors.index(False)], to_numpy(data[node]).ndim)
    one, zero = np.ones(1), np.zeros(1)
    if name == "add":
        return Affine(one, constant)
    if name == "mul":
        return Affine(constant, zero)
    if name == "sub":
        return Affine(one, -constant) if tensors[0] else Affine(-one, constant)
    if not tensors[0]:
        raise TypeProblem("It divides by a value.", "divide by constants only.")
    return Affine(1 / constant, zero)


def _constant(value: Any, axes: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    if isinstance(value, int | float):
        return np.array([float(value)])
    if isinstance(value, Tensor) and value.dim() <= 1 and value.numel() == 1:
        return to_numpy(value).reshape(-1)
    if isinstance(value, Tensor) and sum(size > 1 for size in value.shape) <= 1:
        # One constant a channel: (1, channels, 1, 1) and (channels, 1, 1); of vectors (1, features) and (features,).
        channel_axis = {axes: 1, axes - 1: 0}.get(value.dim())
        if channel_axis is not None and value.shape[channel_axis] == value.numel():
            return to_numpy(value).reshape(-1)
    raise TypeProblem("Its constant is neither a scalar nor one number a channel.", "use a BatchNorm2d instead.")
