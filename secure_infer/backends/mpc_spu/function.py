"""The plan as a JAX function of shares of input and weights, and as what SPU runs. Needs SPU, which brings JAX."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from secure_infer.backends.mpc_spu.plan import Plan, Step
from secure_infer.graph.graph import INPUT
from secure_infer.graph.types import Pair, Shape

OUTPUT = "output"


def function(plan: Plan) -> Callable[..., Any]:
    """The network as a JAX function of a batch, shape `(n, *input shape)`, and of the plan's secrets in their order."""

    def network(x: Any, *secrets: Any) -> Any:
        known, values = dict(zip(plan.secrets, secrets, strict=True)), {INPUT: x}
        for step in plan.steps:
            own = {name: known[f"{step.name}.{name}"] for name in step.secrets}
            values[step.name] = _apply(step, [values[name] for name in step.inputs], own)
        return values[plan.output]

    return network


def compiled(plan: Plan, batch: int) -> Any:
    """The network for batches of a size, as SPU's executable; the same at all parties.

    It reads the variables `input` and those named after the plan's secrets, and writes `output`.
    """
    import jax
    from spu.libspu import Visibility
    from spu.utils import frontend

    jax.config.update("jax_enable_x64", plan.ring == 64)
    shapes = {INPUT: (batch, *plan.input_shape), **plan.secrets}
    arguments = [np.zeros(shape, dtype=f"i{plan.ring // 8}") for shape in shapes.values()]
    visible = [Visibility.VIS_SECRET] * len(shapes)
    names, kind = list(shapes), frontend.Kind.JAX
    return frontend.compile(kind, function(plan), arguments, {}, names, visible, lambda flat: [OUTPUT])[0]


def _apply(step: Step, inputs: Sequence[Any], own: dict[str, Any]) -> Any:
    x, p = inputs[0], step.parameters
    match step.kind:
        case "Linear":
            return x @ own["weight"].T + own["bias"]
        case "Conv2d":
            return _convolve(step, x, own)
        case "Add":
            return p["gains"][0] * x + p["gains"][1] * inputs[1]
        case "Sum":
            return sum(_places(x, p["kernel"], p["stride"], p["padding"]))
        case "Max":
            # Relative to the least value, so that the zeros outside the image never win.
            return _greatest(_places(x - own["fill"], p["kernel"], p["stride"], p["padding"])) + own["fill"]
        case "Compare":
            steps = _by_channel(own["thresholds"], step.shape)
            return p["gain"] * (x[:, None] >= steps).astype(x.dtype).sum(axis=1, dtype=x.dtype) + own["base"]
        case "Lookup":
            return _look_up(x - own["fill"], _by_channel(own["table"], step.shape))
        case "Polynomial":
            value = _horner(_by_channel(own["coefficients"], step.shape), x)
            # SPU leaves what it shifted in boolean shares; a shared zero makes them arithmetic ones.
            return (value >> p["shift"]) + own["base"] if p["shift"] else value
        case _:
            return x.reshape(len(x), *step.shape)


def _by_channel(rows: Any, shape: Shape) -> Any:
    """Rows `(channels | 1, k)`, each of the k columns broadcasting against `shape`: `(k, channels | 1, 1, ...)`."""
    return rows.T.reshape((rows.shape[1], rows.shape[0]) + (1,) * (len(shape) - 1))


def _places(x: Any, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair = (1, 1)) -> list[Any]:
    """For each place in a window, what lies there in every window: shape `(n, channels, height, width)`.

    Slices alone: SPU's own gathering of secret values ends its process.
    """
    from jax import numpy as jnp

    x = jnp.pad(x, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2))
    ends = [x.shape[2 + axis] - dilation[axis] * (kernel[axis] - 1) for axis in (0, 1)]
    return [
        x[:, :, i : i + ends[0] : stride[0], j : j + ends[1] : stride[1]]
        for i in range(0, dilation[0] * kernel[0], dilation[0])
        for j in range(0, dilation[1] * kernel[1], dilation[1])
    ]


def _convolve(step: Step, x: Any, own: dict[str, Any]) -> Any:
    from jax import numpy as jnp

    p, weight = step.parameters, own["weight"]
    outputs, inputs, *kernel = weight.shape
    # (n, channels, places, height, width)
    columns = jnp.stack(_places(x, tuple(kernel), p["stride"], p["padding"], p["dilation"]), axis=2)
    channels = outputs // p["groups"]
    parts = []
    for group in range(p["groups"]):
        part = columns[:, group * inputs : (group + 1) * inputs].reshape(len(x), -1, math.prod(step.shape[1:]))
        rows = weight[group * channels : (group + 1) * channels].reshape(channels, -1)
        parts.append(part.transpose(0, 2, 1) @ rows.T)
    product = jnp.concatenate(parts, axis=2).transpose(0, 2, 1)
    return product.reshape(len(x), *step.shape) + own["bias"].reshape(-1, 1, 1)


def _greatest(places: Sequence[Any]) -> Any:
    """The element-wise maximum, by a tree: one comparison after another as seldom as possible."""
    from jax import numpy as jnp

    left = jnp.stack(places)
    while len(left) > 1:
        half = len(left) // 2
        left = jnp.concatenate([jnp.maximum(left[:half], left[half : 2 * half]), left[2 * half :]])
    return left[0]


def _look_up(index: Any, table: Any) -> Any:
    """The first entry, and each step of the table that lies at or below an index from zero on."""
    entries = len(table)
    if entries == 1:
        return 0 * index + table[0]
    places = np.arange(1, entries, dtype=index.dtype).reshape((-1,) + (1,) * (index.ndim - 1))
    reached = (index[:, None] >= places).astype(index.dtype)
    return (reached * table[1:]).sum(axis=1, dtype=index.dtype) + table[0]


def _horner(coefficients: Any, x: Any) -> Any:
    value = 0 * x + coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        value = value * x + coefficient
    return value
