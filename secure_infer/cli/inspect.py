"""`secure-infer inspect`: what a bundle holds and promises."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secure_infer import compiler
from secure_infer.cli import console, roles
from secure_infer.graph.analyse import cost
from secure_infer.graph.text import format_graph


def inspect(
    bundle: Annotated[Path, typer.Argument(help="Bundle, or client half alone.")],
    json: console.Json = False,
) -> None:
    """Show the network, cost, parameters and guarantee of a bundle; of a client half, what a client knows."""
    if roles.is_client_half(bundle):
        interface, _ = roles.read_client_half(bundle)
        if json:
            console.emit(roles.summary(interface))
        else:
            console.say(f"Client half: {interface.input} -> {interface.output}\n\nGuarantee\n{interface.guarantee}")
        return
    compiled = compiler.load(bundle)
    if not json:
        console.say(compiled.report())
        return
    program = compiled.program
    details = {
        "network": format_graph(compiled.graph).splitlines(),
        "cost": {**cost(compiled.graph).as_dict(), **program.counts},
        "parameters": dict(program.parameters),
        "bytes": {"client": len(program.client), "servers": [len(half) for half in program.servers]},
    }
    console.emit({**roles.summary(compiled.interface), **details})
