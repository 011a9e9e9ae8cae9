"""Columns of the matrix - a form of a model deployed under a protocol - and the record of one cell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from secure_infer import compiler, zoo
from secure_infer.attacks.base import Access, Target
from secure_infer.attacks.networks import FunctionTarget
from secure_infer.attacks.statistics import finite, wilson
from secure_infer.errors import Problem, UsageError
from secure_infer.targets import FORMS, Agreement, Subject, agreement, subject

PROTOCOLS = ("clear", "tfhe", "ckks", "mpc")
_REPEATS, _NOISY = 5, 1e-3
_LEAST = {"messages": 100, "timed": 16, "queries": 20, "stolen": 200, "seed": 0, "executed": 0}
RADII: Mapping[str, float] = {"digits": 1.0, "mnist": 2.0, "fashion-mnist": 1.0}
"""Euclidean distance within which a disturbed image counts, by data set; pixels are in [0, 1]."""


@dataclass(frozen=True)
class Settings:
    """How much is measured.

    Attributes:
        n: Images of attacks that ask the deployed model once an image.
        n_queries: Images of attacks that ask it often.
        queries: Queries of such an attack for each image.
        stolen: Label queries of an extraction.
        executed: Images sent through real ciphertexts, to hold the simulation against; 0 to leave that out.
        messages: Messages that the server's view is judged by.
        timed: Requests whose times it is judged by; 0 to leave them out.
        keys: Fresh keys that are attacked.
        seed: Of everything drawn.
    """

    n: int = 100
    n_queries: int = 20
    queries: int = 500
    stolen: int = 1600
    executed: int = 20
    messages: int = 120
    timed: int = 24
    keys: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        problems = [
            Problem(name, f"{value}.", f"give {least} or more.")
            for name, value in asdict(self).items()
            if value < (least := _LEAST.get(name, 1)) and not (name == "timed" and value == 0)
        ]
        if problems:
            raise UsageError("So little can't be measured.", problems)


@dataclass(frozen=True)
class Cell:
    """What one threat came to in one column.

    Attributes:
        measure: What the share counts.
        successes, n: The share, for the attacker.
        gain: The attacker's gain between 0 (none) and 1 (all), for the color; by default the share.
        access: The least access that the attack needs.
        mode: How the model was run: "executed", "simulated", or "clear".
        queries: Queries of the deployed model, an image where `per` says so.
        per: What `queries` buys: "image", "model" or "client".
        seconds: Time that the target took in this run.
        details: Whatever else was measured.
        why_not: Why this threat does not apply here; nothing is measured then.
    """

    measure: str = ""
    successes: int = 0
    n: int = 0
    gain: float | None = None
    access: str = ""
    mode: str = ""
    queries: float = 0.0
    per: str = "image"
    seconds: float = 0.0
    details: Mapping[str, Any] = field(default_factory=dict)
    why_not: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The same as plain JSON values, with share and interval."""
        if self.why_not:
            return {"not_applicable": self.why_not}
        rate = self.successes / self.n if self.n else None
        found = {name: value for name, value in asdict(self).items() if name != "why_not"}
        interval = list(wilson(self.successes, self.n))
        return {**found, "rate": rate, "interval": interval, "gain": rate if self.gain is None else self.gain}


