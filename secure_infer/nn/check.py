"""Lists everything in a network that a protocol can't evaluate, each thing with its fix; one rule a kind of layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from secure_infer.errors import Problem, UsageError
from secure_infer.nn.integers import ShiftNorm2d

PROTOCOLS = ("clear", "tfhe", "ckks", "mpc", "mpc-fss", "mpc-spu")

Finding = tuple[str, str]
Rule = Callable[[Any, str], Iterator[Finding]]

_RULES: dict[str, Rule] = {}
_FIX = "secure_infer.fix(net, 'ckks'), then train or fine-tune."
_SHAPES = ("size", "dim", "numel", "ndimension")
_IDLE = ("contiguous", "clone", "to", "float", "double", "detach")
_REPLACED = {
    "PReLU": "use LeakyReLU; if it has one slope, secure_infer.fix(net, protocol) does so.",
    "RReLU": "replace it by LeakyReLU with secure_infer.fix(net, protocol).",
    "Conv1d": "use Conv2d on images of height 1.",
    "LayerNorm": "use BatchNorm1d, and train.",
    "GroupNorm": "use BatchNorm2d, and train.",
    "InstanceNorm2d": "use BatchNorm2d, and train.",
    "Embedding": "look it up on the client and send the vectors.",
    "AdaptiveMaxPool2d": "use MaxPool2d with a kernel of that size.",
    "DataParallel": "pass the network inside it: net.module.",
}
_ARITHMETIC = ("add", "iadd", "sub", "isub", "mul", "imul", "truediv", "itruediv", "div", "neg")
_SAME = {
    "clamp": "hardtanh",
    "clip": "hardtanh",
    "view": "flatten",
    "reshape": "flatten",
    "squeeze": "flatten",
    "unsqueeze": "flatten",
    "unflatten": "flatten",
    "pow": "square",
    "signlayer": "sign",
    "shiftnorm2d": "batchnorm2d",
}


def check(net: nn.Module, protocol: str, input_shape: tuple[int, ...] | None = None) -> list[Problem]:
    """List what a protocol can't evaluate in a network.

    Args:
        net: The network.
        protocol: "clear", "tfhe", "ckks", "mpc", "mpc-fss" or "mpc-spu".
        input_shape: Shape of one input, `(features,)` or `(channels, height, width)`; with it, shapes are checked too.

    Returns:
        All problems, in order of evaluation. None, with `input_shape` given, means that each layer can be evaluated;
        `compile` may still find that values grow too wide, or constants and scales that do not fit their layer.

    Raises:
        UsageError: An unknown protocol, something that is not a torch network, or a shape that is not a tuple.
    """
    require_protocol(protocol)
    if input_shape is not None and not isinstance(input_shape, tuple | list):
        raise UsageError(f"Expected input_shape={input_shape!r} as a tuple, such as (1, 28, 28).")
    if not isinstance(net, nn.Module):
        raise UsageError(f"Expected a torch.nn.Module, got {type(net).__name__}.")
    training = net.training
    net.eval()
    try:
        traced = trace(net)
        data = _reading_input(traced)
        problems = [problem for node in data for problem in _problems(node, data, traced, protocol)]
        problems += _interface_problems(traced, data)
        return problems + (_shape_problems(traced, net, input_shape) if input_shape is not None else [])
    except _Untraceable as error:
        return [
            Problem(
                type(net).__name__,
                f"It can't be traced: {error}",
                "write forward() without control flow that depends on data (if, while, int(x)).",
            )
        ]
    finally:
        net.train(training)


def require_protocol(protocol: str) -> None:
    """Raise a UsageError if there is no such protocol."""
    if protocol not in PROTOCOLS:
        raise UsageError(
            f"There is no protocol {protocol!r}.",
            [Problem("protocol", f"Expected one of {', '.join(PROTOCOLS)}.", "check the spelling.")],
        )


class _Untraceable(Exception):
    """The forward method depends on data."""


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = m.__module__.startswith(("torch.nn", "torch.ao.nn", "brevitas.")) and not isinstance(m, nn.Sequential)
        return own or isinstance(m, ShiftNorm2d) or _exported(m) is not None


def trace(net: nn.Module) -> fx.GraphModule:
    """The network as an fx graph of layers; a single layer counts as a network of one."""
    tracer = _Tracer()
    try:
        root = nn.Sequential(net) if tracer.is_leaf_module(net, "") else net
        return fx.GraphModule(root, tracer.trace(root))  # type: ignore[no-any-return]
    except Exception as error:
        raise _Untraceable(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}") from error


def _reading_input(traced: fx.GraphModule) -> list[fx.Node]:
    """The nodes that depend on the input; the others are constants and shapes, computed in the clear."""
    found: dict[fx.Node, None] = {}
    for node in traced.graph.nodes:
        shape = _name(node) in _SHAPES or (_name(node) == "getattr" and node.args[1] not in ("T", "mT", "H", "value"))
        if node.op == "placeholder" or (not shape and any(source in found for source in node.all_input_nodes)):
            found[node] = None
    return list(found)


def _name(node: fx.Node) -> str:
    """Name of the function or method that a node calls; empty for layers."""
    if node.op not in ("call_function", "call_method"):
        return ""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def _interface_problems(traced: fx.GraphModule, data: list[fx.Node]) -> list[Problem]:
    problems = []
    inputs = [node for node in data if node.op == "placeholder" and node.users]
    if len(inputs) > 1:
        problems.append(Problem("input", f"The network reads {len(inputs)} tensors.", "give it one input tensor."))
    output = next(node for node in traced.graph.nodes if node.op == "output").args[0]
    if not isinstance(output, fx.Node) or output not in data:
        problems.append(Problem("output", "The network returns something else than one tensor.", "return one tensor."))
    return problems


def _arithmetic(node: fx.Node, data: list[fx.Node]) -> Iterator[Finding]:
    name, operands = _name(node).removeprefix("i"), [arg for arg in node.args if arg in data]
    square = name == "mul" and len(set(operands)) == 1
    if name in ("mul", "truediv", "div") and len(operands) > 1 and not square:
        yield "It multiplies or divides two values.", "only x * x is possible."
    elif name in ("truediv", "div") and node.args[0] not in data:
        yield "It divides by a value.", "divide by constants only."
    if node.kwargs.get("alpha", 1) != 1 or node.kwargs.get("rounding_mode") is not None:
        yield "It has options beyond its two operands.", "use plain arithmetic."


def _exported(layer: nn.Module) -> str | None:
    """The kind of a layer that tells its integer or polynomial form itself."""
    kinds = {"sign_scale": "sign", "top_level": "relu", "polynomial": "square", "integer_weight": "linear"}
    return next((kind for method, kind in kinds.items() if hasattr(layer, method)), None)


def _kind(layer: nn.Module) -> str:
    exported = _exported(layer)
    if exported:
        return "conv2d" if exported == "linear" and isinstance(layer, nn.Conv2d) else exported
    return type(layer).__name__.lower()


def _problems(node: fx.Node, data: list[fx.Node], traced: fx.GraphModule, protocol: str) -> Iterator[Problem]:
    if node.op == "call_module":
        layer: Any = traced.get_submodule(str(node.target))
        kind, where, shown = _kind(layer), str(node.target), type(layer).__name__
    elif node.op in ("call_function", "call_method"):
        shown = _name(node)
        kind, where, layer = shown.lower().strip("_").replace("_", ""), node.name, node
        if shown in _ARITHMETIC:
            yield from (Problem(where, what, fix) for what, fix in _arithmetic(node, data))
            return
        attribute = shown == "getattr" and node.args[1] == "value"  # of a Brevitas tensor
        if attribute or shown in _IDLE or (shown == "getitem" and _returns_several(node.args[0], traced)):
            return
    else:
        return
    kind = _SAME.get(kind, kind)
    if kind not in _RULES:
        yield Problem(
            where,
            f"There is no encrypted form of {shown}.",
            _REPLACED.get(type(layer).__name__)
            or "use Linear, Conv2d, BatchNorm, pooling, ReLU-like and polynomial layers; or compute it on the "
            "client, before or after the encrypted part.",
        )
        return
    if kind in ("softmax", "logsoftmax") and [user.op for user in node.users] != ["output"]:
        yield Problem(where, "A softmax is possible at the very end only.", "remove it, or apply it after decryption.")
    for what, fix in _RULES[kind](layer, protocol):
        yield Problem(where, what, fix)


def _returns_several(node: Any, traced: fx.GraphModule) -> bool:
    """Whether a node is no kind of layer known here, or takes a part of one: it has the blame, not its parts."""
    if node.op == "placeholder":
        return False
    if node.op == "call_module":
        return _kind(traced.get_submodule(str(node.target))) not in _RULES
    return _name(node) not in (*_ARITHMETIC, *_IDLE) and _SAME.get(_name(node), _name(node)) not in _RULES


def _shape_problems(traced: fx.GraphModule, net: nn.Module, shape: tuple[int, ...]) -> list[Problem]:
    """Run two inputs of zeros and see whether the shapes at each layer can be evaluated."""
    parameter = next(net.parameters(), torch.zeros(()))
    x = torch.zeros((2, *shape), dtype=parameter.dtype, device=parameter.device)
    runner = _Shapes(traced)
    try:
        with torch.no_grad():
            runner.run(x)
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        return [Problem("input", f"The network refuses the shape {shape}: {first}", "give the shape of one input.")]
    return runner.problems


class _Shapes(fx.Interpreter):
    """Runs a network and looks at shapes on the way."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.problems: list[Problem] = []

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        layer = self.fetch_attr(str(target))
        result = super().call_module(target, args, kwargs)
        x = args[0] if args and isinstance(args[0], Tensor) else None
        if x is None:
            return result
        if isinstance(layer, nn.Linear) and x.dim() != 2:
            self.problems.append(Problem(str(target), f"It reads shape {tuple(x.shape[1:])}.", "flatten first."))
        if getattr(layer, "ceil_mode", False) and tuple(result.shape[2:]) != _floored(layer, tuple(x.shape[2:])):
            self.problems.append(
                Problem(str(target), "Its last window reaches over the edge (ceil_mode).", "use ceil_mode=False.")
            )
        if isinstance(layer, nn.AdaptiveAvgPool2d) and any(
            a % b for a, b in zip(x.shape[-2:], result.shape[-2:], strict=True)
        ):
            self.problems.append(
                Problem(
                    str(target),
                    f"{tuple(x.shape[-2:])} does not divide into {tuple(result.shape[-2:])}.",
                    "use an output size that divides the image.",
                )
            )
        return result


