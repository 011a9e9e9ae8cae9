"""Rewrites that never change the function: the same integers come out of every input in the input's range."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from secure_infer.graph.graph import INPUT, Graph, Node
from secure_infer.graph.ops import Conv2d, Linear, Max, Op, Polynomial, QuantRelu, Reshape, Sign, Sum
from secure_infer.graph.types import Integers, Scale, TensorType


def optimize(graph: Graph, *, pool_first: bool = False) -> Graph:
    """Apply every pass until none finds anything left to do.

    Args:
        graph: Any network.
        pool_first: Whether a maximum is cheaper before a monotone activation (MPC: fewer comparisons) than after it
            (TFHE: narrower values).
    """
    steps = (drop_identities, fold_gains, fuse_requantizations, hoist_max if pool_first else sink_max, drop_unused)
    size = None
    while size != _signature(graph):
        size = _signature(graph)
        for step in steps:
            graph = step(graph)
    return graph


def drop_unused(graph: Graph) -> Graph:
    """Remove nodes that the output does not depend on."""
    needed = {graph.output}
    for node in reversed(graph.nodes):
        if node.name in needed:
            needed.update(node.inputs)
    return replace(graph, nodes=tuple(node for node in graph.nodes if node.name in needed))


def drop_identities(graph: Graph) -> Graph:
    """Remove nodes that give back their input, and join a reshape to the reshape before it."""
    for node in graph.nodes:
        if isinstance(node.op, Reshape):
            before = _producer(graph, node)
            if before is not None and isinstance(before.op, Reshape):
                return _edit(graph, {node.name: replace(node, inputs=before.inputs)})
        if _is_identity(node, graph.types[node.name], graph.input_type(node)):
            return _edit(graph, {}, {node.name: node.inputs[0]})
    return graph


def fold_gains(graph: Graph) -> Graph:
    """Fold integer gains (a batch-norm as a depthwise 1x1 convolution) into thresholds, else into the layer before.

    `g x + b >= t` is `x >= ceil((t - b) / g)` for g > 0. For g < 0 the layer before is negated first. A gain of zero
    leaves a constant, which a threshold at an end of the range expresses.
    """
    for node in graph.nodes:
        gain = _gain(node)
        if gain is None or node.name == graph.output:
            continue
        users, before = graph.users(node.name), _sole_producer(graph, node)
        if len(users) == 1 and isinstance(users[0].op, Sign | QuantRelu):
            if before is not None:
                return _into_thresholds(graph, node, gain, users[0], before)
            if not (gain.weight < 0).any():
                return _into_thresholds(graph, node, gain, users[0], None)
        elif before is not None:
            merged = _scaled(before, gain.weight.reshape(-1), gain.bias, gain.weight_scale)
            return _edit(graph, {before.name: merged}, {node.name: before.name})
    return graph


def fuse_requantizations(graph: Graph) -> Graph:
    """Join an activation to the requantization before it: both count thresholds, so the first one's thresholds do."""
    for node in graph.nodes:
        before = _producer(graph, node)
        if before is None or not isinstance(before.op, QuantRelu) or len(graph.users(before.name)) != 1:
            continue
        kind = graph.input_type(before)
        if isinstance(node.op, QuantRelu):
            thresholds = _composed(before.op, np.atleast_2d(node.op.thresholds), kind)
            op: Sign | QuantRelu = replace(node.op, thresholds=thresholds)
        elif isinstance(node.op, Sign):
            op = replace(node.op, threshold=_composed(before.op, node.op.threshold[:, None], kind)[:, 0])
        else:
            continue
        return _edit(graph, {node.name: Node(node.name, op, before.inputs)})
    return graph


def sink_max(graph: Graph) -> Graph:
    """Take the maximum after a monotone activation rather than before it: the values are narrower."""
    return _swap(graph, (Max,), (Sign, QuantRelu))


def hoist_max(graph: Graph) -> Graph:
    """Take the maximum before a monotone activation rather than after it: there are fewer activations."""
    return _swap(graph, (Sign, QuantRelu), (Max,))


def _swap(graph: Graph, first: tuple[type[Op], ...], second: tuple[type[Op], ...]) -> Graph:
    """Let the first pair of a `first` operation and the `second` one that alone reads it change places."""
    for node in graph.nodes:
        before = _producer(graph, node)
        if before is None or not isinstance(node.op, second) or not isinstance(before.op, first):
            continue
        if len(graph.users(before.name)) == 1 and before.name != graph.output:
            return _edit(graph, {before.name: replace(before, op=node.op), node.name: replace(node, op=before.op)})
    return graph


def _signature(graph: Graph) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    return tuple((node.name, node.kind, node.inputs) for node in graph.nodes)


def _producer(graph: Graph, node: Node) -> Node | None:
    name = node.inputs[0]
    return None if name == INPUT or len(node.inputs) != 1 else graph.node(name)