@dataclass(frozen=True, eq=False)
class Deployment:
    """One column: weights of one form under one protocol.

    Attributes:
        dataset: Its data set.
        protocol, form: The column.
        subject: The weights; None if the zoo has none of this form.
        why_not: Why nothing can be deployed here; empty if it can.
        on_ciphertexts: Whether attacks ask real ciphertexts, in batches, and no simulation.
    """

    dataset: str
    protocol: str
    form: str
    subject: Subject | None
    why_not: str = ""
    on_ciphertexts: bool = False

    @property
    def encrypted(self) -> bool:
        """Whether a protocol stands between client and server."""
        return self.protocol != "clear"

    @property
    def mode(self) -> str:
        """How attacks meet the model: "clear", "simulated" or "executed"."""
        return "clear" if not self.encrypted else "executed" if self.on_ciphertexts else "simulated"

    @property
    def weights(self) -> Subject:
        """The weights of a column that can be deployed."""
        assert self.subject is not None and not self.why_not
        return self.subject

    @property
    def radius(self) -> float:
        """Distance within which disturbances count."""
        return RADII.get(self.dataset, 1.0)

    def own_copy(self) -> Target:
        """The model as whoever has stolen its weights runs it: exact values, straight-through or stand-in gradients."""
        return self.weights.target(self.form)

    def deployed(self, access: Access, seed: int = 0, times: int = 1) -> Target:
        """The model as a client meets it: on ciphertexts, or with the protocol's errors drawn where there is one.

        Args:
            access: What the client shows to whoever attacks.
            seed: Of the errors.
            times: Ask so often and take the mean, which the meter counts as one query.
        """
        kind = {"clear": self.form, "simulated": "simulated", "executed": "encrypted"}[self.mode]
        make = partial(self.weights.target, kind, self.protocol, seed=seed, batch=self.on_ciphertexts)
        if times == 1:
            return make(access=access)
        once = make(access=Access.LOGITS)
        mean = partial(_mean, once, times)
        return FunctionTarget(mean, self.weights.shape, once.classes, name=once.name, access=access)

    @property
    def repeats(self) -> int:
        """How often whoever attacks asks the same, to average the protocol's errors out."""
        if not self.encrypted:
            return 1
        guarantee = self.weights.compiled(self.protocol).guarantee
        # Approximate look-ups promise neither a chance of failure nor a bound on errors.
        failure = 1.0 if guarantee.failure_probability is None else guarantee.failure_probability
        return _REPEATS if guarantee.error_bound is None and failure > _NOISY else 1

    def agrees(self, images: Tensor, seed: int) -> tuple[Agreement, Target]:
        """How far the simulation speaks for real ciphertexts on these images, and the executed target."""
        executed = self.weights.target("encrypted", self.protocol)
        executed.query(images[:1])  # makes the keys, which is not part of a query's time
        executed.meter.seconds, executed.meter.queries = 0.0, 0
        executed.meter.sent = executed.meter.received = 0
        simulated = self.weights.target("simulated", self.protocol, access=Access.LOGITS, seed=seed)
        return agreement(simulated, executed, images, self.own_copy(), seed), executed

    def right(self, n: int) -> tuple[Tensor, Tensor]:
        """The first `n` held-out images that the network itself puts into their class, and their classes."""
        images, labels = self.weights.images[: 2 * n], self.weights.labels[: 2 * n]
        good = self.own_copy().query(images).labels == labels
        return images[good][:n], labels[good][:n]


def deployments(dataset: str, protocols: Sequence[str] = PROTOCOLS) -> list[Deployment]:
    """Every column for one data set: the zoo's first model of each form under each protocol.

    Raises:
        UsageError: The zoo has no models for it.
        DataError: The data set is nowhere to be found.
    """
    names = [name for name in zoo.models() if zoo.recipe(name).dataset == dataset]
    if not names:
        known = sorted({zoo.recipe(name).dataset for name in zoo.models()})
        raise UsageError(
            f"The zoo has no models for {dataset!r}.",
            [Problem("models", f"It has some for {', '.join(known)}.", "name one of these.")],
        )
    models: dict[str, Subject] = {}
    for found in map(subject, names):
        models.setdefault(found.form, found)
    return [_deployment(dataset, protocol, form, models.get(form)) for protocol in protocols for form in FORMS]


def _deployment(dataset: str, protocol: str, form: str, weights: Subject | None) -> Deployment:
    def without(why: str) -> Deployment:
        return Deployment(dataset, protocol, form, weights, why)

    if weights is None:
        return without(f"The zoo has no {form} model for {dataset}.")
    if protocol == "clear":
        return Deployment(dataset, protocol, form, weights)
    if form == "float":
        return without("The protocol computes on integers; a float network becomes one of the other forms.")
    if protocol not in weights.options:
        problems = compiler.check(weights.net.net, protocol, weights.shape)
        why = problems[0].what if problems else f"The recipe of {weights.name} is not made for {protocol}."
        return without(why)
    return Deployment(dataset, protocol, form, weights)


def _mean(target: Target, times: int, x: Tensor) -> Tensor:
    answers = [target.query(x).scores for _ in range(times)]
    return torch.stack([scores for scores in answers if scores is not None]).mean(0)


Threat = Callable[[Deployment, Settings], Cell]


def median_of(distances: Tensor) -> float | None:
    """Median of finite distances; None if there is none, or if it is infinite."""
    return finite(float(torch.quantile(distances.double(), 0.5, interpolation="lower"))) if len(distances) else None
