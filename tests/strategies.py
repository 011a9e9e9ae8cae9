"""Networks and inputs drawn by hypothesis: small, of odd shapes, with every operation of the graph."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from secure_infer.graph import (
    INPUT,
    Add,
    Conv2d,
    Graph,
    Linear,
    Lookup,
    Max,
    Node,
    Op,
    Polynomial,
    QuantRelu,
    Reshape,
    Sign,
    Sum,
    TensorType,
)
from secure_infer.graph.analyse import calibrated_ranges
from secure_infer.graph.types import Integers

ACTIVATIONS = ("Sign", "QuantRelu", "Lookup", "Polynomial")
EXACT_OPS = frozenset({"Linear", "Conv2d", "Add", "Sum", "Max", "Reshape", "Sign", "QuantRelu", "Lookup"})
REAL_OPS = frozenset({"Linear", "Conv2d", "Add", "Sum", "Reshape", "Polynomial"})


class _Builder:
    """Adds drawn nodes one after another, keeping the calibrated range of the last one at hand."""

    def __init__(self, rng: np.random.Generator, kind: TensorType) -> None:
        self.rng, self.input, self.nodes, self.last = rng, kind, [], INPUT
        self.x = rng.integers(kind.low, kind.high + 1, (40, *kind.shape))

    def graph(self) -> Graph:
        return Graph(self.input, tuple(self.nodes), self.last)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.graph().types[self.last].shape

    def add(self, op: Op, *inputs: str) -> str:
        name = f"{type(op).__name__.lower()}{len(self.nodes)}"
        self.nodes.append(Node(name, op, inputs or (self.last,)))
        self.last = name
        return name

    def peers(self) -> list[str]:
        """Names of all values that can be added to the last one."""
        types = self.graph().types
        last = types[self.last]
        return [name for name, kind in types.items() if (kind.shape, kind.scale) == (last.shape, last.scale)]

    def integers(self, *shape: int, low: int = -2, high: int = 2) -> Integers:
        return self.rng.integers(low, high + 1, shape)

    def linear(self, outputs: int) -> None:
        self.add(Linear(self.integers(outputs, self.shape[0]), self.integers(outputs, low=-5, high=5), (0.5,)))

    def conv(self, outputs: int, stride: int, padding: int, groups: int) -> None:
        channels, height, width = self.shape
        groups = groups if channels % groups == 0 else 1
        kernel = (min(height + 2 * padding, int(self.rng.integers(1, 4))), min(width + 2 * padding, 2))
        weight = self.integers(outputs * groups, channels // groups, *kernel)
        bias = self.integers(outputs * groups, low=-3, high=3)
        self.add(Conv2d(weight, bias, (0.5,), (stride, 1), (padding, padding), groups=groups))

    def pool(self, kind: type[Sum] | type[Max]) -> None:
        _, height, width = self.shape
        self.add(kind((min(2, height), min(2, width)), (min(2, height), 1)))

    def activation(self, kind: str, bits: int) -> None:
        low, high = calibrated_ranges(self.graph(), self.x)[self.last]
        channels, levels = self.shape[0], (1 << bits) - 1
        if kind == "Sign":
            self.add(Sign(self.integers(channels, low=-2, high=2)))
        elif kind == "QuantRelu":
            step = max(1, (high - low) // (levels + 1))
            self.add(QuantRelu(np.arange(1, levels + 1) * step + self.integers(channels, 1)))
        elif kind == "Lookup":
            step = max(1, (high - low) // (levels + 1))
            self.add(QuantRelu(np.arange(1, levels + 1) * step + low))
            self.add(Lookup(self.integers(levels + 1, low=-3, high=3)))
        else:
            peak = max(abs(low), abs(high), 1)
            unit = 1 << 12
            coefficients = np.array([unit // 4, unit // 2, unit // (4 * peak) + 1])
            self.add(Polynomial(coefficients, 12, (1.0,)))


@st.composite
def graphs(draw: st.DrawFn, ops: frozenset[str] = EXACT_OPS, max_layers: int = 4, max_bits: int = 3) -> Graph:
    """A network of 1 to `max_layers` layers that uses only operations of `ops`.

    Images are 3 to 6 pixels wide and need not be square; activations have 1 to `max_bits` bits; a residual addition,
    pooling, stride, padding and groups appear at random. Thresholds follow the values seen on random inputs.
    """
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    activations = [kind for kind in ACTIVATIONS if kind in ops]
    image = draw(st.booleans())
    sides = draw(st.tuples(st.integers(1, 2), st.integers(3, 6), st.integers(3, 6)))
    shape = sides if image else (draw(st.integers(2, 9)),)
    low = draw(st.sampled_from([0, -2]))
    net = _Builder(rng, TensorType(shape, low, 3, (0.25,)))
    for _ in range(draw(st.integers(1, max_layers)) - 1):
        if len(net.shape) == 3:
            net.conv(draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(0, 1)), draw(st.integers(1, 2)))
        else:
            net.linear(draw(st.integers(2, 6)))
        net.activation(draw(st.sampled_from(activations)), draw(st.integers(1, max_bits)))
        extra = draw(st.sampled_from(["none", "residual", "Sum", "Max"]))
        if extra == "residual":
            gain = draw(st.integers(1, 2))
            net.add(Add((gain, gain)), net.last, draw(st.sampled_from(net.peers())))
        elif extra in ops and len(net.shape) == 3:
            net.pool(Sum if extra == "Sum" else Max)
    if len(net.shape) == 3:
        net.add(Reshape((int(np.prod(net.shape)),)))
    net.linear(draw(st.integers(1, 4)))
    return net.graph()


def inputs_for(graph: Graph, n: int, seed: int = 0) -> Integers:
    """Random integers over the whole range of the graph's input, shape `(n, *shape)`."""
    rng = np.random.default_rng(seed)
    return rng.integers(graph.input.low, graph.input.high + 1, (n, *graph.input.shape))
