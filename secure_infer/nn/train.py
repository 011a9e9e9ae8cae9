"""The one training loop: quantization- and noise-aware by the layers it trains, reproducible by its seed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from secure_infer.errors import InvalidInput, Problem
from secure_infer.nn.architectures import build
from secure_infer.nn.checkpoint import Checkpoint
from secure_infer.nn.data import Dataset, load_dataset
from secure_infer.nn.layers import range_penalty
from secure_infer.nn.recipe import Recipe, Training

_Z = 1.959963984540054
"""Quantile of the normal distribution for a two-sided 95 % interval."""
_KNOT = 4
"""Pixels between two points for which a displacement is drawn."""


@dataclass(frozen=True)
class Accuracy:
    """Right answers among `n`, with the 95 % interval of Wilson (JASA 1927)."""

    correct: int
    n: int

    @property
    def value(self) -> float:
        """Share of right answers."""
        return self.correct / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end of the 95 % interval."""
        p, z2 = self.value, _Z * _Z / self.n
        half = _Z * math.sqrt(p * (1 - p) / self.n + z2 / (4 * self.n))
        return (p + z2 / 2 - half) / (1 + z2), (p + z2 / 2 + half) / (1 + z2)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.2%} ({self.correct} of {self.n}; 95 % interval {low:.2%} to {high:.2%})"


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training data gave and took; `validation` is None where no data was kept back."""

    loss: float
    train: Accuracy
    validation: Accuracy | None
    seconds: float

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Epoch:
        """The epoch whose fields `dataclasses.asdict` gave."""
        train, validation = (part and Accuracy(**part) for part in (data["train"], data["validation"]))
        return cls(data["loss"], train, validation, data["seconds"])


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained network.

    Attributes:
        net: The network, in evaluation mode.
        history: One entry an epoch.
        held_out: Accuracy on the test part, which nothing was chosen by.
        seconds: Wall time of training.
    """

    net: nn.Module
    history: tuple[Epoch, ...]
    held_out: Accuracy
    seconds: float


def train(
    recipe: Recipe, progress: bool = False, dataset: Dataset | None = None, checkpoint: Path | None = None
) -> Trained:
    """Train the network of a recipe.

    The result depends only on the recipe, the data and the versions of the libraries: seed and number of threads are
    part of the recipe, and the caller's random state is left as it was.

    Args:
        recipe: What to train and how.
        progress: Whether to show a bar.
        dataset: Data to use in place of the recipe's.
        checkpoint: A file that holds the state after each epoch, and from which an interrupted run goes on to the same
            result; it is deleted at the end.

    Raises:
        DataError: The data set is not to be had.
        UsageError: The recipe names no such data set or architecture, or parameters that do not fit; or a checkpoint
            that is not this recipe's.
    """
    data = dataset or load_dataset(recipe.dataset)
    plan = recipe.training
    kept = Checkpoint(checkpoint, repr(recipe)) if checkpoint else None
    with _reproducible(plan.seed, plan.threads):
        trained = _trained(build(recipe.architecture, recipe.parameters), data, plan, progress, kept)
    if kept:
        kept.remove()
    return trained


def tune(net: nn.Module, data: Dataset, plan: Training, progress: bool = False) -> Trained:
    """Train a network on, in place: what `fix` has changed, say; reproducible as `train` is.

    Args:
        net: The network.
        data: What to train it on, and to measure it by.
        plan: How.
        progress: Whether to show a bar.
    """
    with _reproducible(plan.seed, plan.threads):
        return _trained(net, data, plan, progress, None)


def _trained(net: nn.Module, data: Dataset, plan: Training, progress: bool, kept: Checkpoint | None) -> Trained:
    history = tuple(_fit(net, data, plan, progress, kept))
    net.eval()
    held_out = evaluate(net, data.x_test, data.y_test)
    return Trained(net, history, held_out, sum(epoch.seconds for epoch in history))


def evaluate(net: nn.Module, x: npt.NDArray[np.float32], y: npt.NDArray[np.int64], batch_size: int = 1000) -> Accuracy:
    """Accuracy of a network on images `x`, shape `(n, channels, height, width)`, of classes `y`, shape `(n,)`.

    Raises:
        InvalidInput: No images, or not as many labels as images.
    """
    if not len(x) or len(x) != len(y):
        raise InvalidInput(
            "There is nothing to evaluate on.",
            [Problem("data", f"Got {len(x)} images and {len(y)} labels.", "give one label for each image.")],
        )
    training = net.training
    net.eval()
    correct = 0
    with torch.no_grad():
        for start in range(0, len(x), batch_size):
            images, labels = (torch.as_tensor(a[start : start + batch_size]) for a in (x, y))
            correct += int((_logits(net, images).argmax(1) == labels).sum())
    net.train(training)
    return Accuracy(correct, len(x))


@contextmanager
def _reproducible(seed: int, threads: int) -> Iterator[None]:
    """Seed torch and fix its threads and algorithms, for the block only."""
    before, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.set_num_threads(before)
            torch.use_deterministic_algorithms(strict)


def split_validation(labels: npt.NDArray[np.int64], share: float, seed: int) -> tuple[npt.NDArray[np.int64], ...]:
    """Indices of a training and a validation part; the latter holds `share` of each class, drawn by `seed`."""
    random = np.random.default_rng(seed)
    kept = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        kept[members[: round(share * len(members))]] = True
    return np.flatnonzero(~kept), np.flatnonzero(kept)


