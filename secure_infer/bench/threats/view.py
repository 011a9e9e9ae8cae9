"""What the server sees: can it tell two inputs apart, and notice that somebody attacks or steals the model?"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from secure_infer import backends
from secure_infer.attacks import Access, FunctionTarget, Goal, attack
from secure_infer.attacks.distinguish import Verdict, distinguish, distinguish_messages, leak_bit
from secure_infer.attacks.extraction import jacobian_substitute
from secure_infer.bench.extraction import SEEDS, some
from secure_infer.bench.threats.cells import Cell, Deployment, Settings
from secure_infer.bench.threats.extraction import blank_substitute
from secure_infer.defenses.prada import Watch

_WATCHED = 100
_THIEVING, _HONEST, _ORDERS, _FEATURES = 3 * SEEDS, 220, 20, 1 << 12
_MARGIN = 1.5
_FALSE_ALARMS = 0.01


def _encrypted(deployment: Deployment, x: npt.NDArray[Any], indices: npt.NDArray[Any]) -> list[tuple[bytes, ...]]:
    """Fresh messages of one client, one for each index into the images `x`; a message for each party."""
    compiled = deployment.weights.compiled(deployment.protocol)
    role = backends.load(deployment.protocol).client(compiled.program.client)
    keys, units = role.keygen(), compiled.graph.quantize(x)
    return [role.encrypt(units[index : index + 1], keys) for index in indices]


def input_view(deployment: Deployment, settings: Settings) -> Cell:
    """Tell messages of two known images apart, by their bytes and by how long the server takes.

    The control is the same messages with one bit of the plaintext leaked into one byte: it has to be caught.
    """
    pair = _two_classes(deployment)
    inputs = np.random.default_rng(settings.seed).permutation(np.arange(settings.messages) % 2)
    if deployment.encrypted:
        parties = list(zip(*_encrypted(deployment, pair, inputs), strict=True))
        verdicts = [distinguish_messages(messages, inputs, seed=settings.seed) for messages in parties]
        # One and the same byte of all messages, whose lengths may differ by a few.
        place = min(map(len, parties[0])) // 2
        leaking = [leak_bit(message, bool(bit), place) for message, bit in zip(parties[0], inputs, strict=True)]
        control = distinguish_messages(leaking, inputs, seed=settings.seed).as_dict()
        times = _times(deployment, pair, settings) if settings.timed else None
        details: dict[str, Any] = {"control_one_bit_leaked": control, "times": times}
    else:
        messages = [pair[bit].astype(np.float32).tobytes() for bit in inputs]
        verdicts, details = [distinguish_messages(messages, inputs, seed=settings.seed)], {}
    worst = max(verdicts, key=lambda verdict: verdict.right)
    details["parties"] = [verdict.as_dict() for verdict in verdicts]
    return Cell(
        "guesses of the input that are right (a coin: one half)",
        worst.right,
        worst.n,
        gain=2 * worst.accuracy - 1 if worst.caught else 0.0,
        access="the server's own messages",
        mode="executed" if deployment.encrypted else "clear",
        queries=settings.messages,
        per="client",
        details=details,
    )


def _two_classes(deployment: Deployment) -> npt.NDArray[Any]:
    """Two held-out images of two classes, `(2, *shape)`."""
    images, labels = deployment.weights.images, deployment.weights.labels
    other = int((labels != labels[0]).nonzero()[0])
    return np.asarray(torch.stack([images[0], images[other]]))


def _times(deployment: Deployment, pair: npt.NDArray[Any], settings: Settings) -> dict[str, Any]:
    """Tell the two images apart by the server's wall time and the sizes of its replies; requests in random order."""
    inputs = np.random.default_rng(settings.seed + 1).permutation(np.arange(settings.timed) % 2)
    client = deployment.weights.compiled(deployment.protocol).client()
    found = [client.infer(pair[bit : bit + 1]) for bit in inputs]
    features = np.array([[p.wall_s["run"], p.bytes["output"]] for p in found])
    verdict: Verdict = distinguish(features, inputs, seed=settings.seed)
    return {**verdict.as_dict(), "requests": settings.timed}


def query_defense(deployment: Deployment, settings: Settings) -> Cell:
    """Notice an attack by queries that lie close to earlier ones (Chen, Carlini, Wagner 2019), on what the server gets.

    The threshold is the distance that one benign query in a hundred falls below. In the clear, distances are those of
    images; under encryption all that there is to compare is bytes.
    """
    benign, hostile = _benign(deployment), _hostile(deployment, settings)
    known, fresh = benign[:_WATCHED], benign[_WATCHED : 2 * _WATCHED]
    start = time.perf_counter()
    rows = [_as_seen(deployment, part) for part in (known, fresh, hostile)]
    first, second, third = rows
    threshold = float(np.quantile(_nearest(first), _FALSE_ALARMS))
    flagged, alarms = (int((_nearest(part)[1:] < threshold).sum()) for part in (third, second))
    n = len(third) - 1
    return Cell(
        "attack queries that pass unnoticed",
        n - flagged,
        n,
        access="every message of the client",
        mode="executed" if deployment.encrypted else "clear",
        queries=len(hostile),
        per="client",
        seconds=time.perf_counter() - start,
        details={"detector": "distance to the nearest earlier query", "flagged": flagged, "attack": "surfree"}
        | {"false_alarms": alarms, "n_benign": len(second) - 1},
    )


