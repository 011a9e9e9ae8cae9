"""Networks of random weights, for latency only: shapes that others publish figures for and nobody here trains.

Thresholds are set from random images, so that every level of an activation occurs; what the network says of an image
means nothing, and no record states an accuracy for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from secure_infer.bench.contender import Subject
from secure_infer.errors import Problem, UsageError
from secure_infer.graph import Conv2d, Graph, Linear, Max, Node, QuantRelu, Reshape, Sign, TensorType, interpret
from secure_infer.graph.graph import INPUT
from secure_infer.graph.ops import Op
from secure_infer.graph.types import Integers, Pair, Shape

PREFIX = "untrained-"
_IMAGES = 4
_SEED = 0
_WEIGHT = 3
_LEVELS = 3
_CIFAR, _TINY = (3, 32, 32), (3, 64, 64)


class _Stack:
    """Layers one after another; each is run on a few images, from whose sums its thresholds are taken."""

    def __init__(self, shape: Shape) -> None:
        self._rng = np.random.default_rng(_SEED)
        self.kind = TensorType(shape, 0, 7, (1 / 7,))
        self._x: Integers = self._rng.integers(0, 8, (_IMAGES, *shape))
        self._nodes: list[Node] = []
        self._type = self.kind

    def _add(self, name: str, op: Op) -> None:
        name = f"{name}{len(self._nodes)}"
        self._nodes.append(Node(name, op, (self._nodes[-1].name if self._nodes else INPUT,)))
        alone = Graph(self._type, (Node(name, op, (INPUT,)),), name)
        self._x, self._type = interpret(alone, self._x), alone.types[name]

    def weights(self, *shape: int, binary: bool = False) -> Integers:
        """Uniform integers without a mean: -3 ... 3, or signs."""
        if binary:
            return self._rng.choice(np.array([-1, 1]), shape)
        return self._rng.integers(-_WEIGHT, _WEIGHT + 1, shape)

    def conv(self, channels: int, kernel: int, stride: int = 1, padding: int = 0) -> None:
        """A convolution."""
        weight = self.weights(channels, self._type.shape[0], kernel, kernel)
        bias = np.zeros(channels, dtype=np.int64)
        self._add("conv", Conv2d(weight, bias, (1.0,), (stride, stride), (padding, padding)))

    def linear(self, outputs: int, binary: bool = False) -> None:
        """A linear layer, of whatever shape its input is."""
        if len(self._type.shape) > 1:
            self._add("flat", Reshape((self._type.size,)))
        weight = self.weights(outputs, self._type.size, binary=binary)
        self._add("linear", Linear(weight, np.zeros(outputs, dtype=np.int64)))

    def pool(self, kernel: Pair, stride: Pair) -> None:
        """A maximum over windows."""
        self._add("pool", Max(kernel, stride))

    def relu(self) -> None:
        """A ReLU of four levels: its thresholds leave half of the sums at zero."""
        steps = np.quantile(self._x, [0.5, 0.7, 0.85][:_LEVELS]).astype(np.int64)
        self._add("relu", QuantRelu(steps))

    def sign(self) -> None:
        """A sign."""
        self._add("sign", Sign(np.zeros(1, dtype=np.int64)))

    def graph(self) -> Graph:
        """The network."""
        return Graph(self.kind, tuple(self._nodes), self._nodes[-1].name)


def alexnet(image: Shape, classes: int, hidden: int, strided: bool) -> Graph:
    """AlexNet as measured by Falcon (Wagh et al., PoPETs 2021), without its normalizations.

    Args:
        image: Channels, height and width.
        classes: Outputs.
        hidden: Neurons of each of two hidden layers.
        strided: Whether the first convolution has a stride of 4 and much padding, as for CIFAR-10, or a stride of 2.
    """
    stack = _Stack(image)
    stack.conv(96, 11, 4, 9) if strided else stack.conv(96, 7, 2, 1)
    stack.pool((3, 3), (2, 2))
    stack.relu()
    stack.conv(256, 5, 1, 1 if strided else 2)
    stack.pool((2, 2), (1, 1)) if strided else stack.pool((3, 3), (2, 2))
    stack.relu()
    for channels in (384, 384, 256):
        stack.conv(channels, 3, 1, 1)
        stack.relu()
    return _classified(stack, hidden, classes)


def vgg16(image: Shape, classes: int, hidden: int) -> Graph:
    """VGG-16 (Simonyan and Zisserman, ICLR 2015, configuration D) with maxima before activations.

    Args:
        image: Channels, height and width.
        classes: Outputs.
        hidden: Neurons of each of two hidden layers.
    """
    stack = _Stack(image)
    for channels, convolutions in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for index in range(convolutions):
            stack.conv(channels, 3, 1, 1)
            if index == convolutions - 1:
                stack.pool((2, 2), (2, 2))
            stack.relu()
    return _classified(stack, hidden, classes)


def binarized_mlp(sizes: Sequence[int]) -> Graph:
    """Signs of signed sums; `sizes` are those of the input, the hidden layers and the output."""
    stack = _Stack((sizes[0],))
    for size in sizes[1:-1]:
        stack.linear(size, binary=True)
        stack.sign()
    stack.linear(sizes[-1], binary=True)
    return stack.graph()


def _classified(stack: _Stack, hidden: int, classes: int) -> Graph:
    for _ in range(2):
        stack.linear(hidden)
        stack.relu()
    stack.linear(classes)
    return stack.graph()


GRAPHS: Mapping[str, Callable[[], Graph]] = {
    "alexnet-cifar10": lambda: alexnet(_CIFAR, 10, 256, strided=True),
    "vgg16-cifar10": lambda: vgg16(_CIFAR, 10, 256),
    "alexnet-64x64-200": lambda: alexnet(_TINY, 200, 1024, strided=False),
    "vgg16-64x64-200": lambda: vgg16(_TINY, 200, 512),
    "mlp-bnn-4096": lambda: binarized_mlp([784, 4096, 4096, 4096, 10]),
}
"""By name, without the prefix; the last has the shape of the binarized network in MPyC's demonstration."""


def is_untrained(name: str) -> bool:
    """Whether a model's name says that its weights are random."""
    return name.startswith(PREFIX)


def untrained(name: str) -> Subject:
    """A network of random weights with random images, whose classes are those that the network itself gives.

    Args:
        name: `PREFIX` and one of `GRAPHS`.

    Raises:
        UsageError: There is no such network.
    """
    if name.removeprefix(PREFIX) not in GRAPHS:
        known = ", ".join(PREFIX + known for known in GRAPHS)
        raise UsageError(
            f"There is no network {name!r}.", [Problem("model", f"Expected one of {known}.", "correct the name.")]
        )
    graph = GRAPHS[name.removeprefix(PREFIX)]()
    x = np.random.default_rng(_SEED + 1).random((_IMAGES, *graph.input.shape))
    y = graph.dequantize(interpret(graph, graph.quantize(x))).argmax(axis=1)
    return Subject(name, graph, x, x, y, trained=False)
