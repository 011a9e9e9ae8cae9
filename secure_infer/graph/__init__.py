"""The network as data: integer operations with scales, an exact interpreter, analyses, passes and a stored form."""

from secure_infer.graph.graph import INPUT, Graph, Node, dequantize, quantize
from secure_infer.graph.interpret import interpret, interpret_real
from secure_infer.graph.ops import OPS, Add, Conv2d, Linear, Lookup, Max, Op, Polynomial, QuantRelu, Reshape, Sign, Sum
from secure_infer.graph.text import format_graph
from secure_infer.graph.types import TensorType

__all__ = [
    "INPUT",
    "OPS",
    "Add",
    "Conv2d",
    "Graph",
    "Linear",
    "Lookup",
    "Max",
    "Node",
    "Op",
    "Polynomial",
    "QuantRelu",
    "Reshape",
    "Sign",
    "Sum",
    "TensorType",
    "dequantize",
    "format_graph",
    "interpret",
    "interpret_real",
    "quantize",
]
