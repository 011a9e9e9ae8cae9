"""How far an image must move to be misclassified, by what moves it: noise, JPEG, labels alone, or gradients."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from secure_infer.attacks import Access, Goal, NetworkTarget, attack
from secure_infer.attacks.best_effort import best_effort
from secure_infer.attacks.curve import Curve
from secure_infer.attacks.geoda import GeoDA
from secure_infer.attacks.hopskipjump import HopSkipJump
from secure_infer.attacks.norms import size
from secure_infer.attacks.statistics import finite, median, median_interval, wilson
from secure_infer.attacks.surfree import SurFree
from secure_infer.bench import faces
from secure_infer.bench.records import Record
from secure_infer.bench.subjects import fingerprint, load_subject

QUERIES = (50, 100, 250, 500, 1000)
"""Of the attacks that see labels alone: from few to many."""
MODELS = ("mnist-cnn-float", "fashion-cnn-float", "cifar10-cnn-ckks", faces.NAME)
_AT_ONCE = 1000


def ladder(model: str, n: int, seed: int = 0) -> Record:
    """Median Euclidean distance of each step, from the mildest means to the sharpest, on the same images.

    Images that a means does not misclassify count as infinitely far for it. Beside them the accuracy on all held-out
    images: what a network has learned says nothing of how far its answers hold.

    Args:
        model: For `load_subject`.
        n: Held-out images, the first that are classified rightly; fewer where there are no more.
        seed: Of everything drawn.

    Raises:
        DataError: The data set is not to be found.
    """
    subject = load_subject(model)
    net = subject.net.eval().requires_grad_(False)
    x, y = torch.from_numpy(subject.x).float(), torch.from_numpy(subject.y).long()
    target = NetworkTarget(net, tuple(x.shape[1:]))
    right = torch.cat([target.query(part).labels for part in torch.split(x, _AT_ONCE)]) == y
    accuracy = {"share": float(right.double().mean()), "interval": list(wilson(int(right.sum()), len(x))), "n": len(x)}
    x, y = x[right][:n], y[right][:n]
    blind = NetworkTarget(net, target.shape, access=Access.LABEL)
    sharpest = [attack("superdeepfool")(), attack("ddn")(steps=100), attack("bp")(steps=100)]  # type: ignore[call-arg]
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
    return {
        "model": model,
        "fingerprint": fingerprint(net),
        "shape": list(target.shape),
        "accuracy": accuracy,
        "n": len(x),
        "seed": seed,
        "rows": rows,
    }


def _blind(target: NetworkTarget, x: Tensor, y: Tensor, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Distances, `(n,)` each, of what needs no scores: noise, JPEG, and attacks by labels at each budget."""
    for name in ("noise", "jpeg"):
        yield name, _distances(target, attack(name)()(target, x, Goal(y), seed=seed), x, y)
    for kind in (HopSkipJump, GeoDA, SurFree):
        curve = Curve(QUERIES)
        kind(queries=QUERIES[-1], curve=curve)(target, x, Goal(y), seed=seed)
        yield from ((f"{kind.name} {asked}", curve.distances[:, i]) for i, asked in enumerate(QUERIES))


def _distances(target: NetworkTarget, moved: Tensor, x: Tensor, y: Tensor) -> Tensor:
    fooled = target.query(moved).labels != y
    return size(moved - x, "l2").masked_fill(~fooled, torch.inf)
