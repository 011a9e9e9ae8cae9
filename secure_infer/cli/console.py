"""What the command line says: results and JSON to standard output; errors and progress to standard error."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from secure_infer.errors import SecureInferError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document to standard output.")]


def wants_json(words: Sequence[str], verb: str) -> bool:
    """Whether standard output carries JSON: `--json`, but not `--json FILE` as the demo has it."""
    if "--json" not in words:
        return False
    return verb != "demo" or words[words.index("--json") + 1 :][:1] == ["-"]


def say(text: str) -> None:
    """Print a line to standard output."""
    sys.stdout.write(f"{text}\n")


def emit(document: Mapping[str, Any]) -> None:
    """Print the one JSON document of a command."""
    say(json.dumps(document))


def complain(text: str) -> None:
    """Print a line to standard error."""
    sys.stderr.write(f"{text}\n")


def say_files(written: Mapping[str, Mapping[str, Any]]) -> None:
    """Print which files a command wrote, and their sizes."""
    width = max(map(len, written), default=0)
    for name, entry in written.items():
        say(f"{name:<{width}}  {entry['path']}  {size(entry['bytes'])}")


def report(error: SecureInferError, code: int, as_json: bool) -> int:
    """Print an error, as text to standard error or as JSON to standard output; returns `code`."""
    if as_json:
        emit({"error": as_dict(error, code)})
    else:
        _show(error)
    return code


def as_dict(error: SecureInferError, code: int) -> dict[str, Any]:
    """An error as plain JSON values."""
    problems = [{"where": p.where, "what": p.what, "fix": p.fix} for p in error.problems]
    found: dict[str, Any] = {"type": type(error).__name__, "summary": error.summary, "problems": problems}
    return found | ({"excerpt": error.excerpt} if error.excerpt else {}) | {"exit_code": code}


def _show(error: SecureInferError) -> None:
    from rich.console import Console
    from rich.text import Text

    out = Console(stderr=True, highlight=False, soft_wrap=True)
    out.print(Text.assemble(("error: ", "bold red"), (error.summary, "bold")))
    for problem in error.problems:
        out.print(Text.assemble("  ", (problem.where, "cyan"), f": {problem.what}"))
        out.print(Text.assemble("      fix: ", (problem.fix, "green")))
    if error.excerpt:
        out.print()
        for line in error.excerpt.splitlines():
            out.print(Text(f"  {line}", style="yellow" if line.startswith("^") else "dim"))


def watched(quiet: bool = False) -> bool:
    """Whether progress is to be shown: somebody watches standard error, and did not ask for JSON."""
    return not quiet and sys.stderr.isatty()


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that processes which it has started are ended with it."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def phase(title: str, quiet: bool = False) -> Iterator[None]:
    """Show a spinner, a title and the elapsed time while the block runs, if somebody watches standard error."""
    if not watched(quiet):
        yield
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        progress.add_task(title, total=None)
        yield


def size(count: float) -> str:
    """A number of bytes for people: `6.4 MB`."""
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB" if count < 999.5 else f"{count:.0f} GB"


def seconds(value: float) -> str:
    """A duration for people: `3.2 ms`, `1.7 s`."""
    if value < 0.001:
        return f"{value * 1e3:.2f} ms"
    if value < 0.9995:
        return f"{value * 1e3:.3g} ms"
    return f"{value:.3g} s" if value < 99.5 else f"{value:.0f} s"
