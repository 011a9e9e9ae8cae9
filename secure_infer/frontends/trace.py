"""A torch network as a list of layers: symbolic trace, and a run on the calibration data."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from secure_infer.errors import InvalidInput, Problem, SecureInferError, UnsupportedNetwork
from secure_infer.frontends.context import HANDLERS, IntegerWeight, LevelsLayer, PolynomialLayer, SignLayer, to_numpy

_SAMPLES = 512
_COMPARED = 32
_TRACE_FIX = (
    "write forward() without data-dependent control flow (if, while, int(x)), or wrap the part that can be "
    "evaluated in a module of its own."
)


def handler_name(layer: nn.Module) -> str | None:
    """The name under which a layer's handler is registered; None if there is none."""
    if isinstance(layer, SignLayer):
        return "SignLayer"
    if isinstance(layer, LevelsLayer):
        return "LevelsLayer"
    if isinstance(layer, PolynomialLayer):
        return "PolynomialLayer"
    if isinstance(layer, IntegerWeight):
        return "Conv2d" if isinstance(layer, nn.Conv2d) else "Linear"
    for kind in type(layer).__mro__:
        # A subclass with a forward of its own computes something else, and is traced through.
        known = kind.__module__.startswith(("torch.nn.", "brevitas.", "secure_infer.frontends."))
        if known and kind.__name__ in HANDLERS and type(layer).forward is getattr(kind, "forward", None):
            return kind.__name__
    return None


class _Tracer(fx.Tracer):
    """Stops at layers that have a handler and at those of torch.nn and Brevitas; traces through all others."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is a layer of the trace."""
        own = m.__module__.startswith(("torch.nn", "torch.ao.nn", "brevitas."))
        return (own and not isinstance(m, nn.Sequential)) or handler_name(m) is not None


