"""Replaces layers that a protocol can't evaluate by close ones that it can; the network is trained on afterwards."""

from __future__ import annotations

import copy
import logging
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from secure_infer.errors import Problem, UsageError
from secure_infer.graph.graph import as_array
from secure_infer.nn.check import require_protocol, trace
from secure_infer.nn.fits import fit_polynomial
from secure_infer.nn.layers import ChebyshevActivation, PolynomialActivation

_LOG = logging.getLogger(__name__)
_MARGIN = 1.1
_CURVES = (
    "ReLU",
    "ReLU6",
    "Hardtanh",
    "Sigmoid",
    "Tanh",
    "LeakyReLU",
    "ELU",
    "SELU",
    "CELU",
    "Softplus",
    "Hardsigmoid",
    "Softsign",
    "LogSigmoid",
    "SiLU",
    "GELU",
    "Mish",
    "Hardswish",
    "PReLU",
    "RReLU",
)
_QUANTIZED = {"QuantReLU": nn.ReLU, "QuantHardTanh": nn.Hardtanh, "QuantTanh": nn.Tanh, "QuantSigmoid": nn.Sigmoid}
_CALLS = {
    "relu": nn.ReLU,
    "relu_": nn.ReLU,
    "relu6": nn.ReLU6,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "softplus": nn.Softplus,
    "celu": nn.CELU,
    "hardtanh": nn.Hardtanh,
    "clamp": lambda min=None, max=None: _clamp(min, max),
    "clip": lambda min=None, max=None: _clamp(min, max),
    "hardsigmoid": nn.Hardsigmoid,
    "softsign": nn.Softsign,
    "logsigmoid": nn.LogSigmoid,
    "log_sigmoid": nn.LogSigmoid,
    "adaptive_max_pool2d": nn.AdaptiveMaxPool2d,
    "mish": nn.Mish,
    "hardswish": nn.Hardswish,
    "max_pool2d": nn.MaxPool2d,
    # Not for CKKS, but tracing would fix whether it is on.
    "dropout": nn.Dropout,
}


def fix(
    net: nn.Module,
    protocol: str,
    calibration: npt.ArrayLike | Tensor | None = None,
    *,
    degree: int = 2,
    radius: float = 3.0,
) -> nn.Module:
    """Replace what a protocol can't evaluate, where something close exists.

    For CKKS each activation becomes a polynomial that fits it on `[-radius, radius]`: learned and of degree 2, or a
    fixed Chebyshev interpolation of a higher degree; max-pooling becomes average pooling, input quantizers vanish. For
    the other protocols, PReLU and RReLU become LeakyReLU. The function changes, so train or fine-tune the result.

    Args:
        net: The network; it is copied, not changed.
        protocol: "clear", "tfhe", "ckks", "mpc", "mpc-fss" or "mpc-spu".
        calibration: Typical inputs, shape `(n, *input shape)`; with them, each activation gets its own radius, 1.1
            times the greatest input it sees.
        degree: Degree of the polynomials.
        radius: Half-width of their range where `calibration` is not given.

    Returns:
        The changed copy. `check` lists what remains.

    Raises:
        UsageError: An unknown protocol, a degree below 2, a radius that is not positive, or calibration data that the
            network can't read.
        InvalidInput: Calibration data that is no array.
    """
    require_protocol(protocol)
    if not isinstance(net, nn.Module):
        raise UsageError(f"Expected a torch.nn.Module, got {type(net).__name__}.")
    numbers = isinstance(degree, int) and isinstance(radius, int | float)
    if not numbers or not 2 <= degree <= 31 or not 0 < radius < float("inf"):
        raise UsageError(f"Expected degree={degree!r} as a whole number in [2, 31] and radius={radius!r} above 0.")
    fixed = copy.deepcopy(net)
    if protocol == "ckks":
        fixed = _calls_to_modules(fixed)
    peaks = _peaks(fixed, calibration) if calibration is not None and protocol == "ckks" else {}
    parameter = next(fixed.parameters(), torch.zeros(()))
    made: dict[nn.Module, nn.Module | None] = {}
    gone: set[str] = set()
    for name, layer in list(fixed.named_modules(remove_duplicate=False)):
        if any(name.startswith(f"{other}.") for other in gone):
            continue
        if layer not in made:
            made[layer] = _replacement(layer, protocol, degree, peaks.get(name, radius))
        replacement = made[layer]
        if replacement is None:
            continue
        _LOG.info("%s: %s becomes %s.", name or "the network", type(layer).__name__, replacement)
        replacement.train(layer.training).to(parameter)
        if not name:
            return replacement
        _set(fixed, name, replacement)
        gone.add(name)
    return fixed


