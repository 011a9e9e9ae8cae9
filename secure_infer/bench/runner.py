"""Runs a case: contenders of a group take turns on the same images, so that a busy machine is shared fairly."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from secure_infer.bench import host, memory, records
from secure_infer.bench.cases import Case, Entry
from secure_infer.bench.contender import Contender, Sample, Subject
from secure_infer.bench.floor import floor, waiting
from secure_infer.bench.ours import Ours
from secure_infer.bench.peers import load_peer
from secure_infer.bench.records import Record
from secure_infer.bench.subjects import fingerprint, load_subject
from secure_infer.cores import usable_cores
from secure_infer.errors import MissingExtra, Problem, UnsupportedNetwork, UsageError

_LOG = logging.getLogger(__name__)
Progress = Callable[[str, int, int], None]
"""Told an entry's label, the requests done and the requests to do."""


def run_case(
    case: Case,
    *,
    n: int | None = None,
    network: str | None = None,
    load: Callable[[str], Subject] = load_subject,
    progress: Progress | None = None,
) -> Iterator[Record]:
    """Run a case and give its records, one for each entry, group by group.

    Args:
        case: What to run.
        n: Images through each protocol, instead of what each entry says.
        network: Between all processes, instead of what each entry says; peers that can't be slowed down are left out.
        load: Finds a model and its data by name.
        progress: Called after each request.

    Raises:
        UsageError: An unknown model, peer or option.
        MissingExtra: Not one entry could run for want of its library.
    """
    missing: list[Problem] = []
    ran = False
    for group in case.groups():
        changes: dict[str, Any] = {"n_encrypted": n, "network": network}
        changes = {name: value for name, value in changes.items() if value is not None}
        entries = [replace(entry, **changes) for entry in group]
        for record in _run_group(case.name, entries, load(group[0].model), progress or silent, missing):
            ran = True
            yield record
    if not ran:
        raise MissingExtra(f"No entry of {case.name} could run.", missing)


def _run_group(
    case: str, entries: Sequence[Entry], subject: Subject, progress: Progress, missing: list[Problem]
) -> Iterator[Record]:
    at, load_before = datetime.now(UTC).isoformat(timespec="seconds"), host.load_average()
    weights = fingerprint(subject.net)
    memory.reset()
    with ExitStack() as stack:
        contenders: list[tuple[Entry, Contender]] = []
        for entry in entries:
            progress(entry.label, 0, _requests(entry, subject))
            contender = _make(entry, subject, missing)
            if contender is not None:
                stack.callback(contender.close)
                contenders.append((entry, contender))
        samples = _take_turns(contenders, subject, progress)
        peak = memory.peak()
        first: Record | None = None
        for (entry, contender), taken in zip(contenders, samples, strict=True):
            load = {"start": load_before, "end": host.load_average()}
            record = _record(entry, contender, taken, subject)
            shared = {"case": case, "fingerprint": weights, "load": load, "at": at, "peak_memory": peak}
            yield record | shared | {"ratios": None if first is None else records.ratios(record, first)}
            first = first or record


def _make(entry: Entry, subject: Subject, missing: list[Problem]) -> Contender | None:
    """The contender of an entry, or None (logged) where a library is missing or a peer can't express the network."""
    try:
        return Ours(subject, entry) if entry.peer is None else load_peer(entry.peer)(subject, entry)
    except MissingExtra as error:
        missing.extend(error.problems)
        _LOG.warning("%s is left out: %s", entry.label, error.summary)
    except UnsupportedNetwork as error:
        if entry.peer is None:
            raise
        _LOG.warning("%s is left out: %s", entry.label, " ".join([error.summary, *map(str, error.problems)]))
    return None


def _take_turns(
    contenders: Sequence[tuple[Entry, Contender]], subject: Subject, progress: Progress
) -> list[list[Sample]]:
    """One request of each contender in turn, until each has had all its images."""
    samples: list[list[Sample]] = [[] for _ in contenders]
    totals = [_requests(entry, subject) for entry, _ in contenders]
    for turn in range(max(totals, default=0)):
        for (entry, contender), taken, total in zip(contenders, samples, totals, strict=True):
            if turn < total:
                taken.append(contender.infer(subject.x[turn * entry.batch : (turn + 1) * entry.batch]))
                progress(entry.label, turn + 1, total)
    return samples


def _requests(entry: Entry, subject: Subject) -> int:
    """Whole batches in the images asked for; at least one."""
    if entry.batch > len(subject.x):
        raise UsageError(
            f"{subject.name} has too few held-out images.",
            [Problem("batch", f"Expected at most {len(subject.x)}, got {entry.batch}.", "use smaller batches.")],
        )
    return max(1, min(entry.n_encrypted, len(subject.x)) // entry.batch)


def _record(entry: Entry, contender: Contender, samples: Sequence[Sample], subject: Subject) -> Record:
    n = len(samples) * entry.batch
    setup = contender.setup
    clear = contender.clear(subject.x)
    outputs = np.concatenate([sample.outputs for sample in samples])
    # The counts are those of one image a request, so a floor for larger batches would be too high.
    alone = entry.batch == 1
    bound = floor(setup.counts, contender.primitives(), usable_cores(), waiting(entry, samples)) if alone else None
    return {
        "case": "",
        "protocol": entry.protocol,
        "model": entry.model,
        "fingerprint": "",
        "peer": entry.peer,
        "mode": entry.mode,
        "network": entry.network,
        "batch": entry.batch,
        "options": dict(entry.options),
        "n": n,
        "n_encrypted": n if entry.encrypts else 0,
        **records.quality(outputs, clear[:n], subject.y[:n]),
        "accuracy_clear_full": float((clear.argmax(axis=1) == subject.y).mean()),
        "n_clear_full": len(subject.y),
        **({} if subject.trained else records.NO_ACCURACY),
        **records.timing(entry, setup, samples, bound),
        "parameters": dict(setup.parameters),
        "host": host.host(),
        "load": {},
        "peak_memory": None,
        "versions": host.versions(setup.libraries),
        "commit": host.commit(),
        "at": "",
    }


def silent(label: str, done: int, total: int) -> None:
    """Progress that nobody asked for."""
