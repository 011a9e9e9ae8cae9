"""Measures every threat in every column, and keeps one record a cell."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from secure_infer.attacks import Meter
from secure_infer.bench import host
from secure_infer.bench.records import Record
from secure_infer.bench.threats.cells import PROTOCOLS, Deployment, Settings, deployments
from secure_infer.bench.threats.rows import rows
from secure_infer.errors import LimitExceeded, NotApplicable
from secure_infer.targets import FORMS

SCHEMA = 1
_SINGLE = 5
"""Images whose queries are timed alone."""
Progress = Callable[[str], None]


def measure(
    dataset: str,
    settings: Settings,
    *,
    protocols: Sequence[str] = PROTOCOLS,
    forms: Sequence[str] = FORMS,
    threats: Sequence[str] = (),
    on_ciphertexts: bool = False,
    progress: Progress = lambda _: None,
) -> Record:
    """Measure the matrix of one data set.

    Args:
        dataset: Name of a data set that the zoo has models for.
        settings: How much is measured.
        protocols: Columns to measure.
        forms: Of these columns, which to measure.
        threats: Rows to measure; all if empty.
        on_ciphertexts: Whether attacks ask real ciphertexts instead of a simulation.
        progress: Told what is measured next.

    Returns:
        One JSON document: settings, machine, and a record for each column and cell.

    Raises:
        UsageError: The zoo has no models for the data set.
        DataError: It is nowhere to be found.
    """
    columns = deployments(dataset, protocols)
    surrogate = next(column.subject for column in columns if column.subject is not None)
    columns = [replace(column, on_ciphertexts=on_ciphertexts) for column in columns if column.form in forms]
    chosen = {name: row for name, row in rows(surrogate).items() if not threats or name in threats}
    document: Record = {
        "schema": SCHEMA,
        "dataset": dataset,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": host.commit(),
        "host": host.host(),
        "versions": host.versions(["torch", "concrete-python", "tenseal", "crypten"]),
        "settings": asdict(settings),
        "rows": {name: {"title": row.title, "about": row.about} for name, row in chosen.items()},
        "columns": [],
        "cells": [],
    }
    try:
        for column in columns:
            document["columns"].append(_column(column, settings, progress))
            for name, row in chosen.items():
                progress(f"{dataset}: {name}, {column.protocol} {column.form}")
                document["cells"].append(_cell(name, row.measure, column, settings))
    finally:
        for weights in {id(c.subject): c.subject for c in columns if c.subject is not None}.values():
            weights.close()
    # What is returned is what will be read again: no tuples, and no numbers that JSON lacks.
    written: Record = json.loads(json.dumps(document, allow_nan=False))
    return written


def _column(column: Deployment, settings: Settings, progress: Progress) -> Record:
    """What a query costs in this column, and how far its simulation speaks for real ciphertexts."""
    found: Record = {"protocol": column.protocol, "form": column.form}
    if column.why_not:
        return {**found, "not_applicable": column.why_not}
    found |= {"model": column.weights.name, "guarantee": None, "agreement": None, "query": None}
    if not column.encrypted or not settings.executed:
        return found
    progress(f"{column.dataset}: {settings.executed} images through {column.protocol} {column.form}")
    images = _mixed(column, settings)
    agreed, executed = column.agrees(images, settings.seed)
    # The price is that of queries one after another; in one request, images share its rounds.
    meter = executed.meter = Meter()
    for image in images[:_SINGLE]:
        executed.query(image[None])
    here = {"seconds": meter.seconds / meter.queries, "bytes": (meter.sent + meter.received) / meter.queries}
    compiled = column.weights.compiled(column.protocol)
    found |= {"agreement": agreed.as_dict(), "guarantee": compiled.guarantee.as_dict()}
    return {**found, "query": {**here, "n": meter.queries}}


def _mixed(column: Deployment, settings: Settings) -> Any:
    """Held-out images, every second of them disturbed: attacks end near the boundary, where errors show."""
    from secure_infer.attacks import Goal, attack

    images, labels = column.right(settings.executed)
    mixed = images.clone()
    mixed[1::2] = attack("ddn")(steps=50)(column.own_copy(), images, Goal(labels), seed=settings.seed)[1::2]  # type: ignore[call-arg]
    return mixed


def _cell(name: str, threat: Callable[..., Any], column: Deployment, settings: Settings) -> Record:
    found: Record = {"threat": name, "protocol": column.protocol, "form": column.form}
    if column.why_not:
        return {**found, "not_applicable": column.why_not}
    found["model"] = column.weights.name
    try:
        return {**found, **threat(column, settings).as_dict()}
    except (NotApplicable, LimitExceeded) as error:
        return {**found, "not_applicable": str(error)}
