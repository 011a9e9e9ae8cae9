"""The run `extraction`: what a model's answers give away, by labels and by probabilities, at several query budgets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from time import perf_counter

import torch
from torch import Tensor, nn

from secure_infer.attacks import Access, NetworkTarget
from secure_infer.attacks.extraction import Substitute, assess, jacobian_substitute, knockoff
from secure_infer.bench import host
from secure_infer.bench.records import Record
from secure_infer.bench.subjects import fingerprint, load_subject
from secure_infer.nn.data import load_dataset

FOLDER = "attacks"
MODEL, OWN, STRANGERS = "fashion-cnn-float", "fashion-mnist", "mnist"
SECOND = "mnist-cnn-float"
IMAGES, SEEDS, SEED = 1000, 150, 0
RADII = {MODEL: (0.1, 0.2), SECOND: (0.15, 0.2, 0.25, 0.3)}
"""By which transfer is judged; at the greatest, that of the study of such substitutes, random signs do much."""
BUDGETS = (600, 1200, 2400, 4800, 6400)
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Thief:
    """A way to steal.

    Attributes:
        name: Of the attack and of what it starts from.
        access: What the target gives.
        queries: Its budget.
        model: What it steals.
    """

    name: str
    access: Access
    queries: int
    model: str = MODEL


def thieves(budgets: tuple[int, ...] = BUDGETS) -> list[Thief]:
    """All that are run."""
    labels = [Thief("jacobian", Access.LABEL, queries) for queries in budgets]
    labels.append(Thief("jacobian", Access.LABEL, budgets[-1], SECOND))
    return labels + [Thief(name, Access.PROBABILITIES, budgets[-1]) for name in ("knockoff", "knockoff-strangers")]


def run(n: int | None = None, progress: Progress | None = None) -> Record:
    """Steal a network of the zoo and judge each substitute on held-out images that no attack has seen.

    Args:
        n: Held-out images, instead of 1,000.
        progress: Told the attack, 0 or 1, and 1.

    Raises:
        DataError: A data set is not to be found.
    """
    return measure(n or IMAGES, thieves(), progress or (lambda name, done, total: None))


def measure(images: int, chosen: list[Thief], progress: Progress) -> Record:
    """As `run`, with the attacks chosen.

    Args:
        images: Held-out images.
        chosen: Attacks.
        progress: As in `run`.
    """
    at = datetime.now(UTC).isoformat(timespec="seconds")
    return {
        "case": "extraction",
        "n": images,
        "seeds": SEEDS,
        "seed": SEED,
        "rows": list(_rows(images, chosen, progress)),
        "host": host.host(),
        "load": host.load_average(),
        "versions": host.versions(("torch",)),
        "commit": host.commit(),
        "at": at,
    }


def _rows(images: int, chosen: list[Thief], progress: Progress) -> Iterator[Record]:
    subjects = {model: load_subject(model) for model in dict.fromkeys(thief.model for thief in chosen)}
    for thief in chosen:
        progress(f"{thief.name} {thief.queries} of {thief.model}", 0, 1)
        subject = subjects[thief.model]
        x, y = torch.from_numpy(subject.x).float(), torch.from_numpy(subject.y).long()
        target = NetworkTarget(subject.net, tuple(x.shape[1:]), access=thief.access)
        start = perf_counter()
        stolen = _steal(thief, target, x[images:])
        seconds = perf_counter() - start
        for radius in RADII[thief.model]:
            theft = assess(stolen, target, x[:images], y[:images], radius, seed=SEED)
            shares = {name: {"share": share, "interval": list(ends)} for name, (share, ends) in theft.shares().items()}
            yield {
                "attack": thief.name,
                "model": thief.model,
                "fingerprint": fingerprint(subject.net),
                "access": thief.access.name,
                "queries": theft.queries,
                "radius": radius,
                "seconds": seconds,
                "n": theft.n,
                "attacked": theft.attacked,
                **shares,
            }
        progress(f"{thief.name} {thief.queries} of {thief.model}", 1, 1)


def _steal(thief: Thief, target: NetworkTarget, x: Tensor) -> Substitute:
    """Labels: from some of the images `x`. Probabilities: with training images of this set, or of another one."""

    def make() -> nn.Module:
        return _network(x.shape[-1], target.classes)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        if thief.access is Access.LABEL:
            return jacobian_substitute(target, some(x, SEEDS, SEED), make, queries=thief.queries, seed=SEED)
        pool = load_dataset(STRANGERS if thief.name.endswith("strangers") else OWN).x_train
        return knockoff(target, torch.from_numpy(pool), make, queries=thief.queries, seed=SEED)


def some(x: Tensor, n: int, seed: int) -> Tensor:
    """Images drawn at random; neighbors in a data set are of one writer, and all a thief would know of the rest."""
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:n]]


def _network(side: int, classes: int) -> nn.Module:
    """A substitute of another architecture than the target's."""
    half = -(-side // 2)
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, 2, 2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 5, 2, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * (-(-half // 2)) ** 2, 100),
        nn.ReLU(),
        nn.Linear(100, classes),
    )
