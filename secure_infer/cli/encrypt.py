"""`secure-infer encrypt`: inputs to one message for each server party."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secure_infer import backends
from secure_infer.cli import console, roles
from secure_infer.cli.inputs import read_input
from secure_infer.client import read_keys


def encrypt(
    bundle: Annotated[Path, typer.Argument(help="Bundle, or client half alone.")],
    secret: Annotated[Path, typer.Option(help="Secret key.")],
    input: Annotated[str, typer.Option(help="Inputs: .npy, .npz, or a data set's name (its held-out part).")],
    out: Annotated[Path, typer.Option(help="Message to write; with several parties, -0, -1 ... are appended.")],
    index: Annotated[list[int] | None, typer.Option(help="Which of the inputs; repeatable. All if absent.")] = None,
    json: console.Json = False,
) -> None:
    """Quantize and encrypt inputs."""
    interface, half = roles.read_client_half(bundle)
    keys = read_keys(secret, None, half)
    units = interface.quantize(read_input(input, index or [], interface.shape))
    with console.phase(f"encrypt {len(units)} inputs", json):
        messages = backends.load(interface.protocol).client(half).encrypt(units, keys)
    written = [roles.describe(path) for path in roles.write_parties(out, messages)]
    if json:
        console.emit({**roles.summary(interface), "n": len(units), "messages": written})
    else:
        console.say_files({f"message {party}": entry for party, entry in enumerate(written)})
