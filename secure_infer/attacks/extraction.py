"""Theft of a model through its answers: a substitute from labels alone, and a knockoff from probabilities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from secure_infer.attacks.base import Access, Target
from secure_infer.attacks.goal import Goal
from secure_infer.attacks.losses import scores_of
from secure_infer.attacks.networks import NetworkTarget
from secure_infer.attacks.pgd import FGSM, PGD
from secure_infer.attacks.statistics import Interval, wilson
from secure_infer.errors import InvalidInput, Problem

Make = Callable[[], nn.Module]
_AT_ONCE = 1024
_STEPS = 10


@dataclass(frozen=True)
class Training:
    """How a substitute is trained, from the start, by Adam with weight decay.

    Attributes:
        epochs: Passes over what was labeled.
        least_steps: Steps at least, however little was labeled.
        batch: Images a step.
        rate: Learning rate.
    """

    epochs: int = 10
    least_steps: int = 200
    batch: int = 64
    rate: float = 1e-3

    def fit(self, net: nn.Module, x: Tensor, answers: Tensor, generator: torch.Generator) -> nn.Module:
        """The network, trained.

        Args:
            net: From images to logits.
            x: `(n, *shape)`.
            answers: Classes, int64 `(n,)`, or probabilities, `(n, classes)`.
            generator: Of the order of the images.
        """
        optimizer = torch.optim.Adam(net.train().parameters(), self.rate, weight_decay=1e-4)
        steps = max(self.least_steps, self.epochs * -(-len(x) // self.batch))
        order = torch.empty(0, dtype=torch.int64)
        for _ in range(steps):
            if len(order) < min(self.batch, len(x)):
                order = torch.randperm(len(x), generator=generator, device=generator.device).to(x.device)
            chosen, order = order[: self.batch], order[self.batch :]
            optimizer.zero_grad()
            functional.cross_entropy(net(x[chosen]), answers[chosen]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return net.eval()


@dataclass(frozen=True, eq=False)
class Substitute:
    """A stolen model.

    Attributes:
        net: From images to logits.
        queries: Asked of the target to make it.
    """

    net: nn.Module = field(repr=False)
    queries: int


def jacobian_substitute(
    target: Target,
    seeds: Tensor,
    make: Make,
    *,
    queries: int = 6400,
    step: float = 0.1,
    training: Training = Training(),
    seed: int = 0,
) -> Substitute:
    """Steal by Jacobian-based augmentation (Papernot, McDaniel, Goodfellow, Jha, Celik, Swami 2017): labels alone.

    Each round trains a substitute on what was labeled, then moves every image along the sign of the gradient of the
    probability of its label, and has the moved images labeled, until the queries are spent; then it trains on all.

    Args:
        target: What is stolen; it need give no more than labels.
        seeds: The first images, `(n, *shape)`.
        make: Makes an untrained network.
        queries: Budget, the seeds included.
        step: Length of a move in each feature, in widths of the bounds; every third round it changes its sign.
        training: Of each round.
        seed: Of orders and choices.

    Raises:
        InvalidInput: No seeds, or more of them than queries.
        LimitExceeded: The target's own budget is smaller.
    """
    _require(seeds, target, queries, "seeds")
    if len(seeds) > queries:
        raise InvalidInput(
            "The budget does not cover the first images.",
            [Problem("queries", f"{queries} for {len(seeds)} images.", "give fewer images, or more queries.")],
        )
    generator = torch.Generator().manual_seed(seed)
    x, labels, turn = seeds, _labels(target, seeds), 0
    net = training.fit(make(), x, labels, generator)
    while (left := queries - len(x)) > 0:
        length = step * target.bounds.width * (-1 if turn // 3 % 2 else 1)
        chosen = torch.randperm(len(x), generator=generator)[:left].to(x.device)
        fresh = target.bounds.clamp(x[chosen] + length * _gradient_signs(net, x[chosen], labels[chosen]))
        x, labels = torch.cat([x, fresh]), torch.cat([labels, _labels(target, fresh)])
        net, turn = training.fit(make(), x, labels, generator), turn + 1
    return Substitute(net, len(x))


def knockoff(
    target: Target,
    pool: Tensor,
    make: Make,
    *,
    queries: int = 6400,
    training: Training = Training(),
    seed: int = 0,
) -> Substitute:
    """Steal by a knockoff (Orekondy, Schiele, Fritz 2019), random policy: train on the target's probabilities.

    Args:
        target: What is stolen; gives probabilities.
        pool: Images that need not be of the target's classes, `(n, *shape)`.
        make: Makes an untrained network.
        queries: Budget; as many images of the pool are asked.
        training: Of the knockoff.
        seed: Of orders and choices.

    Raises:
        NotApplicable: The target gives labels alone.
        InvalidInput: The pool is empty.
        LimitExceeded: The target's own budget is smaller.
    """
    target.require(Access.PROBABILITIES, "A knockoff")
    _require(pool, target, queries, "pool")
    generator = torch.Generator().manual_seed(seed)
    x = pool[torch.randperm(len(pool), generator=generator)[:queries].to(pool.device)]
    scores = torch.cat([scores_of(target, part) for part in torch.split(x, _AT_ONCE)])
    return Substitute(training.fit(make(), x, scores.softmax(1), generator), len(x))


@dataclass(frozen=True)
class Theft:
    """What a substitute is worth, each a number of successes among `n`.

    Attributes:
        n: Held-out images.
        agrees: Images to which the substitute and the target give one class.
        right: Images that the substitute classifies rightly.
        attacked: Images that the target classifies rightly: those attacked.
        transferred: Of these, how many examples made on the substitute by one step fool the target.
        iterated: The same, by ten steps.
        random: Of these, how many random signs of the same size fool it.
        queries: That the substitute took.
    """

    n: int
    agrees: int
    right: int
    attacked: int
    transferred: int
    iterated: int
    random: int
    queries: int

    def shares(self) -> dict[str, tuple[float, Interval]]:
        """Fidelity, accuracy, transfer by one step and by ten, and its control, each with its 95 % Wilson interval."""
        counts = {
            "fidelity": (self.agrees, self.n),
            "accuracy": (self.right, self.n),
            "transfer": (self.transferred, self.attacked),
            "transfer_iterated": (self.iterated, self.attacked),
            "random": (self.random, self.attacked),
        }
        return {name: (k / n if n else 0.0, wilson(k, n)) for name, (k, n) in counts.items()}


def assess(
    substitute: Substitute, target: Target, images: Tensor, labels: Tensor, radius: float, *, seed: int = 0
) -> Theft:
    """Judge a substitute on images that it has not seen; asks the target four times an image.

    Args:
        substitute: What was stolen.
        target: From what.
        images: Held out, `(n, *shape)`.
        labels: Their classes, int64 `(n,)`.
        radius: Of the examples (Linf) and of the random signs.
        seed: Of the random signs, and of where ten steps start.
    """
    _require(images, target, 1, "images")
    truth = _labels(target, images)
    white = NetworkTarget(substitute.net, target.shape, bounds=target.bounds)
    guess = _labels(white, images)
    right = truth == labels
    x, y = images[right], labels[right]
    crafted = FGSM(radius)(white, x, Goal(y))
    # What walks on after it has fooled the substitute often fools more of others.
    walked = PGD(radius, steps=_STEPS, early_stop=False)(white, x, Goal(y), seed=seed)
    signs = 2.0 * torch.randint(2, x.shape, generator=torch.Generator().manual_seed(seed)).to(x) - 1
    noisy = target.bounds.clamp(x + radius * signs)
    one, ten, control = (
        int((_labels(target, found) != y).sum()) if len(x) else 0 for found in (crafted, walked, noisy)
    )
    agrees, good = int((guess == truth).sum()), int((guess == labels).sum())
    return Theft(len(images), agrees, good, len(x), one, ten, control, substitute.queries)


def _labels(target: Target, x: Tensor) -> Tensor:
    return torch.cat([target.query(part).labels for part in torch.split(x, _AT_ONCE)])


def _gradient_signs(net: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    signs = []
    for part, own in zip(torch.split(x, _AT_ONCE), torch.split(labels, _AT_ONCE), strict=True):
        moved = part.detach().requires_grad_()
        chosen = net(moved).log_softmax(1).gather(1, own[:, None]).sum()
        signs.append(torch.autograd.grad(chosen, moved)[0].sign())
    return torch.cat(signs)


def _require(images: Tensor, target: Target, queries: int, where: str) -> None:
    problems = []
    if queries < 1:
        problems.append(Problem("queries", f"{queries}.", "allow one query or more."))
    if not len(images) or tuple(images.shape[1:]) != target.shape:
        problems.append(Problem(where, f"Shape {tuple(images.shape)}.", f"give images (n, {target.shape}), n above 0."))
    if problems:
        raise InvalidInput("Nothing can be stolen so.", problems)
