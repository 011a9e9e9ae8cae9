"""Extraction: a substitute trained on the labels that a client is told."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from secure_infer.attacks import Access
from secure_infer.attacks.extraction import assess, jacobian_substitute
from secure_infer.bench.extraction import SEEDS, some
from secure_infer.bench.threats.cells import Cell, Deployment, Settings

_RADIUS = 0.25
"""Of the fast gradient sign by which transfer is judged, as in the first study of such substitutes."""


def blank_substitute(deployment: Deployment, classes: int) -> Callable[[], nn.Module]:
    """What makes a thief's untrained network, which knows of the model only its shapes."""
    size = math.prod(deployment.weights.shape)
    return lambda: nn.Sequential(nn.Flatten(), nn.Linear(size, 100), nn.ReLU(), nn.Linear(100, classes))


def substitute(deployment: Deployment, settings: Settings) -> Cell:
    """Steal by Jacobian-based augmentation from held-out images, and judge on others that it has not seen."""
    weights = deployment.weights
    target = deployment.deployed(Access.LABEL, settings.seed)
    count = min(2 * settings.n, len(weights.images) - SEEDS)
    images, labels = weights.images[:count], weights.labels[:count]
    seeds = some(weights.images[count:], min(SEEDS, settings.stolen), settings.seed)
    make = blank_substitute(deployment, target.classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        stolen = jacobian_substitute(target, seeds, make, queries=settings.stolen, seed=settings.seed)
    seconds = target.meter.seconds
    theft = assess(stolen, target, images, labels, _RADIUS, seed=settings.seed)
    shares = {name: {"share": share, "interval": list(ends)} for name, (share, ends) in theft.shares().items()}
    return Cell(
        "held-out images to which the substitute gives the model's class",
        theft.agrees,
        theft.n,
        access=Access.LABEL.name,
        mode=deployment.mode,
        queries=float(stolen.queries),
        per="model",
        seconds=seconds,
        details={"attack": "Jacobian-based augmentation", "fgsm_radius": _RADIUS, **shares},
    )
