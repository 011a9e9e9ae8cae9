"""Runs a plan on shares: the same steps in both parties, with the weights in the hands of party 0 alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from secure_infer.backends.mpc.kernels import CONV, LINEAR, WEIGHTED
from secure_infer.backends.mpc.plan import Plan, Step
from secure_infer.backends.mpc.protocols import WORD_BITS, Protocols
from secure_infer.graph.graph import INPUT, Graph
from secure_infer.graph.interpret import apply, windows
from secure_infer.graph.ops import Add, Conv2d, Linear, Lookup, Op, Polynomial, QuantRelu, Reshape, Sign, Sum
from secure_infer.graph.types import Integers, Pair, Shape, TensorType, channelwise


class Evaluator:
    """One party's copy of a network.

    Args:
        plan: What both parties know.
        graph: The network with its weights at party 0, None at party 1.
        protocols: This party's protocols; weights are shared through them here, once.
    """

    def __init__(self, plan: Plan, graph: Graph | None, protocols: Protocols) -> None:
        self.plan, self._graph, self._protocols, self._bits = plan, graph, protocols, plan.bits
        protocols.forget_weights()
        for step in plan.steps:
            if step.weight:
                protocols.share_weight(step.name, step.weight, self._weight(step))

    def run(self, share: Integers) -> Integers:
        """This party's share of the output, `(n, *output shape)`, from its share of the input, `(n, *input shape)`."""
        values: dict[str, Integers] = {INPUT: share}
        for step in self.plan.steps:
            values[step.name] = self._step(step, *(values[name] for name in step.inputs))
        return values[self.plan.output]

    def _step(self, step: Step, x: Integers, *others: Integers) -> Integers:
        parameters = step.parameters
        match step.kind:
            case "Linear" | "Conv2d":
                return self._affine(step, x)
            case "Add":
                return np.asarray(apply(Add(cast(Pair, tuple(parameters["gains"]))), x, *others))
            case "Sum":
                return np.asarray(apply(Sum(*_window(parameters)), x))
            case "Reshape":
                return np.asarray(apply(Reshape(step.shape), x))
            case "Max":
                return self._maximum(step, x)
            case "Polynomial":
                return self._polynomial(step, x)
            case "Sign":
                below = self._below(step, x, 1)[:, 0]
                return self._offset(-2 * below, 1)
            case "QuantRelu":
                levels = parameters["levels"]
                below = self._below(step, x, levels).sum(axis=1)
                return self._offset(-below, levels + (cast(QuantRelu, self._op(step)).low if self._graph else 0))
            case _:
                return self._look_up(step, x)

    def _op(self, step: Step) -> Op:
        return cast(Graph, self._graph).node(step.name).op

    def _offset(self, x: Integers, constant: Integers | int) -> Integers:
        """Add a constant that party 0 knows: it alone adds it to its share."""
        return x + constant if self._protocols.rank == 0 else x

    def _affine(self, step: Step, x: Integers) -> Integers:
        spec = (
            {"map": LINEAR}
            if step.kind == "Linear"
            else {"map": CONV, **{key: step.parameters[key] for key in ("stride", "padding", "dilation", "groups")}}
        )
        product = self._protocols.product(step.name, spec, x, (len(x), *step.shape), self._bits[step.name])
        if self._graph is None:
            return product
        bias = cast(Linear | Conv2d, self._op(step)).bias
        return product + bias.reshape((-1,) + (1,) * (len(step.shape) - 1))

    def _below(self, step: Step, x: Integers, count: int) -> Integers:
        """Shares of the bits [x < t] for all `count` thresholds at once, shape `(n, count, *shape)`."""
        spread = np.repeat(x[:, None], count, axis=1)
        if self._graph is not None:
            node = self._graph.node(step.name)
            spread = spread - _thresholds(node.op, self._graph.input_type(node))
        return self._protocols.negative(spread, step.parameters["width"])

    def _look_up(self, step: Step, x: Integers) -> Integers:
        terms = step.parameters["weight"][0]
        result = np.zeros_like(x)
        if step.weight:
            below = self._below(step, x, terms)
            spec, shape = {"map": WEIGHTED}, (len(x), *step.shape)
            result = self._protocols.product(step.name, spec, below, shape, self._bits[step.name])
        if self._graph is None:
            return result
        last = np.atleast_2d(cast(Lookup, self._op(step)).table)[:, -1:]
        return np.asarray(result + channelwise(last, step.shape)[0])

    def _maximum(self, step: Step, x: Integers) -> Integers:
        kernel, stride, padding = _window(step.parameters)
        lowest = 0 if self._graph is None else self._graph.input_type(self._graph.node(step.name)).low
        values = windows(x, kernel, stride, padding, fill=lowest)
        values = values.reshape((*values.shape[:4], -1))
        while values.shape[-1] > 1:
            half = values.shape[-1] // 2
            left, right, rest = np.split(values, [half, 2 * half], axis=-1)
            gap = right - left
            # max(a, b) = b - [b < a] (b - a)
            larger = right - self._protocols.multiply(self._protocols.negative(gap, step.parameters["width"]), gap)
            values = np.concatenate([larger, rest], axis=-1)
        return np.asarray(values[..., 0])

    def _polynomial(self, step: Step, x: Integers) -> Integers:
        degree, shift = step.parameters["weight"][0], step.parameters["shift"]
        result = np.zeros_like(x)
        if degree:
            terms = np.stack(self._powers(x, degree), axis=1)
            bits = WORD_BITS if shift else self._bits[step.name]
            result = self._protocols.product(step.name, {"map": WEIGHTED}, terms, x.shape, bits)
        if self._graph is not None:
            coefficients = cast(Polynomial, self._op(step)).coefficients
            result = result + (channelwise(coefficients[..., :1], step.shape)[0] + ((1 << shift) >> 1))
        return self._protocols.shift(result, shift) if shift else result

    def _powers(self, x: Integers, degree: int) -> list[Integers]:
        """Shares of x, x**2, ..., x**degree; each round of multiplications doubles their number."""
        powers = [x]
        while len(powers) < degree:
            more = powers[: degree - len(powers)]
            powers += list(self._protocols.multiply(np.stack(more), powers[-1]))
        return powers

    def _weight(self, step: Step) -> Integers | None:
        """The secret factor of a step, in the shape that the plan says; None at party 1."""
        if self._graph is None:
            return None
        match self._op(step):
            case Linear(weight=weight) | Conv2d(weight=weight):
                return weight
            case Polynomial(coefficients=coefficients):
                return _by_channel(coefficients[..., 1:], step.shape)
            case Lookup(table=table):
                # table[x] = last - sum_j (table[j] - table[j - 1]) [x < start + j]
                return _by_channel(-np.diff(table, axis=-1), step.shape)
        return None


def _window(parameters: Mapping[str, Any]) -> tuple[Pair, Pair, Pair]:
    kernel, stride, padding = (tuple(parameters[key]) for key in ("kernel", "stride", "padding"))
    return cast(Pair, kernel), cast(Pair, stride), cast(Pair, padding)


def _by_channel(values: Integers, shape: Shape) -> Integers:
    return np.ascontiguousarray(channelwise(values, shape))


def _thresholds(op: Op, kind: TensorType) -> Integers:
    """Thresholds, shape `(count, channels | 1, 1, ...)`, moved into the range of the input, where they say the same."""
    match op:
        case Sign(threshold=threshold):
            values = threshold[:, None]
        case QuantRelu(thresholds=thresholds):
            values = thresholds
        case Lookup(table=table, start=start):
            values = np.arange(start + 1, start + table.shape[-1])
        case _:
            raise TypeError(f"{type(op).__name__} has no thresholds.")
    return channelwise(np.clip(values, kind.low, kind.high + 1), kind.shape)
