"""Randomized smoothing: the majority vote under Gaussian noise, with a radius within which it is certified."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from secure_infer.attacks.base import Access, Target
from secure_infer.attacks.networks import NetworkTarget
from secure_infer.attacks.statistics import clopper_pearson_lower, quantile_of_normal
from secure_infer.defenses.base import Data, Defense, Place
from secure_infer.defenses.training import AdversarialTraining, Shuffled, train
from secure_infer.errors import InvalidInput, Problem, UsageError

_ROWS = 4096
"""Noisy images a forward pass."""


@dataclass(frozen=True)
class Certificate:
    """What a smoothed network guarantees.

    Attributes:
        labels: Its answers, int64 `(n,)`; -1 where it abstains.
        radii: L2 distance within which each answer cannot change, up to probability `alpha`; 0 where it abstains.
    """

    labels: Tensor
    radii: Tensor

    def accuracy(self, labels: Tensor, radius: float) -> float:
        """Certified accuracy: share of answers that are right and certified beyond a radius."""
        return float(((self.labels == labels) & (self.radii > radius)).double().mean())


@dataclass(frozen=True)
class RandomizedSmoothing(Defense):
    """Answer with the class that wins under Gaussian noise (Cohen, Rosenfeld, Kolter 2019).

    Under encryption a client can add the noise and count the votes, at `samples` queries an answer.

    Attributes:
        deviation: Standard deviation of the noise, in units of the inputs.
        samples: Noisy copies a vote.
        epochs: Of training under this noise first; 0 to take the network as it is.
    """

    deviation: float = 0.25
    samples: int = 64
    epochs: int = 5

    name: ClassVar[str] = "randomized-smoothing"
    places: ClassVar[frozenset[Place]] = frozenset({Place.CLIENT_SIDE, Place.SERVER_SIDE_PLAINTEXT})

    def __post_init__(self) -> None:
        if not self.deviation > 0 or self.samples < 1 or self.epochs < 0:
            raise UsageError(
                "There is no such smoothing.",
                [Problem("smoothing", f"{self}.", "give a deviation above 0 and one sample or more.")],
            )

    def __call__(self, net: nn.Module, data: Data, *, access: Access = Access.WHITE_BOX, seed: int = 0) -> Target:
        """The smoothed network; its gradient is that of the mean probabilities over the noise. See the base class."""
        smoothed = Smoothed(self.base(net, data, seed), self.deviation, self.samples, seed)
        name = f"smoothed {self.deviation:g}"
        return NetworkTarget(
            smoothed, data.shape, name=name, access=access, bounds=data.bounds, backward=_Expected(smoothed)
        )

    def base(self, net: nn.Module, data: Data, seed: int = 0) -> nn.Module:
        """The network trained on under noise."""
        if not self.epochs:
            return net.eval()
        plan = AdversarialTraining(method="noise", radius=self.deviation, epochs=self.epochs)
        return train(net, Shuffled(data, plan.batch_size, seed), plan, bounds=data.bounds, seed=seed)


class Smoothed(nn.Module):
    """The logarithm of the shares of votes of noisy copies, half a vote added to each class; drawn anew at each call.

    Args:
        net: That votes.
        deviation: Of the noise.
        samples: Copies an image.
        seed: Of the noise.
    """

    def __init__(self, net: nn.Module, deviation: float, samples: int, seed: int = 0) -> None:
        super().__init__()
        self.net, self.deviation, self.samples = net, deviation, samples
        self._seed = seed
        self._generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        """`(n, *shape)` to `(n, classes)`."""
        counts = self.votes(x, self.samples).to(x.dtype) + 0.5
        return (counts / counts.sum(1, keepdim=True)).log()

    def votes(self, x: Tensor, samples: int) -> Tensor:
        """Votes for each class, int64 `(n, classes)`."""
        step = max(1, _ROWS // samples)
        return torch.cat([self._votes(part, samples) for part in torch.split(x, step)])

    def _votes(self, x: Tensor, samples: int) -> Tensor:
        total: Tensor | None = None
        for start in range(0, samples, _ROWS):
            logits = self.net(self.noisy(x, min(_ROWS, samples - start))).detach()
            votes = torch.nn.functional.one_hot(logits.argmax(1), logits.shape[1]).view(-1, len(x), logits.shape[1])
            total = votes.sum(0) if total is None else total + votes.sum(0)
        assert total is not None
        return total

    def noisy(self, x: Tensor, samples: int) -> Tensor:
        """`samples` noisy copies of a batch, one after the other, `(samples * n, *shape)`."""
        if self._generator is None or self._generator.device != x.device:
            self._generator = torch.Generator(x.device).manual_seed(self._seed)
        copies = x.repeat(samples, *(1,) * (x.ndim - 1))
        noise = torch.empty(copies.shape, device=x.device, dtype=x.dtype).normal_(generator=self._generator)
        return copies + self.deviation * noise


class _Expected(nn.Module):
    """Logarithm of the mean probabilities under the same noise: what an attack can differentiate."""

    def __init__(self, smoothed: Smoothed) -> None:
        super().__init__()
        self.smoothed = smoothed

    def forward(self, x: Tensor) -> Tensor:
        parts = []
        for part in torch.split(x, max(1, _ROWS // self.smoothed.samples)):
            logits = self.smoothed.net(self.smoothed.noisy(part, self.smoothed.samples))
            parts.append(logits.log_softmax(1).view(self.smoothed.samples, len(part), -1).logsumexp(0))
        return torch.cat(parts)


@torch.no_grad()
def certify(
    smoothed: Smoothed, images: Tensor, *, first: int = 100, samples: int = 1000, alpha: float = 0.001
) -> Certificate:
    """Certify answers (Cohen, Rosenfeld, Kolter 2019, algorithm CERTIFY and theorem 1).

    `first` votes choose a class; `samples` others bound its probability `p` from below (Clopper-Pearson). Above 1/2,
    no disturbance below `deviation x Phi^-1(p)` in L2 changes the answer, with confidence `1 - alpha` an image.

    Args:
        smoothed: The network under noise.
        images: Shape `(n, *shape)`.
        first: Votes that choose the class.
        samples: Votes that bound its probability.
        alpha: Probability that a radius is wrong.

    Raises:
        InvalidInput: No votes, or no such probability.
    """
    if first < 1 or samples < 1 or not 0 < alpha < 1:
        given = f"{first} and {samples} votes at {alpha}."
        raise InvalidInput("Nothing can be certified so.", [Problem("certify", given, "give votes and a level.")])
    guess = smoothed.votes(images, first).argmax(1)
    won = smoothed.votes(images, samples).gather(1, guess[:, None]).squeeze(1)
    bounds = {k: clopper_pearson_lower(k, samples, alpha) for k in set(won.tolist())}
    lower = [bounds[k] for k in won.tolist()]
    radii = [smoothed.deviation * quantile_of_normal(p) if p > 0.5 else 0.0 for p in lower]
    radius = torch.tensor(radii, dtype=torch.float64, device=images.device)
    return Certificate(torch.where(radius > 0, guess, -1), radius)
