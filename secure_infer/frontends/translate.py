"""The walk over a traced network that makes a graph, and the report of all that stands in its way."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn

from secure_infer.errors import Problem, UnsupportedNetwork
from secure_infer.frontends import activation, pooling
from secure_infer.frontends.builder import Builder, Value
from secure_infer.frontends.context import HANDLERS, Context, Precision, data_inputs, to_numpy
from secure_infer.frontends.functions import as_layer, function_name
from secure_infer.frontends.quantize import Grid, input_grid
from secure_infer.frontends.trace import data_nodes, handler_name, is_tensor, prepare, record, require_same, trace
from secure_infer.graph import INPUT, Graph, TensorType, interpret, interpret_real
from secure_infer.graph.graph import as_array
from secure_infer.graph.types import TypeProblem

_LOG = logging.getLogger(__name__)
_UNKNOWN_FIX = "use a supported layer: see secure_infer.check and the table of layers in the README."


def to_graph(
    net: nn.Module, calibration: npt.ArrayLike, protocol: str, n_bits: int | Mapping[str, int] | None = None
) -> Graph:
    """Translate a torch network to an integer graph.

    Layers that are quantized already (binarized, Brevitas) keep their integers and are translated exactly: on inputs
    of the graph's grid, the graph's result is the network's in evaluation mode. Float layers are quantized after
    training, with ranges from the calibration data. Batch-norm, biases and averages are never rounded.

    Args:
        net: The network; it is copied, not changed.
        calibration: Typical inputs as reals, shape `(n, features)` or `(n, channels, height, width)`.
        protocol: "clear", "tfhe", "ckks" or "mpc".
        n_bits: Bits for what the network does not quantize itself: one number, or some of `input`, `weights` and
            `activations`.

    Returns:
        The graph; its output times its scale plus its offset approximates the network's output. A softmax at the very
        end is left to the client: the output is then what the softmax would read.

    Raises:
        UsageError: An unknown protocol, or bits out of range.
        InvalidInput: Calibration data that the network can't read.
        UnsupportedNetwork: Layers that can't be translated: all of them, each with its fix.
    """
    precision = Precision.of(protocol, n_bits)
    copied, x = prepare(net, as_array(calibration, "calibration"))
    module = trace(copied)
    results = record(module, x)
    data = data_nodes(module, results)
    layers = _layers(module, data, results, protocol)
    require_same(copied, results, x)
    graph = _walk(module, data, layers, x, protocol, precision)
    _log_agreement(graph, module, x)
    return graph


def _layers(
    module: fx.GraphModule, data: Mapping[fx.Node, Any], results: Mapping[fx.Node, Any], protocol: str
) -> dict[fx.Node, nn.Module]:
    """The layer that each node applies; every node that stands for none is a problem."""
    layers: dict[fx.Node, nn.Module] = {}
    problems = []
    constants = {node: value for node, value in results.items() if node not in data}
    for node in data:
        part = function_name(node) == "getitem" and not all(is_tensor(data[n]) for n in data_inputs(node, data))
        if node.op == "placeholder" or part:
            # A part of several tensors needs no blame: the layer that returns several has it.
            continue
        try:
            is_module = node.op == "call_module"
            layer = module.get_submodule(str(node.target)) if is_module else as_layer(node, data, constants)
            if layer is None or handler_name(layer) is None:
                what = type(layer).__name__ if layer is not None else f"{function_name(node)}()"
                raise TypeProblem(f"There is no integer form of {what}.", _UNKNOWN_FIX)
            activation.require_possible(layer, protocol)
            layers[node] = layer
        except TypeProblem as problem:
            problems.append(Problem(_where(node), problem.what, problem.fix))
    inputs = [node for node in module.graph.nodes if node.op == "placeholder" and node in data]
    if len(inputs) != 1:
        problems.append(Problem("input", f"The network reads {len(inputs)} tensors.", "give it one input tensor."))
    if problems:
        raise UnsupportedNetwork(f"The network can't run under {protocol}.", problems)
    return layers


def _walk(
    module: fx.GraphModule,
    data: Mapping[fx.Node, Any],
    layers: dict[fx.Node, nn.Module],
    x: npt.NDArray[np.float64],
    protocol: str,
    precision: Precision,
) -> Graph:
    source = next(node for node in data if node.op == "placeholder")
    grid, quantized = _input(source, layers, x, precision)
    builder = Builder(TensorType(tuple(x.shape[1:]), grid.low, grid.high, (grid.scale,)))
    ctx = Context(builder, protocol, precision, {}, data, layers, {})
    ctx.values[source] = Value(INPUT, np.array([grid.scale]), np.zeros(1))
    problems: list[Problem] = []
    for node, layer in layers.items():
        if len(data_inputs(node, ctx.values)) < len(data_inputs(node, data)):
            continue
        try:
            ctx.values[node] = ctx.value(node) if node is quantized else _apply(ctx, node, layer)
        except TypeProblem as problem:
            problems.append(Problem(_where(node), problem.what, problem.fix))
            continue
        if len(node.users) > 1:
            builder.shared.add(ctx.values[node].name)
    output = next(node for node in module.graph.nodes if node.op == "output").args[0]
    if not isinstance(output, fx.Node) or output not in data:
        problems.append(Problem("output", "The network returns something else than one tensor.", "return one tensor."))
    if problems or not isinstance(output, fx.Node):
        raise UnsupportedNetwork(f"The network can't run under {protocol}.", problems)
    last = builder.positive(ctx.values[output], "output") if protocol != "ckks" else ctx.values[output]
    return builder.graph(builder.settle(last, "output"))


def _apply(ctx: Context, node: fx.Node, layer: nn.Module) -> Value:
    value = HANDLERS[str(handler_name(layer))](ctx, node, layer)
    shape, expected = ctx.shape(value), ctx.real(node).shape[1:]
    if shape != expected:
        raise TypeProblem(
            f"Its shape would be {shape}, in torch it is {expected}.",
            "use ceil_mode=False, and shapes that keep the batch axis first.",
        )
    return value


def _input(
    source: fx.Node, layers: Mapping[fx.Node, nn.Module], x: npt.NDArray[np.float64], precision: Precision
) -> tuple[Grid, fx.Node | None]:
    """The input's grid; if the network quantizes its input itself, that grid, and the layer which it makes needless."""
    node, layer = _first_layer(source, layers)
    if type(layer).__name__ == "QuantIdentity" and layer.is_act_quant_enabled and not layer.is_input_quant_enabled:
        grid, _ = activation.proxy_grid(layer.act_quant)
        units = np.rint(x / grid.scale)
        bipolar = (grid.low, grid.high) == (-1, 1) and not activation.has_zero(layer.act_quant)
        if not bipolar and units.min() >= grid.low - 1 and units.max() <= grid.high + 1:
            return grid, node
        if not bipolar:
            return Grid(grid.scale, int(min(units.min(), 0)), int(max(units.max(), 1))), None
    return input_grid(x, precision.input), None


