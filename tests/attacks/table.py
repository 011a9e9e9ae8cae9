"""Every attack with the settings of its tests, in the order of ATTACKS; an attack that lacks a row fails them."""

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from secure_infer.attacks import Access, Bounds, FunctionTarget, Goal, NetworkTarget, Target

CLASSES = 4
IMAGE = (1, 6, 6)


@dataclass(frozen=True)
class Row:
    """How an attack is tested.

    Attributes:
        variants: Settings, one dict each; every variant runs through every test.
        succeeds: Share of the images that each variant must fool, with any goal that the attack declares.
        shapes: Odd input shapes that it must take.
        repeatable: Whether one seed gives the same images bit by bit.
    """

    variants: tuple[dict[str, Any], ...] = ({},)
    succeeds: float = 1.0
    shapes: tuple[tuple[int, ...], ...] = ((7,), (2, 5, 3))
    repeatable: bool = True


_BALLS = ({"radius": 0.4}, {"radius": 2.0, "norm": "l2"})

ROWS: dict[str, Row] = {
    "noise": Row(({"draws": 50}, {"kind": "uniform", "draws": 50}), succeeds=0.8),
    "jpeg": Row(succeeds=0.0, shapes=((1, 9, 5), (3, 8, 17))),
    "fgsm": Row(_BALLS, succeeds=0.3),
    "bim": Row(_BALLS),
    "least-likely": Row(_BALLS, succeeds=0.7),
    "pgd": Row((*_BALLS, {"radius": 0.4, "restarts": 3, "loss": "dlr"}, {"radius": 0.4, "early_stop": False})),
    "apgd": Row((*_BALLS, {"radius": 0.4, "restarts": 2, "loss": "dlr", "steps": 20})),
    "apgd-t": Row(({"radius": 0.4, "steps": 20},)),
    "autoattack": Row(
        ({"radius": 0.4, "steps": 20, "queries": 50}, {"radius": 2.0, "norm": "l2", "steps": 20, "queries": 50})
    ),
    "fab": Row(({"steps": 20}, {"steps": 20, "norm": "l2"})),
    "deepfool": Row(({}, {"norm": "linf"})),
    "superdeepfool": Row(({}, {"norm": "linf"}, {"classes": 1})),
    "ddn": Row(({"steps": 31},)),
    "fmn": Row(({"steps": 30}, {"steps": 30, "norm": "linf"})),
    "cw": Row(({"searches": 3, "steps": 40, "rate": 0.1, "weight": 1.0},)),
    "bp": Row(({"steps": 20},)),
    "hopskipjump": Row(({"queries": 300}, {"queries": 300, "norm": "linf", "parallel": 3})),
    "geoda": Row(({"queries": 200}, {"queries": 200, "norm": "linf"})),
    "surfree": Row(({"queries": 150}, {"queries": 150, "shaped": False, "angles": 3})),
    "square": Row(tuple({**ball, "queries": 200} for ball in _BALLS), succeeds=0.7),
    "estimated-pgd": Row(({**_BALLS[0], "noise": "signs"}, _BALLS[1]), succeeds=0.7),
    "one-pixel": Row(({"queries": 200, "population": 20}, {"queries": 200, "radius": 3}), succeeds=0.0),
}


@dataclass(frozen=True)
class Problem:
    """A small trained network with images that it classifies rightly, but for the last, whose label is wrong."""

    net: nn.Module
    images: Tensor
    labels: Tensor
    bounds: Bounds = field(default_factory=Bounds)

    def target(self, access: Access = Access.WHITE_BOX) -> Target:
        """The network with no more than this access."""
        shape = tuple(self.images.shape[1:])
        if access is Access.WHITE_BOX:
            return NetworkTarget(self.net, shape, bounds=self.bounds)
        answers = self.net if access > Access.LABEL else lambda x: self.net(x).argmax(1)
        return FunctionTarget(answers, shape, CLASSES, access=access, bounds=self.bounds)

    def goal(self, kind: str) -> Goal:
        """Of the kind, for all images; targets are neither the class that the network gives nor the label."""
        if kind == "targeted":
            return Goal(self.labels, (self.net(self.images).argmax(1) + 2) % CLASSES)
        return Goal(self.labels, confidence=0.2 if kind == "confidence" else None)


@cache
def problem(shape: tuple[int, ...] = IMAGE, low: float = 0.0, high: float = 1.0, n: int = 6) -> Problem:
    """Noisy copies of four random patterns, and a small network that tells them apart after a short training."""
    generator = torch.Generator().manual_seed(3)
    patterns = torch.rand(CLASSES, *shape, generator=generator)
    labels = torch.arange(200 + n) % CLASSES
    noise = torch.randn(len(labels), *shape, generator=generator)
    images = (patterns[labels] + 0.15 * noise).clamp(0, 1) * (high - low) + low
    net = _train(_network(shape, low, high), images[n:], labels[n:])
    with torch.no_grad():
        right = net(images[:n]).argmax(1)
    right[-1] = (right[-1] + 1) % CLASSES
    return Problem(net, images[:n], right, Bounds(low, high))


class _Scaled(nn.Module):
    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.low) / (self.high - self.low) - 0.5


def _network(shape: tuple[int, ...], low: float, high: float) -> nn.Module:
    features = torch.Size(shape).numel()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            _Scaled(low, high), nn.Flatten(), nn.Linear(features, 16), nn.ReLU(), nn.Linear(16, CLASSES)
        )


def _train(net: nn.Module, images: Tensor, labels: Tensor) -> nn.Module:
    optimizer = torch.optim.Adam(net.parameters(), lr=0.03)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
    return net.eval().requires_grad_(False)
