"""What a network costs under each protocol, read off its graph: ranges, bits, depth, look-ups, comparisons."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from secure_infer.graph.graph import INPUT, Graph, Node
from secure_infer.graph.interpret import trace
from secure_infer.graph.ops import Conv2d, Linear, Lookup, Max, Polynomial, QuantRelu, Sign
from secure_infer.graph.types import Integers

Range = tuple[int, int]


def calibrated_ranges(graph: Graph, x: Integers) -> dict[str, Range]:
    """Least and greatest value that each node takes on the calibration inputs `x` (integers, `(n, *input shape)`)."""
    return {name: (int(value.min()), int(value.max())) for name, value in trace(graph, x).items()}


def multiplicative_depth(graph: Graph) -> int:
    """Levels that CKKS spends: one a linear layer, and for a polynomial as many as its degree calls for.

    Degree d takes `ceil(log2(d + 1))` levels (Paterson and Stockmeyer, 1973). A quadratic takes one, since completing
    the square moves its coefficients into the linear layers beside it; a degree of one takes none.
    """
    depth = {INPUT: 0}
    for node in graph.nodes:
        before = max(depth[name] for name in node.inputs)
        depth[node.name] = before + _levels(node)
    return depth[graph.output]


def _levels(node: Node) -> int:
    match node.op:
        case Linear() | Conv2d():
            return 1
        case Polynomial():
            degree = node.op.degree
            return max(degree - 1, 0) if degree <= 2 else int(np.ceil(np.log2(degree + 1)))
        case _:
            return 0


@dataclass(frozen=True)
class Cost:
    """What one inference costs.

    Attributes:
        macs: Integer multiply-accumulates of linear layers.
        accumulator_bits: Widest sum that an activation reads, worst case over the input's range.
        multiplicative_depth: Levels under CKKS.
        look_ups: Programmable bootstraps under TFHE, counting one for each activation element.
        comparisons: Comparisons with zero under MPC: one for each threshold of each element.
        rounds: Activation layers, each at least one round of communication under MPC.
    """

    macs: int
    accumulator_bits: int
    multiplicative_depth: int
    look_ups: int
    comparisons: int
    rounds: int

    def as_dict(self) -> dict[str, int]:
        """The same as a dictionary."""
        return asdict(self)


def cost(graph: Graph) -> Cost:
    """Count what one inference costs under each protocol."""
    macs = look_ups = comparisons = rounds = 0
    bits = 1
    for node in graph.nodes:
        size = graph.types[node.name].size
        match node.op:
            case Linear():
                macs += node.op.weight.size
            case Conv2d():
                _, height, width = graph.types[node.name].shape
                macs += node.op.weight.size * height * width
            case Sign():
                look_ups, comparisons, rounds = look_ups + size, comparisons + size, rounds + 1
            case QuantRelu():
                look_ups, comparisons, rounds = look_ups + size, comparisons + size * node.op.levels, rounds + 1
            case Lookup():
                look_ups, rounds = look_ups + size, rounds + 1
                comparisons += size * (node.op.table.shape[-1] - 1)
            case Max():
                window = node.op.kernel[0] * node.op.kernel[1] - 1
                look_ups, comparisons = look_ups + size * window, comparisons + size * window
                rounds += int(np.ceil(np.log2(window + 1)))
            case Polynomial():
                look_ups, rounds = look_ups + size, rounds + 1
            case _:
                continue
        if isinstance(node.op, Sign | QuantRelu | Lookup | Max | Polynomial):
            bits = max(bits, graph.input_type(node).bits)
    return Cost(macs, bits, multiplicative_depth(graph), look_ups, comparisons, rounds)
