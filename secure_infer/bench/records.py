"""A record: everything one run of one contender showed, as a flat JSON object on one line.

A null stands for what does not exist or could not be measured, never for zero.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from secure_infer.backends.parties.network import LOOPBACK
from secure_infer.bench.cases import Entry
from secure_infer.bench.contender import PHASES, Reals, Sample, Setup
from secure_infer.bench.floor import Floor
from secure_infer.bench.statistics import median_or_none, wilson
from secure_infer.errors import Problem, UsageError

Record: TypeAlias = dict[str, Any]
NO_ACCURACY = dict.fromkeys(("accuracy", "accuracy_interval", "accuracy_clear", "accuracy_clear_full"))
"""For networks of random weights."""
_LOG = logging.getLogger(__name__)


def times(setup: Mapping[str, float], samples: Sequence[Mapping[str, float]], batch: int) -> dict[str, float | None]:
    """Seconds by phase: compile and keygen once, the others the median of requests divided by their images."""
    found: dict[str, float | None] = {phase: setup.get(phase) for phase in PHASES[:2]}
    for phase in PHASES[2:]:
        value = median_or_none([sample.get(phase) for sample in samples])
        found[phase] = None if value is None else value / batch
    return found


def sizes(setup: Setup, samples: Sequence[Sample], batch: int) -> dict[str, int | None]:
    """Bytes of the keys, and of the messages for one image."""
    found = {"evaluation_keys": setup.evaluation_keys, "evaluation_keys_sent": setup.evaluation_keys_sent}
    for name in ("input", "output"):
        value = median_or_none([sample.bytes.get(name) for sample in samples])
        found[name] = None if value is None else round(value / batch)
    return found


def quality(outputs: Reals, clear: Reals, labels: npt.NDArray[np.int64]) -> Record:
    """Accuracy with its 95 % Wilson interval, accuracy in the clear, agreement of the classes, and greatest error.

    Args:
        outputs: What the protocol gave, shape `(n, classes)`.
        clear: What the same network gives without it, same shape.
        labels: True classes, shape `(n,)`.
    """
    predicted, expected = outputs.argmax(axis=1), clear.argmax(axis=1)
    correct = int((predicted == labels).sum())
    return {
        "accuracy": correct / len(labels),
        "accuracy_interval": list(wilson(correct, len(labels))),
        "accuracy_clear": float((expected == labels).mean()),
        "agreement": float((predicted == expected).mean()),
        "max_error": float(np.abs(outputs - clear).max()),
    }


def timing(entry: Entry, setup: Setup, samples: Sequence[Sample], bound: Floor | None) -> Record:
    """Times, traffic, counts and the floor."""
    wall = times(setup.wall_s, [sample.wall_s for sample in samples], entry.batch)
    counted = {name for sample in samples for name in sample.statistics if not name.endswith("seconds")}
    statistics = {name: median_or_none([s.statistics.get(name) for s in samples]) for name in sorted(counted)}
    cpu = times(setup.cpu_s, [sample.cpu_s for sample in samples], entry.batch)
    run, busy = wall["run"], cpu["run"]
    return {
        "wall_s": wall,
        "cpu_s": cpu,
        "run_s_all": [sample.wall_s["run"] / entry.batch for sample in samples],
        "dealer_cpu_s": _dealing(samples, entry.batch),
        "bytes": sizes(setup, samples, entry.batch),
        "counts": {**setup.counts, **statistics},
        "floor_s": bound.seconds if bound else None,
        "floor_ratio": run / bound.seconds if bound and run is not None else None,
        "floor": bound.as_dict() | {"cpu_ratio": bound.cpu_ratio(busy)} if bound else None,
    }


def _dealing(samples: Sequence[Sample], batch: int) -> float | None:
    """CPU seconds of the dealer for an image, who may work ahead: between the first request and the last."""
    spent = [sample.statistics.get("dealer_total_seconds") for sample in samples]
    if len(spent) < 2 or spent[0] is None or spent[-1] is None:
        return None
    return (spent[-1] - spent[0]) / (len(spent) - 1) / batch


def ratios(record: Record, first: Record) -> dict[str, float | None]:
    """How many times the seconds and the key bytes of another row of the same group a row takes.

    Args:
        record: The row.
        first: The first row of its group.
    """
    found: dict[str, float | None] = {}
    for clock in ("wall_s", "cpu_s"):
        for phase in ("keygen", "run"):
            found[f"{phase}_{clock}"] = _ratio(record[clock][phase], first[clock][phase])
    sent = "evaluation_keys_sent"
    return {**found, sent: _ratio(record["bytes"][sent], first["bytes"][sent])}


def _ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None


def append(path: Path, record: Record) -> None:
    """Add one line to a file in a single write, so that writers at the same time never mix their lines.

    Raises:
        UsageError: The file can't be written.
    """
    line = (json.dumps(record, allow_nan=False) + "\n").encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            written = os.write(descriptor, line)
        finally:
            os.close(descriptor)
        if written != len(line):
            raise OSError(f"only {written} of {len(line)} bytes were written")
    except OSError as error:
        raise UsageError(
            f"The record can't be added to {path}.",
            [Problem(str(path), f"{error.strerror or error}.", "give a folder that you may write to.")],
        ) from error


def read(path: Path) -> list[Record]:
    """All records of one file; a line that is no JSON object is left out and logged."""
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            record = None
        if isinstance(record, dict):
            found.append(record)
        else:
            _LOG.warning("%s, line %d is not a record; left out.", path.name, number)
    return found


def identity(record: Record) -> tuple[Any, ...]:
    """What makes two records rows of the same thing at different times."""
    keys = ("case", "protocol", "model", "peer", "mode", "batch")
    network = record.get("network", LOOPBACK)
    return *(record.get(key) for key in keys), network, json.dumps(record.get("options", {}), sort_keys=True)


def latest(folder: Path) -> list[Record]:
    """The newest record of each row of each case in a folder, in the order in which rows first appear.

    Records of a model's earlier weights are left out: those of its newest record are its own.
    """
    newest: dict[tuple[Any, ...], Record] = {}
    weights: dict[Any, tuple[str, Any]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for record in read(path):
            known = newest.get(identity(record))
            if known is None or record.get("at", "") >= known.get("at", ""):
                newest[identity(record)] = record
            model, at = record.get("model"), record.get("at", "")
            if at >= weights.get(model, ("", None))[0]:
                weights[model] = at, record.get("fingerprint")
    return [record for record in newest.values() if record.get("fingerprint") == weights[record.get("model")][1]]
