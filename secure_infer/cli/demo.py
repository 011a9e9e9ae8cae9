"""`secure-infer demo`: the same handwritten digits under every protocol, side by side."""

from __future__ import annotations

import json as jsons
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from secure_infer import backends, files
from secure_infer.cli import console
from secure_infer.cli.demo_run import Digit, Run, held_out_digits, read
from secure_infer.errors import Problem, SecureInferError, UsageError


def demo(
    protocols: Annotated[str, typer.Option(help="Which protocols, comma-separated.")] = "clear,tfhe,ckks,mpc",
    n: Annotated[int, typer.Option(help="How many held-out digits.")] = 5,
    json: Annotated[str | None, typer.Option(help="Write the figures to this file; - is standard output.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the page here; next to --json by default.")] = None,
    web: Annotated[bool, typer.Option("--web", help="Serve a page to draw on, for this machine alone.")] = False,
    port: Annotated[int, typer.Option(help="With --web: 0 for any that is free.", min=0, max=65535)] = 8765,
) -> int:
    """Classify held-out handwritten digits on real ciphertexts under every protocol, and show what that takes."""
    if web:
        from secure_infer.cli import demo_web, remote

        remote.refuse("The page shows all.", "leave it out with --web.", json=json, html=html)
        demo_web.serve([name for name in _known(protocols) if name != "clear"], port)
        return 0
    runs = [Run(name) for name in _known(protocols)]
    digits = held_out_digits(n)
    _watch(runs, digits, quiet=json == "-")
    page = html or (Path(json).with_suffix(".html") if json not in (None, "-") else None)
    _write(runs, digits, json, page)
    error = _verdict(runs)
    if error is None:
        return 0
    if json == "-":
        # The document on standard output names the failures already.
        return error.exit_code
    raise error


def _known(protocols: str) -> list[str]:
    names = [name.strip() for name in protocols.split(",") if name.strip()]
    known = backends.protocols()
    wrong = [name for name in names if name not in known]
    if wrong or not names:
        raise UsageError(
            "There is no such protocol.",
            [
                Problem("--protocols", f"{name!r} is none of {', '.join(known)}.", "correct it.")
                for name in wrong or [""]
            ],
        )
    return list(dict.fromkeys(names))


def _watch(runs: Sequence[Run], digits: Sequence[Digit], quiet: bool) -> None:
    """Run everything under a live table if somebody watches, and print the table in the end."""
    from rich.console import Console
    from rich.live import Live

    from secure_infer.cli.demo_table import draw, promises

    out = Console(stderr=quiet)
    if not out.is_terminal:
        for run in runs:
            read(run, digits, lambda: None)
        if not quiet:
            out.print(draw(runs, digits, out.width))
    else:
        with Live(draw(runs, digits, out.width), console=out, auto_refresh=False) as live:
            for run in runs:
                read(run, digits, lambda: live.update(draw(runs, digits, out.width), refresh=True))
    if not quiet:
        out.print(promises(runs))


def figures(runs: Sequence[Run], digits: Sequence[Digit]) -> dict[str, Any]:
    """The demo's JSON: figures by protocol, what failed and why, and the facts that the figures depend on."""
    from secure_infer.bench.host import host, load_average

    return {
        "protocols": {run.protocol: run.as_dict(digits) for run in runs if run.error is None},
        "failed": {run.protocol: console.as_dict(run.error, run.error.exit_code) for run in runs if run.error},
        "labels": [digit.label for digit in digits],
        "host": {**host(), "load": load_average()},
    }


def _write(runs: Sequence[Run], digits: Sequence[Digit], json: str | None, page: Path | None) -> None:
    facts = figures(runs, digits)
    if json == "-":
        console.emit(facts)
    elif json is not None:
        files.write(json, (jsons.dumps(facts, indent=1) + "\n").encode())
    if page is not None:
        from secure_infer.cli.demo_page import render

        files.write(page, render(runs, digits, facts["host"]).encode())
    if json != "-":
        for path in (json, page):
            if path is not None:
                console.say(f"wrote {path}")


def _verdict(runs: Sequence[Run]) -> SecureInferError | None:
    """What went wrong: protocols that did not run, or predictions other than the same network's in the clear."""
    errors = [run.error for run in runs if run.error is not None]
    if errors:
        problems = [problem for error in errors for problem in error.problems]
        names = ", ".join(run.protocol for run in runs if run.error is not None)
        return type(errors[0])(f"{names} did not run. {errors[0].summary}", problems)
    wrong = [run for run in runs if run.agreeing() < len(run.readings)]
    if not wrong:
        return None
    return SecureInferError(
        "Not every prediction is that of the same network in the clear.",
        [
            Problem(run.protocol, f"{run.agreeing()} of {len(run.readings)} agree.", "compare with its guarantee.")
            for run in wrong
        ],
    )
