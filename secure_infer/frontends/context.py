"""What a layer's handler gets, and the registry of handlers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor, fx, nn

from secure_infer.errors import Problem, UsageError
from secure_infer.frontends.builder import Builder, Value
from secure_infer.frontends.quantize import Grid, Reals
from secure_infer.graph.types import Shape, TypeProblem

PROTOCOLS = ("clear", "tfhe", "ckks", "mpc", "mpc-fss", "mpc-spu")


@runtime_checkable
class IntegerWeight(Protocol):
    """A layer whose weights are `scale * integers`."""

    def integer_weight(self) -> tuple[Tensor, Tensor]:
        """Integers, shape `(out, ...)`, and their scale, shape `(1,)` or `(out,)`."""
        ...


@runtime_checkable
class SignLayer(Protocol):
    """An activation that is `+scale` where `x >= 0`, else `-scale`."""

    def sign_scale(self) -> float:
        """The magnitude of the output."""
        ...


@runtime_checkable
class PolynomialLayer(Protocol):
    """An activation that is a polynomial."""

    def polynomial(self) -> Tensor:
        """Coefficients of 1, x, x^2, ..., shape `(channels | 1, degree + 1)`."""
        ...


@runtime_checkable
class LevelsLayer(Protocol):
    """An activation that rounds to an integer and clips to 0 ... `top_level()`."""

    def top_level(self) -> int:
        """The greatest output."""
        ...


@dataclass(frozen=True)
class Precision:
    """Bits for what a network does not quantize itself.

    Attributes:
        input: Bits of the input.
        weights: Bits of weights, sign included.
        activations: Bits of an activation's output.
    """

    input: int
    weights: int
    activations: int

    @classmethod
    def of(cls, protocol: str, n_bits: int | Mapping[str, int] | None) -> Precision:
        """The defaults of a protocol, overridden by one number for all or by name.

        Raises:
            UsageError: An unknown protocol or name, or bits out of range.
        """
        if protocol not in _DEFAULTS:
            raise UsageError(
                f"There is no protocol {protocol!r}.",
                [Problem("protocol", f"Expected one of {', '.join(PROTOCOLS)}.", "check the spelling.")],
            )
        names = tuple(cls.__dataclass_fields__)
        given = dict(n_bits or {}) if n_bits is None or isinstance(n_bits, Mapping) else dict.fromkeys(names, n_bits)
        problems = [
            Problem("n_bits", f"There is no {name!r}.", f"use {', '.join(names)}.")
            for name in given
            if name not in names
        ]
        problems += [
            Problem("n_bits", f"Expected {name}={bits!r} in [1, 16].", "use a number of bits in this range.")
            for name, bits in given.items()
            if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 16
        ]
        if problems:
            raise UsageError("n_bits does not make sense.", problems)
        return cls(**{**_DEFAULTS[protocol], **given})


_DEFAULTS: dict[str, dict[str, int]] = {
    "clear": {"input": 8, "weights": 8, "activations": 8},
    "tfhe": {"input": 4, "weights": 5, "activations": 3},
    "mpc": {"input": 8, "weights": 8, "activations": 5},
    "mpc-fss": {"input": 8, "weights": 8, "activations": 3},
    "mpc-spu": {"input": 8, "weights": 8, "activations": 3},
    "ckks": {"input": 8, "weights": 12, "activations": 12},
}


@dataclass(frozen=True, eq=False)
class Context:
    """The state of one translation.

    Attributes:
        builder: The graph in the making.
        protocol: Name of the protocol.
        precision: Bits for what the network does not quantize itself.
        values: What each translated fx node stands for.
        reals: What each fx node computed on the calibration data.
        layers: The layer that each fx node applies, functions and methods too.
        grids: Grids that were chosen for activations before their turn, by fx node.
        pending: Activations that wait to be joined with the quantizer after them, by fx node.
    """

    builder: Builder
    protocol: str
    precision: Precision
    values: dict[fx.Node, Value]
    reals: Mapping[fx.Node, Any]
    layers: Mapping[fx.Node, nn.Module]
    pending: dict[fx.Node, nn.Module]
    grids: dict[fx.Node, Grid] = field(default_factory=dict)

    @property
    def batch(self) -> int:
        """Number of calibration samples."""
        return next(len(to_numpy(self.reals[node])) for node in self.values)

    def waiting(self, node: fx.Node) -> tuple[nn.Module, ...]:
        """The activation before a quantizer that is to be joined with it, if any."""
        return tuple(self.pending[n] for n in data_inputs(node, self.values) if n in self.pending)

    def value(self, node: fx.Node) -> Value:
        """The value of the first tensor that a node reads."""
        return self.values[data_inputs(node, self.values)[0]]

    def shape(self, value: Value) -> Shape:
        """Shape of one sample of a value."""
        return self.builder.types[value.name].shape

    def real(self, node: fx.Node) -> Reals:
        """What a node computed on the calibration data, shape `(n, *shape)`."""
        return to_numpy(self.reals[node])


Handler = Callable[[Context, fx.Node, nn.Module], Value]
HANDLERS: dict[str, Handler] = {}
"""Handlers by the name of the layer's class."""


def handles(*names: str) -> Callable[[Handler], Handler]:
    """Register a handler for layers of these class names."""

    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(names, handler))
        return handler

    return register


def data_inputs(node: fx.Node, values: Mapping[fx.Node, Any]) -> list[fx.Node]:
    """The inputs of a node that stand for data, in order."""
    return [n for n in node.all_input_nodes if n in values]


def to_numpy(tensor: Any) -> Reals:
    """A tensor, or a Brevitas tensor, as float64."""
    plain = tensor if isinstance(tensor, Tensor) else tensor.value
    return np.asarray(plain.detach().cpu().double().numpy())


def normalization(layer: Any) -> tuple[Reals, Reals]:
    """Gain and shift of a batch-norm in evaluation mode, each of shape `(channels,)`.

    Raises:
        TypeProblem: It keeps no running statistics.
    """
    if layer.running_mean is None or layer.running_var is None:
        raise TypeProblem("It keeps no running statistics.", "use track_running_stats=True and train.")
    mean, variance = to_numpy(layer.running_mean), to_numpy(layer.running_var)
    gain = 1 / np.sqrt(variance + layer.eps)
    if layer.weight is not None:
        gain = gain * to_numpy(layer.weight)
    shift = -mean * gain
    return gain, shift if layer.bias is None else shift + to_numpy(layer.bias)