def _floored(layer: Any, image: tuple[int, ...]) -> tuple[int, ...]:
    """The image that a pooling would return with `ceil_mode=False`."""
    kernel, stride, padding = (
        (v, v) if isinstance(v, int) else v for v in (layer.kernel_size, layer.stride, layer.padding)
    )
    return tuple((s + 2 * p - k) // t + 1 for s, k, t, p in zip(image, kernel, stride, padding, strict=True))


def _rule(*kinds: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(kinds, rule))
        return rule

    return register


@_rule(
    "linear",
    "quantlinear",
    "flatten",
    "identity",
    "dropout1d",
    "alphadropout",
    "featurealphadropout",
    "quantdropout",
    "adaptiveavgpool2d",
    "softmax",
    "logsoftmax",
    "mean",
)
def _always(layer: Any, protocol: str) -> Iterator[Finding]:
    yield from ()


@_rule("dropout", "dropout2d")
def _dropout(layer: Any, protocol: str) -> Iterator[Finding]:
    if isinstance(layer, fx.Node) and layer.kwargs.get("training", (*layer.args, True, True, True)[2]):
        yield "It drops values even in evaluation.", "pass training=self.training."


@_rule("square")
def _power(layer: Any, protocol: str) -> Iterator[Finding]:
    if isinstance(layer, fx.Node) and _name(layer) == "pow" and layer.args[1:] != (2,):
        yield f"It takes the power {layer.args[1:]}.", "use a PolynomialActivation."


@_rule("conv2d", "quantconv2d")
def _convolution(layer: Any, protocol: str) -> Iterator[Finding]:
    mode = getattr(layer, "padding_mode", "zeros")
    if mode != "zeros":
        yield f"Its padding_mode is {mode!r}.", "use padding_mode='zeros'."
    if getattr(layer, "padding", 0) == "same" and any(
        d > 1 and d * (k - 1) % 2 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)
    ):
        yield "padding='same' with an even, dilated kernel needs uneven padding.", "use an odd kernel."


