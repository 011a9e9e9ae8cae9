"""How far an image must move to be misclassified, by what moves it: noise, JPEG, labels alone, or gradients."""

from __future__ import annotations

import torch

from secure_infer.attacks import Access, Goal, NetworkTarget, attack
from secure_infer.attacks.best_effort import best_effort
from secure_infer.attacks.norms import size
from secure_infer.attacks.statistics import finite, median, median_interval
from secure_infer.attacks.surfree import SurFree
from secure_infer.bench.records import Record
from secure_infer.bench.subjects import fingerprint, load_subject

QUERIES = (100, 1000)
"""Of the attack that sees labels alone: few, and many."""
MODELS = ("fashion-cnn-float", "cifar10-cnn-ckks")


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
    blind = NetworkTarget(net, tuple(x.shape[1:]), access=Access.LABEL)
    moved = {name: attack(name)()(blind, x, Goal(y), seed=seed) for name in ("noise", "jpeg")}
    moved |= {f"surfree {q}": SurFree(queries=q)(blind, x, Goal(y), seed=seed) for q in QUERIES}
    sharpest = [attack("superdeepfool")(), attack("ddn")(steps=100)]  # type: ignore[call-arg]
    moved["white box"] = best_effort(target, sharpest, x, y).images
    rows = []
    for name, images in moved.items():
        fooled = target.query(images).labels != y
        distances = size(images - x, "l2").masked_fill(~fooled, torch.inf)
        ends = [finite(end) for end in median_interval(distances)]
        rows.append({"means": name, "median": finite(float(median(distances))), "interval": ends})
    return {"model": model, "fingerprint": fingerprint(net), "n": len(x), "seed": seed, "rows": rows}
