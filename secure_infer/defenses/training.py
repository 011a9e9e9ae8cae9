"""Adversarial training: by projected gradient descent, TRADES, or one fast step; and the plain loop beside it."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from secure_infer.attacks.base import Access, Bounds, Norm, Target
from secure_infer.attacks.networks import NetworkTarget
from secure_infer.attacks.norms import random_disturbance, steepest, within
from secure_infer.defenses.base import Data, Defense, Place
from secure_infer.errors import Problem, UsageError

Method = Literal["standard", "noise", "pgd", "trades", "fast"]
METHODS: tuple[str, ...] = get_args(Method)


class Batches(Protocol):
    """Training batches: iterated once an epoch, as a list or a torch DataLoader can be."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images `(n, *shape)` and classes `(n,)`, batch by batch."""
        ...

    def __len__(self) -> int:
        """Batches an epoch."""
        ...


@dataclass(frozen=True)
class AdversarialTraining(Defense):
    """Train on disturbed images, made anew at each step against the network as it is.

    Attributes:
        method: "pgd": cross-entropy on PGD examples (Madry et al. 2018). "trades": clean cross-entropy plus `beta` x
            the divergence between clean and disturbed answers (Zhang et al. 2019). "fast": one FGSM step of
            1.25 x radius from a random start (Wong, Rice, Kolter 2020). "noise": Gaussian noise, its
            deviation the radius, bounds left (for randomized smoothing). "standard": no disturbance.
        radius: Of the ball, in units of the inputs.
        norm: "linf" or "l2".
        steps: Gradients of the inner attack; "fast" takes one.
        step: Length of an inner step; None for 2.5 x radius / steps.
        beta: Weight of TRADES' divergence.
        epochs: Passes over the batches.
        batch_size: Of the batches that are made from a defense's data.
        rate: Greatest learning rate of Adam, under a one-cycle schedule.
        weight_decay: Of Adam, decoupled.
        warmup: Share of the steps during which the radius grows from 0; it keeps small networks from giving up.
    """

    method: Method = "pgd"
    radius: float = 0.1
    norm: Norm = "linf"
    steps: int = 7
    step: float | None = None
    beta: float = 6.0
    epochs: int = 10
    batch_size: int = 128
    rate: float = 3e-3
    weight_decay: float = 1e-4
    warmup: float = 0.2

    name: ClassVar[str] = "adversarial-training"
    places: ClassVar[frozenset[Place]] = frozenset({Place.TRAINING})

    def __post_init__(self) -> None:
        problems = [
            Problem(name, f"Expected more than 0, got {value}.", "correct the setting.")
            for name in ("radius", "steps", "epochs", "batch_size", "rate")
            if not (value := getattr(self, name)) > 0
        ]
        if self.method not in METHODS:
            problems.append(Problem("method", f"{self.method!r}.", f"use one of {', '.join(METHODS)}."))
        if self.norm not in ("linf", "l2"):
            problems.append(Problem("norm", f"{self.norm!r}.", "use linf or l2."))
        if problems:
            raise UsageError("Adversarial training can't be set so.", problems)

    def __call__(self, net: nn.Module, data: Data, *, access: Access = Access.WHITE_BOX, seed: int = 0) -> Target:
        """The network trained on; see the base class."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # of layers such as dropout
            trained = train(net, Shuffled(data, self.batch_size, seed), self, bounds=data.bounds, seed=seed)
        return NetworkTarget(trained, data.shape, name=f"{self.method}-trained", access=access, bounds=data.bounds)


class Shuffled:
    """Batches of data in an order that is drawn anew for each epoch.

    Args:
        data: To cut into batches; a last smaller batch is kept.
        size: Images a batch.
        seed: Of the orders.
    """

    def __init__(self, data: Data, size: int, seed: int = 0) -> None:
        self._data, self._size = data, size
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return math.ceil(len(self._data.images) / self._size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self._data.images), generator=self._generator)
        for index in torch.split(order.to(self._data.images.device), self._size):
            yield self._data.images[index], self._data.labels[index]


def train(
    network: nn.Module,
    batches: Batches,
    settings: AdversarialTraining,
    *,
    bounds: Bounds = Bounds(),  # noqa: B008 - frozen
    seed: int = 0,
) -> nn.Module:
    """Train a copy of a network, starting from its weights.

    Disturbances are made in evaluation mode, so that they leave the statistics of batch normalization alone.

    Args:
        network: From images to logits.
        batches: Iterated `settings.epochs` times.
        settings: How.
        bounds: Of the images.
        seed: Of the random starts.

    Returns:
        The trained copy, in evaluation mode.
    """
    net = copy.deepcopy(network).requires_grad_(True)
    total = settings.epochs * len(batches)
    optimizer = torch.optim.AdamW(net.parameters(), settings.rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.rate, max(total, 2))
    generator: torch.Generator | None = None
    done = 0
    for _ in range(settings.epochs):
        for images, labels in batches:
            generator = generator or torch.Generator(images.device).manual_seed(seed)
            growth = min(1.0, (done + 1) / (settings.warmup * total)) if settings.warmup else 1.0
            now = replace(settings, radius=settings.radius * growth)
            loss = _loss(net, images, labels, now, bounds, generator)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            done += 1
    return net.eval().requires_grad_(False)


def _loss(
    net: nn.Module, x: Tensor, labels: Tensor, settings: AdversarialTraining, bounds: Bounds, generator: torch.Generator
) -> Tensor:
    """The loss of one batch; the network is left in training mode."""
    if settings.method == "standard":
        return functional.cross_entropy(net.train()(x), labels)
    if settings.method == "noise":
        noise = torch.empty_like(x).normal_(generator=generator)
        return functional.cross_entropy(net.train()(x + settings.radius * noise), labels)
    with _frozen(net):
        clean = net(x).detach() if settings.method == "trades" else None
        disturbed = _disturb(net, x, labels, clean, settings, bounds, generator)
    net.train()
    if clean is None:
        return functional.cross_entropy(net(disturbed), labels)
    logits, moved = net(torch.cat([x, disturbed])).chunk(2)
    return functional.cross_entropy(logits, labels) + settings.beta * _divergence(moved, logits)


def _divergence(moved: Tensor, clean: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the disturbed answers from the clean ones, mean over the batch."""
    return functional.kl_div(moved.log_softmax(1), clean.log_softmax(1), reduction="batchmean", log_target=True)


def _disturb(
    net: nn.Module,
    x: Tensor,
    labels: Tensor,
    clean: Tensor | None,
    settings: AdversarialTraining,
    bounds: Bounds,
    generator: torch.Generator,
) -> Tensor:
    fast, norm, radius = settings.method == "fast", settings.norm, settings.radius
    steps = 1 if fast else settings.steps
    length = 1.25 * radius if fast else settings.step or 2.5 * radius / steps
    moved = bounds.clamp(x + random_disturbance(x, norm, radius, generator))
    for _ in range(steps):
        moved = moved.detach().requires_grad_()
        logits = net(moved)
        loss = functional.cross_entropy(logits, labels) if clean is None else _divergence(logits, clean)
        (gradient,) = torch.autograd.grad(loss, moved)
        moved = within(moved.detach() + length * steepest(gradient, norm), x, norm, radius, bounds)
    return moved


@contextmanager
def _frozen(net: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients of the weights, for the inner attack."""
    net.eval().requires_grad_(False)
    try:
        yield
    finally:
        net.requires_grad_(True)
