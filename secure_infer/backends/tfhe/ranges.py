"""How far each value of a network can reach: for every input (intervals), and for inputs like the calibration set."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from secure_infer.graph.graph import INPUT, Graph, Node
from secure_infer.graph.interpret import apply, trace
from secure_infer.graph.ops import Conv2d, Linear, Lookup, Polynomial
from secure_infer.graph.types import Integers, TensorType

SIGMAS = 5.0
"""Half-width of a calibrated range in standard deviations: 6e-7 of a normal distribution lies outside."""
ROUNDED_SIGMAS = 4.0
"""The same for sums that a rounded look-up reads: 6e-5 lie outside, far fewer than noise moves over a threshold, and a
narrower range has less noise."""
FEWEST_SAMPLES = 256
"""Fewer calibration samples say too little about rare values, and worst-case ranges are used."""
_WIDEST_TABLE = 1 << 16


def of(rounding: str) -> float:
    """Half-width of a calibrated range in standard deviations under a kind of rounding."""
    return SIGMAS if rounding == "exact" else ROUNDED_SIGMAS


@dataclass(frozen=True, eq=False)
class Range:
    """Least and greatest value of each element; both arrays have the shape of one sample."""

    low: Integers
    high: Integers


def worst_case(graph: Graph) -> dict[str, Range]:
    """Interval arithmetic, element by element: no input within the graph's input range can leave these ranges."""
    kind = graph.input
    ranges = {INPUT: Range(np.full(kind.shape, kind.low), np.full(kind.shape, kind.high))}
    for node in graph.nodes:
        ranges[node.name] = _interval(node, [ranges[name] for name in node.inputs], graph.types[node.name])
    return ranges


def calibrated(graph: Graph, x: Integers, worst: dict[str, Range], sigmas: float = SIGMAS) -> dict[str, Range]:
    """Ranges seen on the calibration inputs, widened to `sigmas` standard deviations about each element's mean.

    An accumulator is a sum of many terms and close to normal, so the widening covers new inputs of the same kind. An
    element that hardly moved in the sample is granted the tensor's root mean square deviation. Two inputs join the
    set: all elements at the least and all at the greatest value of the input's range. No range exceeds the worst case.

    Args:
        graph: The network.
        x: Calibration inputs, shape `(n, *input shape)`.
        worst: Ranges from `worst_case`.
        sigmas: Half-width in standard deviations.
    """
    if len(x) < FEWEST_SAMPLES:
        return worst
    kind = graph.input
    corners = np.stack([np.full(kind.shape, kind.low), np.full(kind.shape, kind.high)])
    seen = trace(graph, np.concatenate([x, corners]))
    return {
        INPUT: worst[INPUT],
        **{node.name: _widen(seen[node.name], worst[node.name], sigmas) for node in graph.nodes},
    }


def _widen(values: Integers, worst: Range, sigmas: float) -> Range:
    deviation = values.std(axis=0)
    typical = np.sqrt(np.mean(np.square(deviation)))
    mean, reach = values.mean(axis=0), sigmas * np.maximum(deviation, typical)
    low = np.minimum(values.min(axis=0), np.floor(mean - reach).astype(np.int64))
    high = np.maximum(values.max(axis=0), np.ceil(mean + reach).astype(np.int64))
    return Range(np.maximum(low, worst.low), np.minimum(high, worst.high))


def _interval(node: Node, inputs: list[Range], kind: TensorType) -> Range:
    match node.op:
        case Linear() | Conv2d():
            return _affine(node.op, inputs[0])
        case Lookup() | Polynomial():
            return _any_function(node.op, inputs[0], kind)
        case op:  # all others are monotone in every argument
            low, high = (
                apply(op, *(side[None] for side in sides))[0]
                for sides in ([r.low for r in inputs], [r.high for r in inputs])
            )
            return Range(low, high)


def _affine(op: Linear | Conv2d, x: Range) -> Range:
    up, down = (
        replace(op, weight=part, bias=np.zeros_like(op.bias))
        for part in (np.maximum(op.weight, 0), np.minimum(op.weight, 0))
    )
    bias = op.bias.reshape((-1, 1, 1) if isinstance(op, Conv2d) else -1)
    low, high = x.low[None], x.high[None]
    return Range((apply(up, low) + apply(down, high))[0] + bias, (apply(up, high) + apply(down, low))[0] + bias)


def _any_function(op: Lookup | Polynomial, x: Range, kind: TensorType) -> Range:
    low, high = int(x.low.min()), int(x.high.max())
    if high - low >= _WIDEST_TABLE:
        return Range(np.full(kind.shape, kind.low), np.full(kind.shape, kind.high))
    every = np.arange(low, high + 1).reshape((-1,) + (1,) * len(kind.shape))
    every = np.broadcast_to(every, (high - low + 1, kind.shape[0]) + (1,) * (len(kind.shape) - 1))
    table = apply(op, every)
    shape = kind.shape
    return Range(np.broadcast_to(table.min(axis=0), shape), np.broadcast_to(table.max(axis=0), shape))
