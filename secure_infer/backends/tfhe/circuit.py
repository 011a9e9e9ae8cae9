"""A plan as a concrete-python circuit: every integer range is pinned by us, so that nothing depends on samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from concrete import fhe
from concrete.fhe.representation import GraphProcessor

from secure_infer.backends.tfhe.lookup import Bootstraps, Ladder, LookUp, Split
from secure_infer.backends.tfhe.plan import Plan, Step
from secure_infer.errors import ParametersError, Problem
from secure_infer.graph.graph import INPUT
from secure_infer.graph.ops import Add, Conv2d, Linear, Max, Reshape, Sum
from secure_infer.graph.types import Integers, Pair

Tracer = Any
_PIN = "secure_infer_range"
_MOVES = ("reshape", "index_static")
_BETWEEN = (np.int64(-1), np.int64(0))


class _Pins(GraphProcessor):  # type: ignore[misc]
    """Replaces measured ranges by pinned ones; sums may wrap around in between, so there only the sign is declared."""

    def apply(self, graph: Any) -> None:
        """Pin every encrypted value of a circuit."""
        pins: dict[Any, tuple[np.int64, np.int64]] = {}
        for node in graph.query_nodes(ordered=True):
            if node.output.is_encrypted:
                moved = node.properties.get("name") in _MOVES  # these keep the sign of what they read
                default = pins[graph.ordered_preds_of(node)[0]] if moved else _BETWEEN
                pins[node] = node.properties.get(_PIN, default)
        graph.update_with_bounds({node: {"min": low, "max": high} for node, (low, high) in pins.items()})


def pin(value: Tracer, low: int, high: int) -> Tracer:
    """Declare the range of a value."""
    value.computation.properties[_PIN] = (np.int64(low), np.int64(high))
    return value


def pin_bits(value: Tracer, bits: int) -> Tracer:
    """Declare that a value fits in so many signed bits."""
    return pin(value, -(1 << (bits - 1)), (1 << (bits - 1)) - 1)


def trace(function: Callable[[Tracer], Tracer], sample: Integers, configuration: Any) -> Any:
    """Compile a function of one encrypted tensor.

    Raises:
        ParametersError: The compiler finds no parameters.
    """
    configuration = configuration.fork(additional_pre_processors=[_Pins()])
    try:
        return fhe.Compiler(function, {"x": "encrypted"}).compile([sample], configuration)
    except RuntimeError as error:
        reason = (str(error).strip() or "it gave no reason").splitlines()[-1]
        raise ParametersError(
            "concrete can't compile the network.",
            [
                Problem(
                    "network",
                    f"Its compiler says: {reason}.",
                    'quantize to fewer bits, choose a greater p_error, or compile with rounding="approximate".',
                )
            ],
        ) from error


def emit(plan: Plan, center: Integers, bits: int) -> Callable[[Tracer], Tracer]:
    """The function that a plan computes on one encrypted sample of t.

    Args:
        plan: The plan.
        center: Integers subtracted from the outputs, shape of one output.
        bits: Signed bits of an output.
    """

    def network(x: Tracer) -> Tracer:
        values = {INPUT: pin(x, 0, int(plan.input.reach.high.max()))}
        for step in plan.steps:
            values[step.name] = _step(step, *(values[name] for name in step.inputs))
        whole = plan.result.offset // plan.result.gain
        return pin_bits(_plus(values[plan.output], whole - center, bits), bits)

    return network


def _step(step: Step, x: Tracer, *others: Tracer) -> Tracer:
    match step.op:
        case Linear():
            return x @ step.op.weight.T
        case Conv2d():
            return _convolve(x, step.op)
        case Add():
            return _times(x, step.op.gains[0]) + _times(others[0], step.op.gains[1])
        case Sum():
            return _total(list(_slices(x, step.op.kernel, step.op.stride, step.op.padding)))
        case Reshape():
            return x.reshape(step.op.shape)
        case Max():
            return _maximum(x, step)
        case _:
            assert step.plan is not None
            return look_up(x, step.plan)


def _times(x: Tracer, factor: int) -> Tracer:
    return x if factor == 1 else x * factor


def _plus(x: Tracer, constant: Integers, bits: int) -> Tracer:
    """`x + constant` in chunks no wider than `bits`: the compiler gives a sum the width of its widest part."""
    limit = (1 << (bits - 1)) - 1
    constant = np.asarray(constant, dtype=np.int64)
    while np.any(constant):
        part = np.clip(constant, -limit, limit)
        x = x + (int(part.reshape(-1)[0]) if np.all(part == part.reshape(-1)[0]) else part)
        constant = constant - part
    return x


def _padded(x: Tracer, padding: Pair) -> Tracer:
    if not any(padding):
        return x
    channels, height, width = x.shape
    wide = fhe.zeros((channels, height + 2 * padding[0], width + 2 * padding[1]))
    wide[:, padding[0] : padding[0] + height, padding[1] : padding[1] + width] = x
    return wide


def _convolve(x: Tracer, op: Conv2d) -> Tracer:
    x = _padded(x, op.padding)
    image = fhe.conv(x.reshape((1, *x.shape)), op.weight, strides=op.stride, dilations=op.dilation, group=op.groups)
    return image.reshape(image.shape[1:])


def _slices(x: Tracer, kernel: Pair, stride: Pair, padding: Pair) -> Iterator[Tracer]:
    """For each position in the window, the values that all windows have there."""
    x = _padded(x, padding)
    rows, columns = (x.shape[i + 1] - kernel[i] + 1 for i in (0, 1))
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            yield x[:, i : i + rows : stride[0], j : j + columns : stride[1]]


def _total(parts: list[Tracer]) -> Tracer:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _maximum(x: Tracer, step: Step) -> Tracer:
    assert isinstance(step.op, Max) and step.plan is not None
    scale, add = step.before
    x = _plus(_times(x, scale), add, step.plan.bits)
    parts = list(_slices(x, step.op.kernel, step.op.stride, step.op.padding))  # zero, the least value, pads
    if step.held.reach.high.max() <= 1:
        return look_up(_total(parts), step.plan)
    while len(parts) > 1:
        pairs = zip(parts[::2], parts[1::2], strict=False)
        rest = parts[-1:] if len(parts) % 2 else []
        parts = [b + look_up(a - b, step.plan) for a, b in pairs] + rest
    return parts[0]


def look_up(x: Tracer, plan: Bootstraps) -> Tracer:
    """Apply a planned look-up to every element."""
    if isinstance(plan, Ladder):
        return _total([look_up(x, rung) for rung in plan.rungs])
    if isinstance(plan, Split):
        return _split(x, plan)
    half = (1 << plan.removed) >> 1 if plan.approximate else 0
    if plan.factor is not None:
        x = x * plan.factor
    a = pin_bits(_plus(x, -(plan.shift + half), plan.bits), plan.bits)
    return pin(_table(plan)(_clear_low_bits(a, plan)), int(plan.tables.min()), plan.top)


def _clear_low_bits(a: Tracer, plan: LookUp) -> Tracer:
    if not plan.removed:
        return a
    if plan.approximate:
        return _round(a, plan.bits, plan.removed)
    return pin_bits(fhe.truncate_bit_pattern(a, lsbs_to_remove=plan.removed), plan.bits)


def _round(a: Tracer, bits: int, removed: int) -> Tracer:
    rounded = fhe.round_bit_pattern(
        a, lsbs_to_remove=removed, overflow_protection=False, exactness=fhe.Exactness.APPROXIMATE
    )
    return pin_bits(rounded, bits)


def _split(x: Tracer, plan: Split) -> Tracer:
    bits, removed = plan.base.bits, plan.base.removed
    a = pin_bits(_plus(x, -plan.base.shift, bits), bits)
    high = _clear_low_bits(a, plan.base)
    base = pin(_table(plan.base)(high), 0, plan.base.top)
    within = pin(_table(plan.within)(high), 0, plan.within.top)
    # The difference has removed + 1 bits; moved to the top of the message, rounding away the zeros below it is exact.
    spare = bits - removed - 1
    difference = pin_bits((a - high - within) * (1 << spare), bits)
    reached = fhe.univariate(lambda v: (v >= 0).astype(np.int64))
    return base + pin(reached(_round(difference, bits, spare) if spare else difference), 0, 1)


def _table(plan: LookUp) -> Callable[[Tracer], Tracer]:
    half = plan.tables.shape[1] >> 1
    index = plan.index if len(plan.tables) > 1 else np.zeros(1, dtype=np.int64)

    def entry(v: Any) -> Any:
        where = np.clip((np.asarray(v) >> plan.removed) + half, 0, 2 * half - 1)
        return plan.tables[np.broadcast_to(index, where.shape), where] if where.shape else plan.tables[0, where]

    function: Callable[[Tracer], Tracer] = fhe.univariate(entry)
    return function