def _benign(deployment: Deployment) -> Tensor:
    return deployment.weights.images[-2 * _WATCHED :]


def _hostile(deployment: Deployment, settings: Settings) -> Tensor:
    """The first queries of a label-only attack on one image, as the client sends them."""
    images, labels = deployment.right(1)
    copy, asked = deployment.own_copy(), []

    def record(x: Tensor) -> Tensor:
        asked.append(x)
        return copy.query(x).labels

    target = FunctionTarget(record, deployment.weights.shape, copy.classes, access=Access.LABEL)
    attack("surfree")(queries=2 * _WATCHED)(target, images, Goal(labels), seed=settings.seed)  # type: ignore[call-arg]
    return torch.cat(asked)[-_WATCHED:]


def theft_defense(deployment: Deployment, settings: Settings) -> Cell:
    """Notice the theft of a model by how far a client's queries lie apart (PRADA), on what the server gets.

    In the clear it compares the images of each class that it answers; under encryption it has bytes and no class. The
    threshold is half as far again from a normal sample's statistic as that of the worst honest client: known images, in
    orders drawn at random.
    """
    stolen = _stolen(deployment, settings)
    known, fresh = some(deployment.weights.images, 2 * _HONEST, settings.seed + 1).chunk(2)
    start = time.perf_counter()
    (seen, classes), *others = (_as_answered(deployment, part) for part in (known, stolen, fresh))
    orders = [torch.randperm(len(seen), generator=torch.Generator().manual_seed(i)) for i in range(_ORDERS)]
    least = min(_least_normality(seen[order], classes[order]) for order in orders)
    threshold = 1 - _MARGIN * (1 - least)
    passed, kept = (_before_alarm(*part, threshold) for part in others)
    return Cell(
        "a thief's queries that pass before the alarm",
        passed,
        len(stolen),
        access="every message of the client",
        mode="executed" if deployment.encrypted else "clear",
        queries=len(stolen),
        per="client",
        seconds=time.perf_counter() - start,
        details={"detector": "PRADA", "attack": "Jacobian-based augmentation", "threshold": threshold}
        | {"honest_passed": kept, "n_honest": len(fresh)},
    )


def _stolen(deployment: Deployment, settings: Settings) -> Tensor:
    """The queries of a thief by Jacobian-based augmentation, as its client sends them."""
    images, copy, asked = deployment.weights.images, deployment.own_copy(), []

    def record(x: Tensor) -> Tensor:
        asked.append(x)
        return copy.query(x).labels

    target = FunctionTarget(record, deployment.weights.shape, copy.classes, access=Access.LABEL)
    make = blank_substitute(deployment, copy.classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        jacobian_substitute(target, some(images, SEEDS, settings.seed), make, queries=_THIEVING, seed=settings.seed)
    return torch.cat(asked)


def _as_answered(deployment: Deployment, images: Tensor) -> tuple[Tensor, Tensor]:
    """A row a query as the server sees it, and the class that it answered: one for all if it can not know."""
    rows = torch.from_numpy(_as_seen(deployment, images)[:, -_FEATURES:])
    return rows, torch.zeros(len(rows)) if deployment.encrypted else deployment.own_copy().query(images).labels


def _least_normality(rows: Tensor, classes: Tensor) -> float:
    """The least statistic that PRADA finds while a client asks its queries, from 100 distances on.

    Args:
        rows: Queries in their order, `(n, features)`, more than 100 above the number of classes.
        classes: Their answers, `(n,)`.
    """
    watch, found = Watch(), []
    for row, label in zip(rows, classes.tolist(), strict=True):
        watch.sees(row, int(label))
        if len(watch.distances) > watch.least:
            found.append(watch.normality)
    return min(found)


def _before_alarm(rows: Tensor, classes: Tensor, threshold: float) -> int:
    """How many of a client's queries pass until PRADA raises its alarm."""
    watch = Watch(threshold)
    alarms = (watch.sees(row, int(label)) for row, label in zip(rows, classes.tolist(), strict=True))
    return next((passed for passed, alarm in enumerate(alarms) if alarm), len(rows))


def _as_seen(deployment: Deployment, images: Tensor) -> npt.NDArray[np.float32]:
    """A row a query: pixels in the clear, else the bits of the message to the first party up to a common length."""
    if not deployment.encrypted:
        return np.asarray(images.flatten(1), dtype=np.float32)
    messages = [parts[0] for parts in _encrypted(deployment, images.numpy(), np.arange(len(images)))]
    shortest = min(*map(len, messages), 1 << 13)
    # The end of a message is ciphertext; its head names the model and is the same in all.
    raw = np.stack([np.frombuffer(message[-shortest:], np.uint8) for message in messages])
    return np.unpackbits(raw, axis=1).astype(np.float32)


def _nearest(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Distance of each query to the nearest earlier one; infinite for the first."""
    squares = (rows.astype(np.float64) ** 2).sum(1)
    apart = squares[:, None] + squares - 2 * (rows @ rows.T).astype(np.float64)
    apart[np.triu_indices(len(rows))] = np.inf
    return np.asarray(np.sqrt(np.maximum(apart, 0)).min(1))
