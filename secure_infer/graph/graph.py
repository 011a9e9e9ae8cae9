"""A network as data: a directed acyclic graph of integer operations, checked when it is made."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from secure_infer.errors import InvalidInput, Problem, UnsupportedNetwork
from secure_infer.graph.encoding import Encoding
from secure_infer.graph.ops import Op
from secure_infer.graph.types import ACCUMULATOR_BITS, MOST_ELEMENTS, Integers, TensorType, TypeProblem

INPUT = "input"
"""The name under which nodes refer to the graph's input."""


@dataclass(frozen=True)
class Node:
    """One operation, the values it reads, and the name of the value it makes."""

    name: str
    op: Op
    inputs: tuple[str, ...]

    @property
    def kind(self) -> str:
        """Name of the operation."""
        return type(self.op).__name__


@dataclass(frozen=True, eq=False)
class Graph:
    """A network: one input, one output, nodes in topological order.

    Attributes:
        input: Type of the input.
        nodes: Operations; each reads only the input or earlier nodes.
        output: Name of the node whose value is the result.
        offset: Real values, one for each index of the output's first axis (or one for all), that the client adds after
            scaling: `real = scale * integer + offset`.
        encoding: How a client makes the input's integers from reals; None: by the scale of the input's type.
        types: Type of every value, by name; derived.

    Raises:
        UnsupportedNetwork: Nodes that do not fit together; all of them are listed and underlined.
    """

    input: TensorType
    nodes: tuple[Node, ...]
    output: str
    offset: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))
    encoding: Encoding | None = None
    types: Mapping[str, TensorType] = field(init=False)

    def __post_init__(self) -> None:
        types, problems = _infer(self)
        object.__setattr__(self, "types", MappingProxyType(types))
        if problems:
            from secure_infer.graph.text import underline

            raise UnsupportedNetwork("The graph does not type-check.", problems, underline(self, problems))

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    @property
    def output_type(self) -> TensorType:
        """Type of the result."""
        return self.types[self.output]

    @property
    def kinds(self) -> frozenset[str]:
        """Names of the operations in use."""
        return frozenset(node.kind for node in self.nodes)

    def node(self, name: str) -> Node:
        """The node called `name`."""
        return next(node for node in self.nodes if node.name == name)

    def users(self, name: str) -> tuple[Node, ...]:
        """Nodes that read the value `name`."""
        return tuple(node for node in self.nodes if name in node.inputs)

    def input_type(self, node: Node) -> TensorType:
        """Type of the first value that `node` reads."""
        return self.types[node.inputs[0]]

    def quantize(self, x: npt.ArrayLike) -> Integers:
        """Real inputs to the integers that the graph reads: `round(x / scale)`, or what its encoding says.

        Args:
            x: Reals, shape `(n, *input shape)`; with an encoding `(n, *encoding.shape)`.

        Returns:
            Integers, shape `(n, *input shape)`.

        Raises:
            InvalidInput: Wrong shape, not numbers, NaN or infinite, or out of range by more than one unit.
        """
        return quantize(self.input, x, self.encoding)

    def dequantize(self, y: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Outputs in integer units, shape `(n, *output shape)`, to reals: `scale * y + offset`."""
        return dequantize(self.output_type, self.offset, y)


def as_array(x: Any, where: str = "input") -> npt.NDArray[Any]:
    """An array, a tensor of any device and kind, or nested lists, as an array.

    Raises:
        InvalidInput: Something that is no array, such as lists of different lengths.
    """
    try:
        plain = x.detach().cpu() if hasattr(x, "detach") else x
        # numpy has no bfloat16.
        return np.asarray(plain.float() if str(getattr(plain, "dtype", "")) == "torch.bfloat16" else plain)
    except (TypeError, ValueError, RuntimeError) as error:
        what = (str(error).splitlines() or [""])[0]
        raise InvalidInput(
            f"The {where} is no array.", [Problem(where, what, "pass an array or a tensor of numbers.")]
        ) from error


def quantize(kind: TensorType, x: npt.ArrayLike, encoding: Encoding | None = None) -> Integers:
    """`Graph.quantize` for somebody who holds only the input's type and encoding, as a client does."""
    values = as_array(x)
    if values.dtype.kind not in "buif":
        raise InvalidInput(
            "The input is not numeric.",
            [Problem("input", f"Expected an array of numbers, got dtype {values.dtype}.", "pass a float array.")],
        )
    shape = kind.shape if encoding is None else encoding.shape
    if values.shape[1:] != shape or values.ndim != len(shape) + 1:
        expected = ("n", *shape)
        raise InvalidInput(
            "The input has a wrong shape.",
            [
                Problem(
                    "input",
                    f"Expected ({', '.join(map(str, expected))}), got {values.shape}.",
                    "pass a batch; a single sample x is x[None].",
                )
            ],
        )
    problems = []
    values = values.astype(np.float64)
    if not np.all(np.isfinite(values)):
        bad = int(np.count_nonzero(~np.isfinite(values)))
        problems.append(Problem("input", f"{bad} values are NaN or infinite.", "clean the data first."))
        values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    units = np.rint(values / kind.scale_array() if encoding is None else encoding.units(values))
    outside = (units < kind.low - 1) | (units > kind.high + 1)
    if outside.any():
        low, high = (float(bound * s) for bound, s in ((kind.low, min(kind.scale)), (kind.high, max(kind.scale))))
        span = f" [{low:.4g}, {high:.4g}]" if encoding is None else f" of features {_first(outside.any(axis=0))}"
        problems.append(
            Problem(
                "input",
                f"{int(outside.sum())} values lie outside the calibrated range{span}.",
                "scale the data as in calibration, or compile again with calibration data that covers it.",
            )
        )
    if problems:
        raise InvalidInput("The input can't be quantized.", problems)
    return np.asarray(np.clip(units, kind.low, kind.high), dtype=np.int64)


def _first(wrong: npt.NDArray[np.bool_]) -> str:
    """The first few indices that are true."""
    found = np.flatnonzero(wrong)
    return ", ".join(map(str, found[:5])) + (", ..." if len(found) > 5 else "")


def dequantize(kind: TensorType, offset: npt.NDArray[np.float64], y: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """`Graph.dequantize` for somebody who holds only the output's type and offset."""
    shift = offset.reshape((-1,) + (1,) * (len(kind.shape) - 1))
    return np.asarray(np.asarray(y, dtype=np.float64) * kind.scale_array() + shift)


def _infer(graph: Graph) -> tuple[dict[str, TensorType], list[Problem]]:
    """Types of all values, and every problem met; nodes after a broken one are not blamed."""
    types: dict[str, TensorType] = {INPUT: graph.input}
    problems: list[Problem] = []
    seen = {INPUT}
    for node in graph.nodes:
        if node.name in seen:
            problems.append(Problem(node.name, "Two values have this name.", "rename one."))
        unknown = [name for name in node.inputs if name not in seen]
        seen.add(node.name)
        if unknown or len(node.inputs) != node.op.arity:
            problems.append(
                Problem(
                    node.name,
                    f"Reads {list(node.inputs)}, of which {unknown} come from nowhere.",
                    f"give {node.op.arity} values made earlier.",
                )
            )
            continue
        if any(name not in types for name in node.inputs):
            continue
        try:
            inferred = node.op.infer(*(types[name] for name in node.inputs))
        except TypeProblem as problem:
            problems.append(Problem(node.name, problem.what, problem.fix))
            continue
        if inferred.bits > ACCUMULATOR_BITS:
            problems.append(
                Problem(
                    node.name,
                    f"Its values need {inferred.bits} bits.",
                    f"quantize earlier: {ACCUMULATOR_BITS} bits is the limit of exact evaluation.",
                )
            )
            continue
        if math.prod(inferred.shape) > MOST_ELEMENTS:
            what = f"Its value has {math.prod(inferred.shape)} elements a sample."
            problems.append(Problem(node.name, what, f"stay below {MOST_ELEMENTS}, as memory has to."))
            continue
        types[node.name] = inferred
    if graph.encoding is not None and graph.encoding.coded != graph.input.shape:
        what = f"The encoding makes rows of shape {graph.encoding.coded}, the input has {graph.input.shape}."
        problems.append(Problem(INPUT, what, "give the input the shape that the encoding makes."))
    if graph.output not in seen:
        problems.append(Problem(graph.output, "The output names no value.", "name one of the nodes."))
    elif graph.output in types and graph.offset.shape not in ((1,), types[graph.output].shape[:1]):
        problems.append(Problem(graph.output, f"The offset has shape {graph.offset.shape}.", "give 1 or `out` values."))
    return types, problems
