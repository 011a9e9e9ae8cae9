"""MagNet: autoencoders detect what lies far from the data and move what lies near back (Meng and Chen 2017).

The defended network has one class more, "rejected", whose logit is differentiable, so that an adaptive attack can take
its gradient through detectors and reformer; `Undetected` is its goal.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from secure_infer.attacks.base import Access, Target
from secure_infer.attacks.goal import Goal
from secure_infer.attacks.networks import NetworkTarget
from secure_infer.defenses.base import Data, Defense, Place
from secure_infer.defenses.training import Shuffled
from secure_infer.errors import InvalidInput, Problem, UsageError

_REJECTION = 10.0
"""How steeply the logit of rejection rises with a detector's score."""


@dataclass(frozen=True)
class Undetected(Goal):
    """A wrong class that is not "rejected": what an attack on a detector wants. Untargeted or targeted.

    Attributes:
        rejected: Number of the class "rejected".
    """

    rejected: int = field(kw_only=True)

    def select(self, index: Tensor) -> Undetected:
        """See the base class."""
        return self._with(super().select(index))

    def repeat(self, times: int) -> Undetected:
        """See the base class."""
        return self._with(super().repeat(times))

    def to(self, device: torch.device | str) -> Undetected:
        """See the base class."""
        return self._with(super().to(device))

    def reached_by_labels(self, labels: Tensor) -> Tensor:
        """See the base class."""
        return super().reached_by_labels(labels) & (labels != self.rejected)

    def reached(self, logits: Tensor) -> Tensor:
        """See the base class."""
        return super().reached(logits) & (logits.argmax(1) != self.rejected)

    def margin(self, logits: Tensor) -> Tensor:
        """How far the answer is from a wrong class that beats both the true one and rejection. `(n,)`."""
        rejection = logits[:, self.rejected]
        kept = logits.index_fill(1, torch.tensor([self.rejected], device=logits.device), -torch.inf)
        if self.targets is not None:
            wanted = logits.gather(1, self.targets[:, None]).squeeze(1)
            return torch.maximum(super().margin(kept), rejection - wanted)
        others = kept.scatter(1, self.labels[:, None], -torch.inf).amax(1)
        return torch.maximum(super().margin(kept), rejection - others)

    def _with(self, goal: Goal) -> Undetected:
        return dataclasses.replace(self, labels=goal.labels, targets=goal.targets)


@dataclass(frozen=True)
class MagNet(Defense):
    """Detect by reconstruction error and by divergence of answers; reform what passes by the autoencoder.

    Attributes:
        false_positives: Share of clean images that each detector may reject, measured on data kept back.
        temperatures: Of the answers whose divergence is measured.
        channels: Of the autoencoders.
        noise: Standard deviation of the noise that they are trained to remove.
        epochs: Of their training.
        held_back: Share of the data that sets the thresholds and is not trained on.
    """

    false_positives: float = 0.005
    temperatures: tuple[float, ...] = (10.0, 40.0)
    channels: int = 8
    noise: float = 0.1
    epochs: int = 10
    held_back: float = 0.2

    name: ClassVar[str] = "magnet"
    places: ClassVar[frozenset[Place]] = frozenset({Place.CLIENT_SIDE, Place.SERVER_SIDE_PLAINTEXT})

    def __post_init__(self) -> None:
        problems = []
        for name in ("false_positives", "held_back"):
            if not 0 < getattr(self, name) < 1:
                problems.append(Problem(name, f"{getattr(self, name)}.", "give a share between 0 and 1."))
        if self.channels < 1 or self.epochs < 1 or not self.noise >= 0:
            problems.append(Problem("training", f"{self}.", "give one channel and one epoch or more."))
        if not all(t > 0 for t in self.temperatures):
            problems.append(Problem("temperatures", f"{self.temperatures}.", "give numbers above 0."))
        if problems:
            raise UsageError("MagNet can't be set so.", problems)

    def __call__(self, net: nn.Module, data: Data, *, access: Access = Access.WHITE_BOX, seed: int = 0) -> Target:
        """The guarded network, of one class more; see the base class."""
        guarded = self.fit(net, data, seed)
        return NetworkTarget(guarded, data.shape, name="magnet", access=access, bounds=data.bounds)

    def fit(self, net: nn.Module, data: Data, seed: int = 0) -> Guarded:
        """Train the autoencoders and set the thresholds.

        Raises:
            InvalidInput: No images of channels, height and width, or too few to keep some back.
        """
        count = round(self.held_back * len(data.images))
        if len(data.shape) != 3 or not 0 < count < len(data.images):
            what = f"{len(data.images)} of shape {data.shape}."
            raise InvalidInput("MagNet can't learn from this.", [Problem("images", what, "give more, with channels.")])
        order = torch.randperm(len(data.images), generator=torch.Generator().manual_seed(seed))
        kept, rest = (data.images[i.to(data.images.device)] for i in (order[:count], order[count:]))
        deep, flat = (self._autoencoder(rest, data, seed + i, pooled) for i, pooled in enumerate((True, False)))
        guarded = Guarded(net, deep, flat, self.temperatures, data.bounds.low, data.bounds.high)
        with torch.no_grad():
            scores = torch.cat([guarded.scores(part) for part in torch.split(kept, 1000)])
        guarded.thresholds.copy_(torch.quantile(scores, 1 - self.false_positives, dim=0).clamp_min(1e-9))
        return guarded.eval().requires_grad_(False)

    def _autoencoder(self, images: Tensor, data: Data, seed: int, pooled: bool) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            coder = _autoencoder(data.shape[0], self.channels, pooled and _even(data.shape)).to(images.device)
        generator = torch.Generator(images.device).manual_seed(seed)
        batches = Shuffled(
            Data(images, torch.zeros(len(images), dtype=torch.int64, device=images.device), data.bounds), 128, seed
        )
        optimizer = torch.optim.Adam(coder.parameters(), 3e-3)
        for _ in range(self.epochs):
            for batch, _ in batches:
                noise = torch.empty_like(batch).normal_(generator=generator)
                loss = functional.mse_loss(coder(data.bounds.clamp(batch + self.noise * noise)), batch)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return coder.eval()


