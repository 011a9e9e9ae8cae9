"""`secure-infer bench`: run cases, keep their records, and turn records into tables and plots."""

from __future__ import annotations

import json as encoder
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secure_infer.cli import console
from secure_infer.errors import Problem, UsageError, missing_extra

if TYPE_CHECKING:
    from secure_infer.bench import Case
    from secure_infer.bench.runner import Progress


SERVICES = {
    "serve": ("load", "serve", "50 clients, 1,000 requests over HTTP, beside the bare workers."),
    "serve-faults": ("faults", "serve", "200 kills of front, workers and clients, and what became of every request."),
    "serve-cluster": ("clustered", "cluster", "The same requests on two local Ray workers and on two processes."),
    "attacks": ("attacks", "train", "Our attacks beside Foolbox, torchattacks, ART and adv-lib: speed and strength."),
    "defenses": ("defenses", "train", "What each defense buys against best effort; noise, JPEG and attacks compared."),
    "label-queries": ("queries", "train", "Distortion against queries of the label-only attacks, ours and peers'."),
    "transfer": ("transfer", "train", "Examples of five kinds of models against one another, and within each kind."),
    "extraction": ("extraction", "train", "Substitutes of a model from its labels or probabilities, by budget."),
    "post-training": ("post_training", "train", "What quantizing float networks after training costs in accuracy."),
}
"""Runs that are no case: their module, the extra that they need, and what they show."""


def bench(
    cases: Annotated[list[str] | None, typer.Argument(metavar="CASE...", help="Cases to run; see --list.")] = None,
    n: Annotated[int | None, typer.Option("--n", min=1, help="Images through each protocol.")] = None,
    protocol: Annotated[
        list[str] | None, typer.Option("--protocol", metavar="NAME", help="Only entries of this protocol; repeatable.")
    ] = None,
    network: Annotated[
        str | None, typer.Option("--network", metavar="NAME", help="Delays between processes: loopback, lan or wan.")
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="List the cases.")] = False,
    report: Annotated[bool, typer.Option("--report", help="Write tables and plots from the records.")] = False,
    results: Annotated[Path | None, typer.Option("--results", metavar="DIR", help="Folder of the records.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the records, one a line.")] = False,
) -> None:
    """Run benchmark cases on real ciphertexts; records are added to RESULTS/CASE.jsonl."""
    from secure_infer.bench import places

    if not (cases or listing or report):
        raise UsageError(
            "There is nothing to do.", [Problem("CASE", "No case is named.", "name cases; --list shows them.")]
        )
    folder = results or places.results()
    if listing:
        _list(json)
    if cases:
        services = [name for name in cases if name in SERVICES]
        chosen = _chosen([name for name in cases if name not in SERVICES], protocol or [])
        _require_network(network)
        for name in services:
            _serve(name, n, folder, json)
        _run(chosen, n, network, folder, json)
    if report:
        _report(folder, json)


def _list(as_json: bool) -> None:
    from secure_infer.bench import case_names, load_case

    found = [load_case(name) for name in case_names()]
    if as_json:
        console.emit({"cases": [{"name": c.name, "title": c.title, "entries": len(c.entries)} for c in found]})
        return
    titles = {case.name: case.title for case in found} | {name: about for name, (_, _, about) in SERVICES.items()}
    width = max(map(len, titles))
    for name, title in titles.items():
        console.say(f"{name:<{width}}  {title}")


def _serve(name: str, n: int | None, folder: Path, as_json: bool) -> None:
    """A run that is no case; its records have a folder of their own, as they are rows of no table."""
    from importlib import import_module

    from secure_infer.bench import append

    try:
        module = import_module(f"secure_infer.bench.{SERVICES[name][0]}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("secure_infer"):
            raise
        raise missing_extra(f"secure-infer bench {name}", SERVICES[name][1], error.name) from error
    with _progress() as progress:
        record = module.run(n, progress)
    append(folder / getattr(module, "FOLDER", "service") / f"{name}.jsonl", record)
    console.say(encoder.dumps(record, indent=None if as_json else 1))


def _chosen(names: Sequence[str], protocols: Sequence[str]) -> list[Case]:
    """The cases named, with the entries of the protocols named; all are read before any is run."""
    from secure_infer import backends
    from secure_infer.bench import load_case

    for name in protocols:
        backends.load(name)
    return [load_case(name).only(protocols) for name in names]


def _require_network(name: str | None) -> None:
    from secure_infer.backends.parties.network import NETWORKS

    if name is not None and name not in NETWORKS:
        raise UsageError(
            f"There is no network {name!r}.",
            [Problem("--network", f"Expected one of {', '.join(NETWORKS)}.", "correct the name.")],
        )


def _run(cases: Sequence[Case], n: int | None, network: str | None, folder: Path, as_json: bool) -> None:
    from secure_infer.bench import append, run_case

    for case in cases:
        with _progress() as progress:
            for record in run_case(case, n=n, network=network, progress=progress):
                append(folder / f"{case.name}.jsonl", record)
                console.say(encoder.dumps(record) if as_json else _line(record))


def _report(folder: Path, as_json: bool) -> None:
    from secure_infer.report import write_report

    written = write_report(folder)
    if as_json:
        console.emit({"written": [str(path) for path in written]})
        return
    for path in written:
        console.say(str(path))


def _line(record: dict[str, Any]) -> str:
    """One record for people."""
    wall = record["wall_s"]
    who = f"{record['model']} {record['protocol']} {record['peer'] or 'ours'} {record['network']}"
    trained = record["accuracy"] is not None
    shares = f"accuracy {record['accuracy']:.1%} (clear {record['accuracy_clear']:.1%})" if trained else "untrained"
    return f"{who:<44} run {console.seconds(wall['run']):>8} an image, {shares}, agreement {record['agreement']:.1%}"


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar for each label on standard error where somebody watches it, else a line at each quarter of the way."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    err = Console(stderr=True)
    if not err.is_terminal:
        yield _say
        return
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=err
    ) as bars:
        tasks: dict[str, Any] = {}

        def show(label: str, done: int, total: int) -> None:
            if label not in tasks:
                tasks[label] = bars.add_task(label, total=total)
            bars.update(tasks[label], completed=done)

        yield show


def _say(label: str, done: int, total: int) -> None:
    if done == 0 or 4 * done // total > 4 * (done - 1) // total:
        console.complain(f"{label}: {done} of {total}")
