"""`secure-infer report`: measure threats under every protocol and form, and write the matrix."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secure_infer.cli import console
from secure_infer.errors import Problem, UsageError

if TYPE_CHECKING:
    from secure_infer.bench.threats.run import Progress

_PROTOCOLS = ("clear", "tfhe", "ckks", "mpc")


def report(
    *,
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    models: Annotated[
        list[str] | None,
        typer.Option(help="Models of this data set: digits (default), mnist, fashion-mnist; repeatable."),
    ] = None,
    protocol: Annotated[list[str] | None, typer.Option(help="Only these columns; repeatable.")] = None,
    form: Annotated[list[str] | None, typer.Option(help="Only these of the columns; repeatable.")] = None,
    threat: Annotated[list[str] | None, typer.Option(help="Only these rows; repeatable.")] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Images of attacks that ask once.")] = 100,
    n_queries: Annotated[int, typer.Option(min=1, help="Images of attacks that ask often.")] = 10,
    queries: Annotated[int, typer.Option(help="Queries of these for each image.")] = 200,
    executed: Annotated[int, typer.Option(min=0, help="Images through real ciphertexts, beside the simulation.")] = 10,
    timed: Annotated[int, typer.Option(help="Requests by whose times inputs are told apart; 0: none.")] = 24,
    on_ciphertexts: Annotated[
        bool, typer.Option("--on-ciphertexts", help="Attack real ciphertexts, not a simulation; of CKKS in batches.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of everything drawn.")] = 0,
    records: Annotated[
        list[Path] | None,
        typer.Option(help="Put these records together, a later cell for an earlier, instead of measuring; repeatable."),
    ] = None,
    json: console.Json = False,
) -> None:
    """Measure every threat in every column, keep the record as JSON, and write a page that needs nothing else.

    Cells come from measurements alone; what does not apply says why.
    """
    from secure_infer.bench import places
    from secure_infer.bench.records import latest
    from secure_infer.report import matrix, page

    known = latest(places.results()) if places.results().is_dir() else []
    if records:
        documents = matrix.merged([matrix.read(path) for path in records])
    else:
        settings = {"n": n, "n_queries": n_queries, "queries": queries, "executed": executed, "timed": timed}
        settings["seed"] = seed
        parts = (protocol, form, threat)
        documents = _measured(models or ["digits"], parts, settings, on_ciphertexts, json)
    written = page.write(documents, known, out)
    if json:
        console.emit({"written": [str(path) for path in written], "matrices": documents})
    else:
        for path in written:
            console.say(str(path))


def _measured(
    models: list[str],
    parts: tuple[list[str] | None, ...],
    settings: dict[str, int],
    on_ciphertexts: bool,
    quiet: bool,
) -> list[dict[str, Any]]:
    from secure_infer.bench.threats.cells import Settings
    from secure_infer.bench.threats.rows import NAMES
    from secure_infer.bench.threats.run import measure
    from secure_infer.targets import FORMS

    protocols, forms, threats = (part or [] for part in parts)
    known = {"--protocol": (protocols, _PROTOCOLS), "--form": (forms, FORMS), "--threat": (threats, NAMES)}
    problems = [
        Problem(option, f"There is no {word!r}.", f"use one of {', '.join(names)}.")
        for option, (words, names) in known.items()
        for word in words
        if word not in names
    ]
    if problems:
        raise UsageError("There is no such part of the matrix.", problems)
    given = Settings(**settings)
    with _progress(quiet) as progress:
        return [
            measure(
                name,
                given,
                protocols=protocols or _PROTOCOLS,
                forms=forms or FORMS,
                threats=threats,
                on_ciphertexts=on_ciphertexts,
                progress=progress,
            )
            for name in models
        ]


@contextmanager
def _progress(quiet: bool) -> Iterator[Progress]:
    """What is measured now and for how long, if somebody watches standard error."""
    if not console.watched(quiet):
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("prepare")
        yield lambda title: progress.update(task, description=title)
