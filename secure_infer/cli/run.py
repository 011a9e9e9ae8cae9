"""`secure-infer run`: the server side for one message, or all roles of a protocol folder as processes of their own."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from secure_infer import backends
from secure_infer import bundle as bundles
from secure_infer.cli import console, remote, roles
from secure_infer.client import read_keys
from secure_infer.wire.transport import InProcess


def run(
    *,
    bundle: Annotated[Path, typer.Argument(help="Bundle; or a protocol folder, such as protocols/ckks.")],
    evaluation: Annotated[Path | None, typer.Option(help="Evaluation keys.")] = None,
    message: Annotated[list[Path] | None, typer.Option(help="Message; once for each party, in order.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Reply to write; with several parties, -0, -1 ... are appended.")
    ] = None,
    json: console.Json = False,
) -> None:
    """Answer a client's messages. Parties of a multi-party protocol are started on this machine.

    Given a protocol folder instead, start every role as a process of its own, predict, show who saw what, and stop.
    """
    given = {"evaluation": evaluation, "message": message, "out": out}
    if bundle.is_dir():
        from secure_infer.cli.run_scenario import run_scenario

        remote.refuse("A protocol folder brings its own inputs.", "leave it out, or give a bundle.", **given)
        run_scenario(bundle, json)
        return
    remote.require("To answer a message, more is needed.", **given)
    if evaluation is None or message is None or out is None:
        return
    _answer(bundle, evaluation, message, out, json)


def _answer(bundle: Path, evaluation: Path, message: list[Path], out: Path, json: bool) -> None:
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
