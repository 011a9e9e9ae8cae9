"""What the client's commands share where the servers are elsewhere: options, and a client with a progress bar."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from secure_infer import files
from secure_infer.cli import console
from secure_infer.client import Client
from secure_infer.errors import Problem, UsageError
from secure_infer.wire.talk import Progress

Url = Annotated[
    list[str] | None, typer.Option(help="Ask this server, https://host:port; once for each party, in order.")
]
Model = Annotated[str, typer.Option("--model", help="With --url: the model's name there; needed if it has several.")]
TokenFile = Annotated[
    Path | None, typer.Option(help="With --url: file that holds the token; else SECURE_INFER_TOKEN is used.")
]
Ca = Annotated[Path | None, typer.Option(help="With --url: PEM file of authorities that vouch for the server.")]
Cert = Annotated[Path | None, typer.Option(help="With --url: PEM file of this client's certificate.")]
CertKey = Annotated[Path | None, typer.Option(help="With --url: PEM file of its key.")]


@contextmanager
def connected(
    urls: Sequence[str],
    model: str,
    token_file: Path | None,
    ca: Path | None,
    certificate: tuple[Path | None, Path | None],
    key_cache: Path | None,
    title: str,
    quiet: bool,
) -> Iterator[Client]:
    """A client of servers, which shows a title, and how far an upload of its keys is.

    Raises:
        UsageError: A token file that holds none, or half a certificate.
    """
    access: dict[str, Any] = {"ca": ca}
    if token_file is not None:
        access["token"] = _token(token_file)
    if certificate != (None, None):
        if None in certificate:
            problem = Problem("--cert", "A certificate and its key go together.", "give --cert and --cert-key.")
            raise UsageError("Half a certificate.", [problem])
        access["certificate"] = certificate
    with (
        _bar(title, quiet) as progress,
        Client.connect(list(urls), model=model, key_cache=key_cache, progress=progress, **access) as client,
    ):
        yield client


def refuse(summary: str, fix: str, **options: object) -> None:
    """Refuse options that mean nothing here.

    Raises:
        UsageError: Some were given.
    """
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value]
    if given:
        raise UsageError(summary, [Problem(name, "It has no meaning here.", fix) for name in given])


def require(summary: str, **options: object) -> None:
    """Refuse to go on without these options.

    Raises:
        UsageError: Some are missing.
    """
    missing = [f"--{name.replace('_', '-')}" for name, value in options.items() if not value]
    if missing:
        raise UsageError(summary, [Problem(name, "It is missing.", "give it.") for name in missing])


def alone(**options: object) -> None:
    """Refuse options that only mean something with `--url`."""
    refuse("These options need a server.", "give --url, or leave it out.", **options)


def _token(path: Path) -> str:
    token = files.read(path).decode("ascii", "replace").strip()
    if not token:
        raise UsageError("There is no token.", [Problem(str(path), "The file is empty.", "write the token into it.")])
    return token


@contextmanager
def _bar(title: str, quiet: bool) -> Iterator[Progress | None]:
    """A title and the elapsed time, and a bar while keys are uploaded, if somebody watches standard error."""
    if not console.watched(quiet):
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=None)

        def show(sent: int, total: int) -> None:
            if sent < total:
                upload = f"upload keys, {console.size(sent)} of {console.size(total)}"
                progress.update(task, description=upload, completed=sent, total=total)
            else:
                progress.update(task, description=title, total=None)

        yield show