@_rule("batchnorm1d", "batchnorm2d", "batchnorm")
def _normalization(layer: Any, protocol: str) -> Iterator[Finding]:
    if isinstance(layer, nn.Module) and layer.running_mean is None:
        yield "It keeps no running statistics.", "use track_running_stats=True and train."


@_rule("avgpool2d")
def _average(layer: Any, protocol: str) -> Iterator[Finding]:
    padded = getattr(layer, "padding", 0) not in (0, (0, 0))
    if isinstance(layer, nn.Module) and padded and not layer.count_include_pad:
        yield "It does not count its padding.", "use count_include_pad=True or padding=0."


@_rule("maxpool2d", "quantmaxpool2d")
def _maximum(layer: Any, protocol: str) -> Iterator[Finding]:
    if protocol == "ckks":
        yield "CKKS can't compare, so there is no maximum.", f"replace it by AvgPool2d with {_FIX}"
    if isinstance(layer, nn.Module) and (layer.dilation not in (1, (1, 1)) or layer.return_indices):
        yield "It is dilated or returns indices.", "use dilation=1 and return_indices=False."


@_rule(
    "relu",
    "relu6",
    "hardtanh",
    "sigmoid",
    "tanh",
    "leakyrelu",
    "elu",
    "selu",
    "celu",
    "softplus",
    "hardsigmoid",
    "softsign",
    "logsigmoid",
    "silu",
    "gelu",
    "mish",
    "hardswish",
    "quantrelu",
    "quantidentity",
    "quanthardtanh",
    "quanttanh",
    "quantsigmoid",
)
def _activation(layer: Any, protocol: str) -> Iterator[Finding]:
    if protocol == "ckks":
        yield (
            "CKKS adds and multiplies only: it has no such activation.",
            f"replace it by a PolynomialActivation with {_FIX}",
        )


@_rule("sign")
def _sign(layer: Any, protocol: str) -> Iterator[Finding]:
    if isinstance(layer, fx.Node):
        yield "It is 0 at 0, which no step of two levels is.", "use secure_infer.nn.Sign."
    if protocol == "ckks":
        yield "CKKS can't compare, and no polynomial is near a sign.", "train with a PolynomialActivation in its place."