def _sole_producer(graph: Graph, node: Node) -> Node | None:
    """The linear layer that only `node` reads, if there is one."""
    before = _producer(graph, node)
    if before is None or not isinstance(before.op, Linear | Conv2d) or len(graph.users(before.name)) != 1:
        return None
    return before if before.name != graph.output else None


def _edit(graph: Graph, changed: dict[str, Node], bypassed: dict[str, str] | None = None) -> Graph:
    """Put `changed` nodes in place of their namesakes, and let readers of a bypassed value read another."""
    instead = bypassed or {}
    nodes = []
    for old in graph.nodes:
        if old.name not in instead:
            node = changed.get(old.name, old)
            nodes.append(replace(node, inputs=tuple(instead.get(name, name) for name in node.inputs)))
    return drop_unused(replace(graph, nodes=tuple(nodes), output=instead.get(graph.output, graph.output)))


def _is_identity(node: Node, after: TensorType, before: TensorType) -> bool:
    if after.shape != before.shape or after.scale != before.scale:
        return False
    match node.op:
        case Reshape():
            return True
        case Sum() | Max():
            return node.op.kernel == (1, 1) and node.op.stride == (1, 1)
        case Polynomial():
            same = np.atleast_2d(node.op.coefficients)
            return node.op.shift == 0 and node.op.bound is None and same.shape[1] == 2 and bool(np.all(same == [0, 1]))
        case _:
            return False


def _gain(node: Node) -> Conv2d | None:
    """The operation of a node that multiplies each channel by an integer, and None for every other node."""
    op = node.op
    if not isinstance(op, Conv2d) or op.weight.shape[1:] != (1, 1, 1) or op.groups != op.weight.shape[0]:
        return None
    return op if op.stride == (1, 1) and op.padding == (0, 0) else None


def _into_thresholds(graph: Graph, node: Node, gain: Conv2d, user: Node, before: Node | None) -> Graph:
    """Move a gain into the thresholds of its only reader, and the signs of negative gains into the layer before."""
    gains = gain.weight.reshape(-1)
    flips = np.where(gains < 0, -1, 1)
    kind = graph.input_type(node)
    bound = max(abs(kind.low), abs(kind.high)) + 1
    op = user.op
    if isinstance(op, Sign):
        op = replace(op, threshold=_divide(op.threshold[:, None], gains * flips, gain.bias, bound)[:, 0])
    elif isinstance(op, QuantRelu):
        op = replace(op, thresholds=_divide(np.atleast_2d(op.thresholds), gains * flips, gain.bias, bound))
    changed = {user.name: replace(user, op=op)}
    if before is not None:
        changed[before.name] = _scaled(before, flips, np.zeros_like(flips), (1.0,))
    return _edit(graph, changed, {node.name: node.inputs[0]})


def _divide(thresholds: Integers, gains: Integers, bias: Integers, bound: int) -> Integers:
    """Thresholds `(channels, k)` on x that equal `thresholds` on `gains * x + bias`, for gains of zero or more."""
    rows = np.broadcast_to(thresholds, (len(gains), thresholds.shape[-1])) - bias[:, None]
    divisor = np.maximum(gains, 1)[:, None]
    constant = np.where(rows <= 0, -bound, bound)
    return np.clip(np.where(gains[:, None] == 0, constant, -((-rows) // divisor)), -bound, bound)


def _scaled(node: Node, gains: Integers, bias: Integers, scale: Scale) -> Node:
    """A linear layer whose outputs are `gains * y + bias`, each channel's unit multiplied by `scale`."""
    op = node.op
    if not isinstance(op, Linear | Conv2d):
        return node
    weight = op.weight * gains.reshape((-1,) + (1,) * (op.weight.ndim - 1))
    units = tuple(float(v) for v in np.asarray(op.weight_scale) * np.asarray(scale))
    return replace(node, op=replace(op, weight=weight, bias=op.bias * gains + bias, weight_scale=units))


def _composed(inner: QuantRelu, thresholds: Integers, kind: TensorType) -> Integers:
    """Thresholds on the input (of type `kind`) of `inner` that equal `thresholds` `(channels | 1, k)` on its output."""
    rows = np.clip(np.atleast_2d(inner.thresholds), kind.low, kind.high + 1)
    count, levels = max(len(rows), len(thresholds)), rows.shape[1]
    always, never = np.full((count, 1), kind.low), np.full((count, 1), kind.high + 1)
    ladder = np.concatenate([always, np.broadcast_to(rows, (count, levels)), never], axis=1)
    index = np.clip(np.broadcast_to(thresholds, (count, thresholds.shape[1])) - inner.low, 0, levels + 1)
    return np.take_along_axis(ladder, index, axis=1)
