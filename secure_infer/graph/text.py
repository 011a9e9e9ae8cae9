"""A graph as text, one line a value, and the same text with the nodes that an error is about underlined."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from secure_infer.errors import Problem
from secure_infer.graph.graph import INPUT, Graph, Node
from secure_infer.graph.ops import Add, Conv2d, Linear, Lookup, Max, Op, Polynomial, QuantRelu, Reshape, Sign, Sum
from secure_infer.graph.types import Integers


def format_graph(graph: Graph) -> str:
    """The graph, one value a line: `%name = Operation(%inputs) details : type`."""
    return "\n".join(line for _, line in _lines(graph))


def underline(graph: Graph, problems: Iterable[Problem]) -> str:
    """The graph's text in which each node that a problem is about is underlined and followed by what is wrong."""
    said: dict[str, list[str]] = {}
    for problem in problems:
        said.setdefault(problem.where, []).append(problem.what)
    lines = []
    for name, line in _lines(graph):
        lines.append(line)
        if name in said:
            lines.append("^" * len(line) + " " + " ".join(said[name]))
    return "\n".join(lines)


def _lines(graph: Graph) -> list[tuple[str, str]]:
    lines = [(INPUT, f"%{INPUT} : {graph.input} scale {_scale(graph.input.scale)}")]
    for node in graph.nodes:
        kind = graph.types.get(node.name)
        suffix = f" : {kind} in [{kind.low}, {kind.high}] scale {_scale(kind.scale)}" if kind else ""
        lines.append((node.name, f"%{node.name} = {_call(node)}{suffix}"))
    return [*lines, ("return", f"return %{graph.output}")]


def _call(node: Node) -> str:
    details = _details(node.op)
    return f"{node.kind}({', '.join('%' + name for name in node.inputs)}){' ' + details if details else ''}"


def _scale(scale: tuple[float, ...]) -> str:
    return f"{scale[0]:.4g}" if len(scale) == 1 else f"{min(scale):.4g}..{max(scale):.4g}"


def _details(op: Op) -> str:
    match op:
        case Linear():
            return f"{op.weight.shape[1]} -> {op.weight.shape[0]}, {_weight_bits(op.weight)}-bit weights"
        case Conv2d():
            out, into, height, width = op.weight.shape
            return (
                f"{height}x{width}x{into} -> {out}, stride {op.stride}, padding {op.padding}, "
                f"groups {op.groups}, {_weight_bits(op.weight)}-bit weights"
            )
        case Sum():
            return f"{op.kernel}, stride {op.stride}, padding {op.padding}, divisor {op.divisor}"
        case Max():
            return f"{op.kernel}, stride {op.stride}, padding {op.padding}"
        case Add():
            return "" if op.gains == (1, 1) else f"gains {op.gains}"
        case Reshape():
            return str(op.shape)
        case Polynomial():
            clipped = "" if op.bound is None else f", clipped to {op.bound[0]} .. {op.bound[1]}"
            return f"degree {op.degree}, shift {op.shift}{clipped}"
        case QuantRelu():
            return f"{op.levels + 1} levels from {op.low}"
        case Lookup():
            return f"{op.table.shape[-1]} entries from {op.start}"
        case Sign():
            return ""


def _weight_bits(weight: Integers) -> int:
    largest = int(np.abs(weight).max(initial=0))
    return largest.bit_length() + 1