def _fit(
    net: nn.Module, data: Dataset, plan: Training, progress: bool, checkpoint: Checkpoint | None
) -> Iterator[Epoch]:
    chosen, kept = split_validation(data.y_train, plan.validation, plan.seed)
    images, labels = torch.as_tensor(data.x_train[chosen]), torch.as_tensor(data.y_train[chosen])
    steps = len(images) // plan.batch_size or 1
    seen = min(len(images), steps * plan.batch_size)
    if plan.bfloat16:
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = _optimizer(net, plan)
    schedule = _schedule(optimizer, plan, steps)
    saved = checkpoint.restore(net, optimizer, schedule) if checkpoint else {}
    done = [Epoch.read(epoch) for epoch in saved.get("epochs", [])]
    yield from done
    for _ in _bar(plan.epochs - len(done), progress):
        start = perf_counter()
        net.train()
        total, correct = 0.0, 0
        order = torch.randperm(len(images))
        for batch in torch.tensor_split(order[:seen], steps):
            x, y = augment(images[batch], plan), labels[batch]
            loss, right = _step(net, x, y, plan, optimizer)
            schedule.step()
            total, correct = total + loss, correct + right
        validation = evaluate(net, data.x_train[kept], data.y_train[kept]) if len(kept) else None
        done.append(Epoch(total / steps, Accuracy(correct, seen), validation, perf_counter() - start))
        if checkpoint:
            checkpoint.save(net, optimizer, schedule, {"epochs": [asdict(epoch) for epoch in done]})
        yield done[-1]


def _step(
    net: nn.Module, images: Tensor, labels: Tensor, plan: Training, optimizer: torch.optim.Optimizer
) -> tuple[float, int]:
    """One step of the optimizer; the loss, and the number of images that the network gets right."""
    with torch.autocast("cpu", torch.bfloat16, enabled=plan.bfloat16):
        logits = _logits(net, images).float()
    loss = _loss(net, logits, labels, plan)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return float(loss.detach()), int((logits.argmax(1) == labels).sum())


def _loss(net: nn.Module, logits: Tensor, labels: Tensor, plan: Training) -> Tensor:
    loss = functional.cross_entropy(logits, labels, label_smoothing=plan.label_smoothing)
    if plan.range_penalty:
        loss = loss + plan.range_penalty * range_penalty(net)
    if plan.sparsity:
        weights = [p for p in net.parameters() if p.dim() > 1]
        loss = loss + plan.sparsity * torch.stack([w.abs().mean() for w in weights]).sum()
    return loss


def augment(images: Tensor, plan: Training) -> Tensor:
    """Shift, rotate, warp and mirror each image of a batch `(n, c, h, w)` at random, filling with zeros."""
    if plan.flip:
        mirrored = torch.rand(len(images)) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    if not (plan.shift or plan.rotation or plan.elastic):
        return images
    n, _, height, width = images.shape
    angle = (2 * torch.rand(n) - 1) * math.radians(plan.rotation)
    # A translation of 2 in normalized coordinates is one whole side.
    moves = (2 * torch.rand(n, 2) - 1) * 2 * plan.shift / torch.tensor([width, height])
    rows = torch.stack([angle.cos(), -angle.sin(), moves[:, 0], angle.sin(), angle.cos(), moves[:, 1]], dim=1)
    grid = functional.affine_grid(rows.reshape(n, 2, 3), list(images.shape), align_corners=False)
    if plan.elastic:
        grid = grid + _displacements(n, height, width, plan.elastic)
    return functional.grid_sample(images, grid, align_corners=False)


def _displacements(n: int, height: int, width: int, deviation: float) -> Tensor:
    """Smooth random displacements `(n, h, w, 2)` in normalized coordinates, drawn at points about four pixels apart.

    After Simard, Steinkraus and Platt (ICDAR 2003), who smooth what they draw for every pixel.
    """
    coarse = torch.randn(n, 2, -(-height // _KNOT), -(-width // _KNOT)) * 2 * deviation
    fine: Tensor = functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)
    return fine.permute(0, 2, 3, 1) / torch.tensor([width, height])


def _logits(net: nn.Module, images: Tensor) -> Tensor:
    """The network's output as a plain tensor; Brevitas layers may wrap it with its scale."""
    output: Any = net(images)
    result: Tensor = getattr(output, "value", output)
    return result


def _optimizer(net: nn.Module, plan: Training) -> torch.optim.Optimizer:
    kinds: dict[str, Any] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    momentum = {"momentum": 0.9} if plan.optimizer == "sgd" else {}
    optimizer: torch.optim.Optimizer = kinds[plan.optimizer](
        net.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay, **momentum
    )
    return optimizer


def _schedule(optimizer: torch.optim.Optimizer, plan: Training, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    total = plan.epochs * steps
    if plan.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    if plan.schedule == "one-cycle":
        # One step more, because the loop asks for the rate after the last step too.
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, plan.learning_rate, total_steps=total + 1)
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


def _bar(epochs: int, progress: bool) -> Any:
    if not progress:
        return range(epochs)
    from tqdm import trange

    return trange(epochs, desc="training", unit="epoch")
