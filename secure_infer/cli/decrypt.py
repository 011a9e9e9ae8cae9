"""`secure-infer decrypt`: replies to predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secure_infer import backends
from secure_infer.cli import console, outputs, roles
from secure_infer.client import read_keys


def decrypt(
    bundle: Annotated[Path, typer.Argument(help="Bundle, or client half alone.")],
    secret: Annotated[Path, typer.Option(help="Secret key.")],
    reply: Annotated[list[Path], typer.Option(help="Reply; once for each party, in order.")],
    out: Annotated[Path | None, typer.Option(help="Write the outputs as .npy, float64 (n, *output shape).")] = None,
    json: console.Json = False,
) -> None:
    """Decrypt replies and print the predictions."""
    interface, half = roles.read_client_half(bundle)
    keys = read_keys(secret, None, half)
    backend = backends.load(interface.protocol)
    replies = roles.read_parties(reply, backend.parties, "--reply")
    with console.phase("decrypt", json):
        values = backend.client(half).decrypt(replies, keys)
    outputs.show(interface.dequantize(values), roles.summary(interface), out, json)
