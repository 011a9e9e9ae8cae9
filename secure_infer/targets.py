"""Where both halves meet: the same weights as targets of attacks - in torch, exact, simulated, and on ciphertexts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from secure_infer import backends, compiler
from secure_infer.attacks.base import Access, Answer, Bounds, Target
from secure_infer.attacks.networks import NetworkTarget, answer
from secure_infer.attacks.statistics import wilson
from secure_infer.errors import InvalidInput, Problem, UsageError
from secure_infer.graph import Graph, interpret
from secure_infer.graph.interpret import interpret_real

if TYPE_CHECKING:
    from secure_infer.client import Client

FORMS = ("float", "quantized", "binarized", "polynomial")
KINDS = (*FORMS, "simulated", "encrypted")
CALIBRATION = 1000
"""Training images that set the ranges."""
_PERMUTATIONS = 2000
_BATCH: Mapping[str, Mapping[str, Any]] = {"ckks": {"input_plan": "batch", "upload": "expanded"}}
"""Compile options by which thousands of inputs travel in one request at little more than the cost of one."""


class Plain(nn.Module):
    """A torch network whose output is a plain tensor; Brevitas layers may wrap it with its scale."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """`(n, *input shape)` to logits `(n, classes)`."""
        output: Any = self.net(x)
        result: Tensor = getattr(output, "value", output)
        return result


class Interpreted(nn.Module):
    """A graph's interpreter as a module without gradients.

    Args:
        graph: The network as integers.
        exact: Whether to evaluate in integers; otherwise over the reals, as CKKS does.
    """

    def __init__(self, graph: Graph, exact: bool = True) -> None:
        super().__init__()
        self.graph, self._evaluate = graph, interpret if exact else interpret_real

    def forward(self, x: Tensor) -> Tensor:
        """`(n, *input shape)` to logits `(n, classes)`."""
        if not len(x):
            return x.new_zeros(0, *self.graph.output_type.shape)
        units = self.graph.quantize(x.detach().cpu().numpy())
        return torch.from_numpy(self.graph.dequantize(self._evaluate(self.graph, units))).to(x)


class Simulated(nn.Module):
    """A compiled model with its protocol's errors drawn anew at each call, nothing encrypted; no gradients.

    Args:
        compiled: The model.
        seed: Of the errors, where the protocol's simulation takes one.
    """

    def __init__(self, compiled: compiler.Compiled, seed: int = 0) -> None:
        super().__init__()
        self._compiled, self._seed = compiled, seed

    def forward(self, x: Tensor) -> Tensor:
        """`(n, *input shape)` to logits `(n, classes)`."""
        if not len(x):
            return x.new_zeros(0, *self._compiled.interface.output.shape)
        self._seed += 1
        return torch.from_numpy(self._compiled.predict(x.detach().cpu().numpy(), "simulate", seed=self._seed)).to(x)


class Executed(Target):
    """A model on real ciphertexts, as its client meets it; the meter counts the bytes of all messages.

    Args:
        client: Connected to the servers, on this machine or elsewhere.
        name: What it is, for tables.
        access: LABEL, PROBABILITIES or LOGITS: what whoever holds the client passes on.
        budget: Queries that it answers; None for no limit.
        bounds: Of its inputs; the calibrated range if None. The client takes what is one unit outside that range.

    Raises:
        InvalidInput: White-box access, or outputs that are not one score a class.
    """

    def __init__(
        self,
        client: Client,
        name: str = "executed",
        access: Access = Access.LOGITS,
        budget: int | None = None,
        bounds: Bounds | None = None,
    ) -> None:
        interface = client.interface
        problems = []
        if access is Access.WHITE_BOX:
            problems.append(Problem("access", "Ciphertexts give no gradients.", "ask for LOGITS or less."))
        if len(interface.output.shape) != 1 or interface.output.shape[0] < 2:
            what = f"Outputs of shape {interface.output.shape}."
            problems.append(Problem("model", what, "attack a classifier: one score for each of 2 classes or more."))
        if problems:
            raise InvalidInput("This can't be a target.", problems)
        kind = interface.input
        if bounds is None and interface.encoding is None:
            bounds = Bounds(kind.low * min(kind.scale), kind.high * max(kind.scale))
        super().__init__(name, access, interface.shape, interface.output.shape[0], bounds or Bounds(), budget)
        self._client = client

    def _answer(self, x: Tensor) -> Answer:
        if not len(x):
            return answer(x.new_zeros(0, self.classes), self.access)
        prediction = self._client.infer(x.detach().cpu().numpy())
        self.meter.sent += prediction.bytes["input"]
        self.meter.received += prediction.bytes["output"]
        return answer(torch.from_numpy(prediction.outputs).to(x), self.access)


class Subject:
    """One set of weights with its held-out images, and the targets that it can be.

    Args:
        name: Of the model.
        net: The torch network; the stand-in for gradients wherever values come from elsewhere.
        calibration: Training images as reals, shape `(n, *input shape)`: they set the ranges.
        images: Held-out images in [0, 1], same shape.
        labels: Their classes.
        options: Compile options by protocol.
        form: One of `FORMS`; found by the layers if None.
    """

    def __init__(
        self,
        name: str,
        net: nn.Module,
        calibration: npt.NDArray[Any],
        images: npt.NDArray[Any],
        labels: npt.NDArray[np.int64],
        options: Mapping[str, Mapping[str, Any]] | None = None,
        form: str | None = None,
    ) -> None:
        self.name, self.net, self.calibration = name, Plain(net.eval()), calibration
        self.images, self.labels = torch.from_numpy(images), torch.from_numpy(labels)
        self.options, self.form = dict(options or {}), form or form_of(net)
        self._compiled: dict[tuple[str, bool], compiler.Compiled] = {}

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return tuple(self.images.shape[1:])

    @property
    def protocols(self) -> list[str]:
        """Protocols that its recipe is made for, `clear` left out."""
        return [name for name in self.options if name != "clear"]

    def compiled(self, protocol: str, batch: bool = False) -> compiler.Compiled:
        """The model compiled for a protocol; made once.

        Args:
            protocol: Its name.
            batch: For requests of many inputs, where the protocol has another plan for these.

        Raises:
            UnsupportedNetwork: Layers that the protocol can't evaluate.
        """
        key = protocol, batch and protocol in _BATCH
        if key not in self._compiled:
            options = {**self.options.get(protocol, {}), **(_BATCH[protocol] if key[1] else {})}
            self._compiled[key] = compiler.compile(self.net.net, self.calibration, protocol, **options)
        return self._compiled[key]

    def target(
        self,
        kind: str,
        protocol: str = "clear",
        *,
        access: Access | None = None,
        budget: int | None = None,
        seed: int = 0,
        batch: bool = False,
    ) -> Target:
        """One of the targets that these weights can be.

        Args:
            kind: "float" is the network in torch, with straight-through gradients where it rounds; "quantized",
                "binarized" and "polynomial" are the exact graph, whose gradients are those of the torch network
                (a polynomial one is evaluated over the reals); "simulated" adds the errors of a protocol; "encrypted"
                runs on ciphertexts on this machine.
            protocol: Of "simulated" and "encrypted".
            access: What it shows; None for all that it has.
            budget: Queries that it answers; None for no limit.
            seed: Of simulated errors.
            batch: Whether "encrypted" is for requests of many inputs.

        Raises:
            UsageError: No such kind, or weights of another form.
        """
        _require_kind(kind, protocol, self.form)
        name = " ".join([self.name, kind, *([protocol] if kind in KINDS[len(FORMS) :] else [])])
        if kind == "encrypted":
            client = self.compiled(protocol, batch).client()
            # Bright pixels may round to more than the calibrated range, which the client then clips.
            return Executed(client, name, Access.LOGITS if access is None else access, budget, Bounds())
        values = self._values(kind, protocol, seed)
        backward = None if values is self.net else self.net
        shown = Access.WHITE_BOX if access is None else access
        return NetworkTarget(values, self.shape, name=name, access=shown, budget=budget, backward=backward)

    def close(self) -> None:
        """End the servers that executed targets started."""
        for compiled in self._compiled.values():
            compiled.close()

    def _values(self, kind: str, protocol: str, seed: int) -> nn.Module:
        if kind == "float":
            return self.net
        if kind == "simulated":
            return Simulated(self.compiled(protocol), seed)
        return Interpreted(self.compiled("clear").graph, exact=kind != "polynomial")


def subject(name: str) -> Subject:
    """A model of the zoo with the data that it is measured on.

    Raises:
        UsageError: No such model.
        DataError: Its data set is nowhere to be found.
    """
    from secure_infer import zoo
    from secure_infer.nn.data import load_dataset

    recipe, net = zoo.recipe(name), zoo.load_model(name)
    data = load_dataset(recipe.dataset)
    return Subject(name, net, data.x_train[:CALIBRATION], data.x_test, data.y_test, recipe.protocols)


def form_of(net: nn.Module) -> str:
    """Which of `FORMS` a torch network has, by its layers: signs, polynomials, quantized weights, or none of them."""
    layers = list(net.modules())
    if any(hasattr(layer, "sign_scale") for layer in layers):
        return "binarized"
    if any(hasattr(layer, "polynomial") for layer in layers):
        return "polynomial"
    quantized = any(hasattr(layer, "integer_weight") or hasattr(layer, "weight_quant") for layer in layers)
    return "quantized" if quantized else "float"


@dataclass(frozen=True)
class Agreement:
    """How far a simulation speaks for real ciphertexts, on the same images.

    Attributes:
        n: Images sent through both.
        same: Images that both put into the same class.
        interval: 95 % interval (Wilson) of the share of these.
        ks: Kolmogorov-Smirnov distance between the errors of the logits in both.
        p_value: Chance of a distance as great if both have the same errors, by swapping the two sides image by image;
            so that ties, and logits of one image that depend on one another, do no harm.
        largest: Greatest difference of a logit.
        executed_again, simulated_again: Images that ciphertexts put into the same class twice, and the simulation too:
            measured where `same` is less than `n`. A protocol whose results vary can agree with nothing better than
            with itself.
    """

    n: int
    same: int
    interval: tuple[float, float]
    ks: float
    p_value: float
    largest: float
    executed_again: int | None = None
    simulated_again: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return {**asdict(self), "interval": list(self.interval)}


def agreement(simulated: Target, executed: Target, images: Tensor, clear: Target, seed: int = 0) -> Agreement:
    """Send images through a simulation and through real ciphertexts; through both again if they differ.

    Args:
        simulated: The protocol's errors drawn, nothing encrypted.
        executed: Real ciphertexts.
        images: Shape `(n, *input shape)`.
        clear: The same network without errors: what both are measured from.
        seed: Of the permutations.

    Raises:
        InvalidInput: No images, or a target that shows no logits.
    """
    if not len(images):
        raise InvalidInput("There is nothing to compare.", [Problem("images", "None.", "give some.")])
    found = [target.query(images) for target in (simulated, executed, clear)]
    drawn, real, true = (_logits(reply) for reply in found)
    same = int((found[0].labels == found[1].labels).sum())
    distance, p_value = _ks(drawn - true, real - true, seed)
    largest = float(np.abs(drawn - real).max())
    agreed = Agreement(len(images), same, wilson(same, len(images)), distance, p_value, largest)
    if same == len(images):
        return agreed
    simulated_again, executed_again = (
        int((target.query(images).labels == reply.labels).sum())
        for target, reply in zip((simulated, executed), found[:2], strict=True)
    )
    return replace(agreed, executed_again=executed_again, simulated_again=simulated_again)


def _logits(reply: Answer) -> npt.NDArray[np.float64]:
    if reply.scores is None:
        raise InvalidInput(
            "Residuals need logits.", [Problem("target", "It shows labels only.", "compare targets of LOGITS access.")]
        )
    return np.asarray(reply.scores.double().cpu().numpy())


def _ks(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64], seed: int) -> tuple[float, float]:
    """Two-sample Kolmogorov-Smirnov distance of two `(n, k)` arrays, and its p-value by swapping rows."""
    pooled = np.round(np.concatenate([a.ravel(), b.ravel()]), 9)
    order = np.argsort(pooled, kind="stable")
    last = np.append(np.flatnonzero(np.diff(pooled[order])), len(order) - 1)  # the end of each run of equal values
    rows = np.tile(np.repeat(np.arange(len(a)), a.shape[1]), 2)[order]
    side = np.where(order < a.size, 1.0, -1.0)

    def distance(swaps: npt.NDArray[np.float64]) -> float:
        return float(np.abs(np.cumsum(side * swaps[rows])[last]).max()) / a.size

    found = distance(np.ones(len(a)))
    rng = np.random.default_rng(seed)
    drawn = [distance(rng.choice([-1.0, 1.0], len(a))) for _ in range(_PERMUTATIONS)]
    return found, (1 + sum(value >= found - 1e-12 for value in drawn)) / (1 + _PERMUTATIONS)


def _require_kind(kind: str, protocol: str, form: str) -> None:
    problems = []
    if kind not in KINDS:
        problems.append(Problem("target", f"There is no {kind!r}.", f"use one of {', '.join(KINDS)}."))
    if kind in ("binarized", "polynomial") and kind != form:
        problems.append(Problem("target", f"The model is {form}, not {kind}.", f"use another model, or {form}."))
    if kind in ("simulated", "encrypted") and protocol not in backends.protocols():
        known = ", ".join(backends.protocols())
        problems.append(Problem("protocol", f"There is no {protocol!r}.", f"use one of {known}."))
    if problems:
        raise UsageError("There is no such target.", problems)
