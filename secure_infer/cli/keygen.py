"""`secure-infer keygen`: a client's keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secure_infer import backends
from secure_infer.cli import console, roles
from secure_infer.client import write_keys


def keygen(
    bundle: Annotated[Path, typer.Argument(help="Bundle, or client half alone.")],
    out_secret: Annotated[Path, typer.Option(help="Secret key to write (mode 0600); never leaves the client.")],
    out_evaluation: Annotated[Path, typer.Option(help="Evaluation keys to write, for the server.")],
    json: console.Json = False,
) -> None:
    """Make a secret key and evaluation keys from the operating system's random numbers."""
    interface, half = roles.read_client_half(bundle)
    with console.phase(f"keygen for {interface.protocol}", json):
        keys = backends.load(interface.protocol).client(half).keygen()
    write_keys(keys, out_secret, out_evaluation, half)
    written = {"secret": roles.describe(out_secret), "evaluation": roles.describe(out_evaluation)}
    if json:
        console.emit({**roles.summary(interface), "files": written})
    else:
        console.say_files(written)
