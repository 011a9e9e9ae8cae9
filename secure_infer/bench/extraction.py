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
IMAGES, SEEDS, RADIUS, SEED = 1000, 150, 0.2, 0
BUDGETS = (600, 1200, 2400, 4800)
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Thief:
    """A way to steal.

    Attributes:
        name: Of the attack and of what it starts from.
        access: What the target gives.
        queries: Its budget.
    """

    name: str
    access: Access
    queries: int


def thieves(budgets: tuple[int, ...] = BUDGETS) -> list[Thief]:
    """All that are run."""
    labels = [Thief("jacobian", Access.LABEL, queries) for queries in budgets]
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
    at, subject = datetime.now(UTC).isoformat(timespec="seconds"), load_subject(MODEL)
    x, y = torch.from_numpy(subject.x).float(), torch.from_numpy(subject.y).long()
    net: nn.Module = subject.net
    return {
        "case": "extraction",
        "model": MODEL,
        "fingerprint": fingerprint(net),
        "n": images,
        "seeds": SEEDS,
        "radius": RADIUS,
        "seed": SEED,
        "rows": list(_rows(net, x, y, images, chosen, progress)),
        "host": host.host(),
        "load": host.load_average(),
        "versions": host.versions(("torch",)),
        "commit": host.commit(),
        "at": at,
    }


def _rows(
    net: nn.Module, x: Tensor, y: Tensor, images: int, chosen: list[Thief], progress: Progress
) -> Iterator[Record]:
    for thief in chosen:
        progress(f"{thief.name} {thief.queries}", 0, 1)
        target = NetworkTarget(net, tuple(x.shape[1:]), access=thief.access)
        start = perf_counter()
        stolen = _steal(thief, target, x)
        seconds = perf_counter() - start
        theft = assess(stolen, target, x[:images], y[:images], RADIUS, seed=SEED)
        shares = {name: {"share": share, "interval": list(ends)} for name, (share, ends) in theft.shares().items()}
        yield {
            "attack": thief.name,
            "access": thief.access.name,
            "queries": theft.queries,
            "seconds": seconds,
            "n": theft.n,
            "attacked": theft.attacked,
            **shares,
        }
        progress(f"{thief.name} {thief.queries}", 1, 1)


def _steal(thief: Thief, target: NetworkTarget, x: Tensor) -> Substitute:
    """Labels: from the last held-out images. Probabilities: with training images of this set, or of another one."""

    def make() -> nn.Module:
        return _network(x.shape[-1], target.classes)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        if thief.access is Access.LABEL:
            return jacobian_substitute(target, x[-SEEDS:], make, queries=thief.queries, seed=SEED)
        pool = load_dataset(STRANGERS if thief.name.endswith("strangers") else OWN).x_train
        return knockoff(target, torch.from_numpy(pool), make, queries=thief.queries, seed=SEED)


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