def _first_layer(source: fx.Node, layers: Mapping[fx.Node, nn.Module]) -> tuple[fx.Node, Any]:
    """The first layer that changes values rather than shapes, if it alone reads the input."""
    node, layer = source, None
    while len(node.users) == 1 and (layer is None or handler_name(layer) in pooling.MOVERS):
        node = next(iter(node.users))
        layer = layers.get(node)
        if layer is None:
            break
    return node, layer


def _where(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_module" else node.name


def _log_agreement(graph: Graph, module: fx.GraphModule, x: npt.NDArray[np.float64]) -> None:
    """Log how often the graph's greatest output is the network's, on the calibration data."""
    x = x[:256]
    with torch.no_grad():
        expected = to_numpy(module(torch.tensor(x))).reshape(len(x), -1)
    evaluate: Any = interpret_real if "Polynomial" in graph.kinds else interpret
    found = graph.dequantize(evaluate(graph, graph.quantize(x))).reshape(len(x), -1)
    agreement = float((found.argmax(axis=1) == expected.argmax(axis=1)).mean())
    error = float(np.abs(found - expected).max(initial=0.0))
    _LOG.info(
        "Graph of %d nodes: same greatest output as the network on %.1f %% of %d calibration inputs, greatest "
        "difference %.3g.",
        len(graph.nodes),
        100 * agreement,
        len(x),
        error,
    )
