"""A small trained network on images of blocks, for the tests of defenses."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from secure_infer.defenses import Data

CLASSES = 4
SIDE = 8


@dataclass(frozen=True)
class Problem:
    """A network, what it was trained on, and other images of the same kind."""

    net: nn.Sequential
    data: Data
    images: Tensor
    labels: Tensor


@cache
def problem(n: int = 40) -> Problem:
    """Images whose class is the quadrant that is bright; noise on all pixels."""
    generator = torch.Generator().manual_seed(4)
    labels = torch.arange(400 + n) % CLASSES
    images = 0.2 + 0.1 * torch.randn(len(labels), 1, SIDE, SIDE, generator=generator)
    for i, label in enumerate(labels.tolist()):
        row, column = divmod(label, 2)
        images[i, 0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 0.4
    images = images.clamp(0, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 16), nn.ReLU(),
            nn.Linear(16, CLASSES),
        )  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images[n:]), labels[n:]).backward()
        optimizer.step()
    return Problem(net.eval().requires_grad_(False), Data(images[n:], labels[n:]), images[:n], labels[:n])
