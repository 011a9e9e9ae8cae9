"""The run `label-queries`: distortion against queries of the label-only attacks, ours and those of other libraries.

Beside them stands what noise and gradients do to the same images (`ladder`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from secure_infer.attacks import Access, Goal, NetworkTarget
from secure_infer.attacks.base import Norm
from secure_infer.attacks.curve import Curve
from secure_infer.attacks.geoda import GeoDA
from secure_infer.attacks.hopskipjump import HopSkipJump
from secure_infer.attacks.line import LabelAttack, Search
from secure_infer.attacks.norms import size
from secure_infer.attacks.statistics import finite, median, median_interval
from secure_infer.attacks.surfree import SurFree
from secure_infer.bench import host, ladder
from secure_infer.bench.records import Record
from secure_infer.bench.subjects import fingerprint, load_subject

FOLDER = "attacks"
MODEL, IMAGES, SEED = "fashion-cnn-float", 100, 0
AT = (50, 100, 250, 500, 750, 1000)
STEPS = 6
"""Of the peers' HopSkipJump: about 1,200 queries an image."""
Progress = Callable[[str, int, int], None]


def run(n: int | None = None, progress: Progress | None = None) -> Record:
    """Attack the first rightly classified held-out images of a model.

    Args:
        n: Images, instead of 100.
        progress: Told the attack, 0 or 1, and 1.

    Raises:
        DataError: The data set is not to be found.
    """
    tell = progress or (lambda name, done, total: None)
    at, subject = datetime.now(UTC).isoformat(timespec="seconds"), load_subject(MODEL)
    net: nn.Module = subject.net.requires_grad_(False)
    x, y = torch.from_numpy(subject.x[:1000]).float(), torch.from_numpy(subject.y[:1000]).long()
    right = NetworkTarget(net, tuple(x.shape[1:])).query(x).labels == y
    x, y = x[right][: n or IMAGES], y[right][: n or IMAGES]
    starts = first_successes(net, x, y)
    curves = []
    for norm, kind in (("l2", HopSkipJump), ("l2", GeoDA), ("l2", SurFree), ("linf", HopSkipJump), ("linf", GeoDA)):
        tell(f"{kind.name} {norm}", 0, 1)
        curves.append(_curve(kind, norm, net, x, y, starts))  # type: ignore[arg-type]
        tell(f"{kind.name} {norm}", 1, 1)
    return {
        "case": "label-queries",
        "model": MODEL,
        "fingerprint": fingerprint(net),
        "n": len(x),
        "seed": SEED,
        "at": list(AT),
        "curves": curves,
        "peers": [duel for norm in ("l2", "linf") for duel in _duels(norm, net, x, y, starts, tell)],
        "ladders": [_ladder(name, len(x), tell) for name in ladder.MODELS],
        "host": host.host(),
        "load": host.load_average(),
        "versions": host.versions(("torch", "foolbox", "adversarial-robustness-toolbox")),
        "commit": host.commit(),
        "time": at,
    }


def _ladder(model: str, n: int, tell: Progress) -> Record:
    tell(f"noise to gradients on {model}", 0, 1)
    found = ladder.ladder(model, n, SEED)
    tell(f"noise to gradients on {model}", 1, 1)
    return found


def first_successes(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """One success for each image, shared by all attacks."""
    search = Search(NetworkTarget(net, tuple(x.shape[1:]), access=Access.LABEL), x, Goal(y), "l2", 100)
    search.start(torch.Generator().manual_seed(SEED))
    return search.best


def _curve(kind: type[LabelAttack], norm: Norm, net: nn.Module, x: Tensor, y: Tensor, starts: Tensor) -> Record:
    curve, target = Curve(AT), NetworkTarget(net, tuple(x.shape[1:]), access=Access.LABEL)
    start = perf_counter()
    kind(norm=norm, queries=AT[-1], starts=starts, curve=curve)(target, x, Goal(y), seed=SEED)
    seconds = perf_counter() - start
    intervals = [[finite(end) for end in median_interval(column)] for column in curve.distances.T]
    medians = [finite(value) for value in curve.medians()]
    return {"attack": kind.name, "norm": norm, "medians": medians, "intervals": intervals, "seconds": seconds}


def _duels(norm: Norm, net: nn.Module, x: Tensor, y: Tensor, starts: Tensor, tell: Progress) -> list[Record]:
    """HopSkipJump of each library that is installed, and ours at as many queries an image."""
    found = []
    for name, peer in (("foolbox", foolbox), ("foolbox, image by image", one_by_one), ("art", art)):
        tell(f"{name} {norm}", 0, 1)
        counted = _Counted(net)
        start = perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                theirs = peer(counted, norm, x, y, starts)
        except ModuleNotFoundError:
            continue
        seconds = perf_counter() - start
        queries = counted.rows // len(x)
        curve, target = Curve([queries]), NetworkTarget(net, tuple(x.shape[1:]), access=Access.LABEL)
        start = perf_counter()
        HopSkipJump(norm=norm, queries=queries, starts=starts, curve=curve)(target, x, Goal(y), seed=SEED)
        ours = perf_counter() - start
        fooled = target.query(theirs).labels != y
        distances = size(theirs - x, norm).masked_fill(~fooled, torch.inf)
        found.append(
            {
                "peer": name,
                "norm": norm,
                "queries": queries,
                "median": {"ours": curve.medians()[0], "peer": finite(float(median(distances)))},
                "seconds": {"ours": ours, "peer": seconds},
            }
        )
        tell(f"{name} {norm}", 1, 1)
    return found


class _Counted(nn.Module):
    """The network, and how many images it was asked for."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.rows = net.eval(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        logits: Tensor = self.net(x)
        return logits


def foolbox(net: nn.Module, norm: Norm, x: Tensor, y: Tensor, starts: Tensor) -> Tensor:
    """HopSkipJump of Foolbox, from shared starts."""
    import foolbox as library

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = library.PyTorchModel(net.eval(), bounds=(0, 1))
        peer = library.attacks.HopSkipJumpAttack(steps=STEPS, constraint=norm)
        found: Tensor = peer(model, x, y, starting_points=starts, epsilons=None)[1]
    return found


def one_by_one(net: nn.Module, norm: Norm, x: Tensor, y: Tensor, starts: Tensor) -> Tensor:
    """The same without batches, in which Foolbox comes less far at as many queries."""
    found = [foolbox(net, norm, x[i : i + 1], y[i : i + 1], starts[i : i + 1]) for i in range(len(x))]
    return torch.cat(found)


def art(net: nn.Module, norm: Norm, x: Tensor, y: Tensor, starts: Tensor) -> Tensor:
    """HopSkipJump of the Adversarial Robustness Toolbox, one image after the other, from shared starts."""
    import numpy as np
    from art.attacks.evasion import HopSkipJump as Peer
    from art.estimators.classification import PyTorchClassifier

    state: Any = np.random.get_state()
    try:
        np.random.seed(SEED)
        model = PyTorchClassifier(net, nn.CrossEntropyLoss(), x.shape[1:], 10, clip_values=(0, 1), device_type="cpu")
        peer = Peer(model, norm=2 if norm == "l2" else np.inf, max_iter=STEPS, verbose=False)
        return torch.from_numpy(peer.generate(x.numpy(), y.numpy(), x_adv_init=starts.numpy()))
    finally:
        np.random.set_state(state)