def _set(net: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(net.get_submodule(parent), child, layer)


def _replacement(layer: Any, protocol: str, degree: int, radius: float) -> nn.Module | None:
    kind = type(layer).__name__
    if protocol != "ckks":
        if kind == "PReLU" and layer.num_parameters == 1:
            return nn.LeakyReLU(float(layer.weight))
        return nn.LeakyReLU((layer.lower + layer.upper) / 2) if kind == "RReLU" else None
    if kind in ("MaxPool2d", "QuantMaxPool2d"):
        return nn.AvgPool2d(layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode)
    if kind == "AdaptiveMaxPool2d":
        return nn.AdaptiveAvgPool2d(layer.output_size)
    if kind == "QuantIdentity":
        return nn.Identity()
    if kind in _QUANTIZED:
        return _fitted(_QUANTIZED[kind](), degree, radius)
    if kind in _CURVES and not (kind == "PReLU" and layer.num_parameters != 1):
        return _fitted(layer, degree, radius)
    return None


def _fitted(layer: nn.Module, degree: int, radius: float) -> nn.Module:
    """A polynomial close to an elementwise layer on `[-radius, radius]`."""
    exact = copy.deepcopy(layer).cpu().eval().double()

    def function(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        with torch.no_grad():
            return np.asarray(exact(torch.from_numpy(np.ascontiguousarray(x))).numpy())

    if degree > 2:
        return ChebyshevActivation(function, degree, radius)
    return PolynomialActivation(tuple(fit_polynomial(function, degree, radius)), radius=radius)


def _peaks(net: nn.Module, calibration: Any) -> dict[str, float]:
    """1.1 times the greatest magnitude that each activation reads on the calibration data, by name."""
    values = as_array(calibration, "calibration")
    if values.dtype.kind not in "buif" or not values.size or not np.isfinite(values).all():
        what = "Expected numbers, none of them NaN or infinite."
        raise UsageError("The calibration data can't be used.", [Problem("calibration", what, "clean the data first.")])
    x = torch.tensor(values).to(next(net.parameters(), torch.zeros(())))
    peaks: dict[str, float] = {}

    def watch(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            peak = float(inputs[0].detach().abs().max()) * _MARGIN
            peaks[name] = max(peaks.get(name, 0.0), peak) or 1.0

        return hook

    layers = [(name, layer) for name, layer in net.named_modules() if type(layer).__name__ in (*_CURVES, *_QUANTIZED)]
    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers]
    training = net.training
    net.eval()
    try:
        with torch.no_grad():
            net(x)
    except (RuntimeError, ValueError, IndexError) as error:
        raise UsageError(f"The network refuses the calibration data: {str(error).splitlines()[0]}") from error
    finally:
        net.train(training)
        for handle in handles:
            handle.remove()
    return peaks


def _calls_to_modules(net: nn.Module) -> nn.Module:
    """The network with calls such as `functional.relu(x)` made modules; itself, if there are none."""
    try:
        traced = trace(net)
    except Exception:
        return net
    found = False
    for node in list(traced.graph.nodes):
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        if node.op not in ("call_function", "call_method") or name not in _CALLS:
            continue
        found = True
        label = f"{node.name}_layer"
        traced.add_submodule(label, _module(name, node))
        with traced.graph.inserting_before(node):
            call = traced.graph.call_module(label, (node.args[0],))
        node.replace_all_uses_with(call)
        traced.graph.erase_node(node)
    if not found:
        return net
    traced.recompile()
    return traced


def _clamp(least: float | None, most: float | None) -> nn.Module:
    return nn.Hardtanh(-float("inf") if least is None else least, float("inf") if most is None else most)


def _module(name: str, node: fx.Node) -> nn.Module:
    kind: Any = _CALLS[name]
    options: dict[str, Any] = {key: value for key, value in node.kwargs.items() if key not in ("input", "inplace")}
    if name == "dropout":
        rate: Any = options.get("p", node.args[1] if len(node.args) > 1 else 0.5)
        return nn.Dropout(rate)
    if name == "max_pool2d":
        order = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
        options.update(zip(order, node.args[1:], strict=False))
        return nn.MaxPool2d(**options)
    layer: nn.Module = kind(*node.args[1:], **options)
    return layer
