"""How far an image must move to be misclassified, by what moves it: noise, JPEG, labels alone, or gradients."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from secure_infer.attacks import Access, Goal, NetworkTarget, attack
from secure_infer.attacks.best_effort import best_effort
from secure_infer.attacks.curve import Curve
from secure_infer.attacks.hopskipjump import HopSkipJump
from secure_infer.attacks.norms import size
from secure_infer.attacks.statistics import finite, median, median_interval
from secure_infer.attacks.surfree import SurFree
from secure_infer.bench.records import Record
from secure_infer.bench.subjects import fingerprint, load_subject

QUERIES = (50, 100, 250, 500, 1000)
"""Of the attacks that see labels alone: from few to many."""
MODELS = ("mnist-cnn-float", "fashion-cnn-float", "cifar10-cnn-ckks")


def ladder(model: str, n: int, seed: int = 0) -> Record:
    """Median Euclidean distance of each step, from the mildest means to the sharpest, on the same images.

    Images that a means does not misclassify count as infinitely far for it.

    Args:
        model: Of the zoo.
        n: Held-out images, the first that are classified rightly.
        seed: Of everything drawn.

    Raises:
        DataError: The data set is not to be found.
    """
    subject = load_subject(model)
    net = subject.net.eval().requires_grad_(False)
    x, y = torch.from_numpy(subject.x[: 2 * n]).float(), torch.from_numpy(subject.y[: 2 * n]).long()
    target = NetworkTarget(net, tuple(x.shape[1:]))
    right = target.query(x).labels == y
    x, y = x[right][:n], y[right][:n]
    blind = NetworkTarget(net, target.shape, access=Access.LABEL)
    sharpest = [attack("superdeepfool")(), attack("ddn")(steps=100)]  # type: ignore[call-arg]
    found = [
        *_blind(blind, x, y, seed),
        ("white box", _distances(target, best_effort(target, sharpest, x, y).images, x, y)),
    ]
    nearest = float(median(found[-1][1]))
    rows = [
        {
            "means": name,
            "median": finite(float(median(distances))),
            "interval": [finite(end) for end in median_interval(distances)],
            "times_white_box": finite(float(median(distances)) / nearest),
        }
        for name, distances in found
    ]
    return {"model": model, "fingerprint": fingerprint(net), "n": len(x), "seed": seed, "rows": rows}


def _blind(target: NetworkTarget, x: Tensor, y: Tensor, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Distances, `(n,)` each, of what needs no scores: noise, JPEG, and attacks by labels at each budget."""
    for name in ("noise", "jpeg"):
        yield name, _distances(target, attack(name)()(target, x, Goal(y), seed=seed), x, y)
    for kind in (HopSkipJump, SurFree):
        curve = Curve(QUERIES)
        kind(queries=QUERIES[-1], curve=curve)(target, x, Goal(y), seed=seed)
        yield from ((f"{kind.name} {asked}", curve.distances[:, i]) for i, asked in enumerate(QUERIES))


def _distances(target: NetworkTarget, moved: Tensor, x: Tensor, y: Tensor) -> Tensor:
    fooled = target.query(moved).labels != y
    return size(moved - x, "l2").masked_fill(~fooled, torch.inf)