class _Recorder(fx.Interpreter):
    """Runs a traced network and keeps what each node computes."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.results: dict[fx.Node, Any] = {}
        self.overwritten: list[Problem] = []

    def run_node(self, n: fx.Node) -> Any:
        """Run one node; keep a copy of its result, since a later node may overwrite it."""
        for source in n.all_input_nodes:
            kept, now = self.results[source], self.env[source]
            if isinstance(now, Tensor) and not torch.equal(kept.nan_to_num(), now.nan_to_num()):
                what = f"It reads {source.name}, which was overwritten in place before."
                self.overwritten.append(Problem(n.name, what, "use inplace=False, and x = x + y instead of x += y."))
        result = super().run_node(n)
        self.results[n] = result.clone() if isinstance(result, Tensor) else result
        return result


def prepare(net: nn.Module, calibration: npt.NDArray[Any]) -> tuple[nn.Module, npt.NDArray[np.float64]]:
    """A copy of the network in evaluation mode and double precision, and the calibration data as float64.

    Raises:
        UnsupportedNetwork: Not a torch module, or one that can't be copied.
        InvalidInput: Calibration data that is not a batch of finite numbers.
    """
    if not isinstance(net, nn.Module):
        raise UnsupportedNetwork(
            "This is not a torch network.",
            [Problem("net", f"Expected a torch.nn.Module, got {type(net).__name__}.", "pass the module itself.")],
        )
    x = np.asarray(calibration)
    problems = []
    if x.dtype.kind not in "buif":
        problems.append(Problem("calibration", f"Expected numbers, got dtype {x.dtype}.", "pass a float array."))
    elif not np.isfinite(x).all():
        problems.append(Problem("calibration", "Some values are NaN or infinite.", "clean the data first."))
    if x.ndim not in (2, 4) or not len(x):
        problems.append(
            Problem(
                "calibration",
                f"Its shape is {x.shape}.",
                "pass a batch of some 100 typical inputs: (n, features) or (n, channels, height, width).",
            )
        )
    if problems:
        raise InvalidInput("The calibration data can't be used.", problems)
    try:
        copied = copy.deepcopy(net).cpu().eval().double()
    except Exception as error:
        raise UnsupportedNetwork(
            "The network can't be copied.",
            [Problem("net", f"{type(error).__name__}: {error}.", "call it on a freshly loaded network.")],
        ) from error
    return copied, x.astype(np.float64)


def trace(net: nn.Module) -> fx.GraphModule:
    """The network as an fx graph whose module calls are layers.

    Raises:
        UnsupportedNetwork: Control flow that depends on data.
    """
    tracer = _Tracer()
    try:
        root = nn.Sequential(net) if tracer.is_leaf_module(net, "") else net
        module: fx.GraphModule = fx.GraphModule(root, tracer.trace(root))
    except Exception as error:
        raise UnsupportedNetwork(
            "The network can't be traced.",
            [Problem(type(net).__name__, f"{type(error).__name__}: {_first_line(error)}", _TRACE_FIX)],
        ) from error
    inputs = [node.name for node in module.graph.nodes if node.op == "placeholder" and node.users]
    if len(inputs) > 1:
        raise UnsupportedNetwork(
            "The network reads more than one tensor.",
            [
                Problem(
                    "input", f"It reads {', '.join(inputs)}.", "wrap it in a module whose forward() takes one input."
                )
            ],
        )
    return module


def record(module: fx.GraphModule, x: npt.NDArray[np.float64]) -> dict[fx.Node, Any]:
    """What each node computes on (the first 512 of) the calibration data; two samples at least.

    Raises:
        InvalidInput: Data that the network refuses.
        UnsupportedNetwork: A value that is read after something overwrote it: a graph's values never change.
    """
    batch = np.concatenate([x, x]) if len(x) == 1 else x[:_SAMPLES]
    recorder = _Recorder(module)
    try:
        with torch.no_grad():
            recorder.run(torch.tensor(batch))
    except SecureInferError:
        raise
    except Exception as error:
        raise InvalidInput(
            "The network refuses the calibration data.",
            [
                Problem(
                    "calibration",
                    f"Shape {x.shape}: {_first_line(error)}",
                    "pass inputs of the shape that the network was trained on.",
                )
            ],
        ) from error
    if recorder.overwritten:
        raise UnsupportedNetwork("The network overwrites values that it reads later.", recorder.overwritten)
    return recorder.results


def require_same(net: nn.Module, results: dict[fx.Node, Any], x: npt.NDArray[np.float64]) -> None:
    """Raise if the trace computes something else than the network: a trace sees no work in place through an alias.

    Raises:
        UnsupportedNetwork: The results differ.
    """
    traced = next(value for node, value in results.items() if node.op == "output")
    if not is_tensor(traced):
        return
    with torch.no_grad():
        expected = to_numpy(net(torch.tensor(x[:_COMPARED])))
    if not np.allclose(to_numpy(traced)[: len(expected)], expected, rtol=1e-6, atol=1e-9, equal_nan=True):
        what = "Traced, it computes something else than when it runs."
        fix = "write x = x + y instead of x += y, and make no random choices in evaluation."
        raise UnsupportedNetwork("The network can't be traced.", [Problem(type(net).__name__, what, fix)])


def data_nodes(module: fx.GraphModule, results: dict[fx.Node, Any]) -> dict[fx.Node, Any]:
    """The nodes that depend on the input and are tensors, or several tensors, with what they computed."""
    found: dict[fx.Node, Any] = {}
    for node in module.graph.nodes:
        depends = node.op == "placeholder" or any(source in found for source in node.all_input_nodes)
        if depends and node.op != "output" and _holds_tensor(results.get(node)):
            found[node] = results[node]
    return found


def is_tensor(value: Any) -> bool:
    """Whether a result is one tensor, of torch or Brevitas."""
    return isinstance(value, Tensor) or isinstance(getattr(value, "value", None), Tensor)


def _holds_tensor(value: Any) -> bool:
    return is_tensor(value) or (isinstance(value, tuple | list) and any(map(_holds_tensor, value)))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