class Guarded(nn.Module):
    """A network behind detectors and reformer; its last class is "rejected".

    Args:
        net: The network.
        deep: Autoencoder that reforms, and whose error and divergence detect.
        flat: A second one, whose error detects.
        temperatures: Of the divergences.
        low: Least value of the inputs.
        high: Greatest value.
    """

    thresholds: Tensor

    def __init__(
        self,
        net: nn.Module,
        deep: nn.Module,
        flat: nn.Module,
        temperatures: tuple[float, ...],
        low: float = 0.0,
        high: float = 1.0,
    ) -> None:
        super().__init__()
        self.net, self.deep, self.flat = net, deep, flat
        self.temperatures, self.low, self.high = temperatures, low, high
        weight = next(deep.parameters())
        self.register_buffer("thresholds", torch.ones(2 + len(temperatures), device=weight.device))

    def forward(self, x: Tensor) -> Tensor:
        """`(n, c, h, w)` to `(n, classes + 1)`; rejection wins where a score exceeds its threshold."""
        reformed = self._reformed(x)
        logits = self.net(reformed)
        worst = (self._scores(x, reformed, logits) / self.thresholds).amax(1)
        rejection = logits.amax(1) + _REJECTION * (worst - 1)
        return torch.cat([logits, rejection[:, None]], 1)

    def scores(self, x: Tensor) -> Tensor:
        """What the detectors say: mean absolute and mean squared error, and a divergence each temperature. `(n, k)`."""
        reformed = self._reformed(x)
        return self._scores(x, reformed, self.net(reformed))

    def rejects(self, x: Tensor) -> Tensor:
        """Which images are rejected, bool `(n,)`."""
        return (self.scores(x) > self.thresholds).any(1)

    def _reformed(self, x: Tensor) -> Tensor:
        reformed: Tensor = self.deep(x).clamp(self.low, self.high)
        return reformed

    def _scores(self, x: Tensor, reformed: Tensor, after: Tensor) -> Tensor:
        absolute = (x - self.flat(x)).abs().flatten(1).mean(1)
        squared = (x - reformed).square().flatten(1).mean(1)
        before = self.net(x)
        return torch.stack([absolute, squared, *(jensen_shannon(before, after, t) for t in self.temperatures)], 1)


def jensen_shannon(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Jensen-Shannon divergence of two answers, given as logits `(n, classes)`, at a temperature. `(n,)`."""
    p, q = (first / temperature).log_softmax(1), (second / temperature).log_softmax(1)
    middle = torch.logaddexp(p, q) - torch.log(torch.tensor(2.0, dtype=p.dtype, device=p.device))
    return ((p.exp() * (p - middle)).sum(1) + (q.exp() * (q - middle)).sum(1)) / 2


def _even(shape: tuple[int, ...]) -> bool:
    return shape[1] % 2 == 0 and shape[2] % 2 == 0


def _autoencoder(planes: int, channels: int, pooled: bool) -> nn.Sequential:
    down: list[nn.Module] = [nn.AvgPool2d(2)] if pooled else []
    up: list[nn.Module] = [nn.Upsample(scale_factor=2)] if pooled else []
    return nn.Sequential(
        nn.Conv2d(planes, channels, 3, padding=1),
        nn.Sigmoid(),
        *down,
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.Sigmoid(),
        *up,
        nn.Conv2d(channels, planes, 3, padding=1),
    )
