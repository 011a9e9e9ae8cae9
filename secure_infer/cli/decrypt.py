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
    client = backend.client(half)
    replies = roles.read_parties(reply, getattr(client, "parties", backend.parties), "--reply")
    with console.phase("decrypt", json):
        values = client.decrypt(replies, keys)
    outputs.show(interface.dequantize(values), roles.summary(interface), out, json)
