"""`secure-infer run`: the server side, which holds no secret."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from secure_infer import backends
from secure_infer import bundle as bundles
from secure_infer.cli import console, roles
from secure_infer.client import read_keys
from secure_infer.wire.transport import InProcess


def run(
    bundle: Annotated[Path, typer.Argument(help="Bundle.")],
    evaluation: Annotated[Path, typer.Option(help="Evaluation keys.")],
    message: Annotated[list[Path], typer.Option(help="Message; once for each party, in order.")],
    out: Annotated[Path, typer.Option(help="Reply to write; with several parties, -0, -1 ... are appended.")],
    json: console.Json = False,
) -> None:
    """Answer a client's messages. Parties of a multi-party protocol are started on this machine."""
    _, interface, program = bundles.load(bundle)
    messages = roles.read_parties(message, len(program.servers), "--message")
    keys = read_keys(None, evaluation, program.client)
    servers = backends.load(interface.protocol).servers(program.servers)
    half = bundles.pack_client_half(interface, program.client)
    with closing(InProcess(half, servers)) as transport, console.phase(f"run {interface.protocol}", json):
        answer = transport.infer(messages, transport.upload(keys.evaluation))
    written = [roles.describe(path) for path in roles.write_parties(out, answer.replies)]
    spent = {"wall_s": answer.wall_s, "cpu_s": answer.cpu_s, "statistics": dict(answer.statistics)}
    if json:
        console.emit({**roles.summary(interface), **spent, "replies": written})
    else:
        console.say_files({f"reply {party}": entry for party, entry in enumerate(written)})
        console.say(f"run  {console.seconds(answer.wall_s)}, CPU {console.seconds(answer.cpu_s)}")
