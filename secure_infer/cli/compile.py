"""`secure-infer compile`: from a network to a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secure_infer import bundle, files
from secure_infer.cli import console, networks, roles


def compile(
    model: Annotated[str, typer.Argument(help="Model of the zoo, module:object, or path.py:object.")],
    protocol: Annotated[str, typer.Option(help="clear, tfhe, ckks or mpc.")],
    out: Annotated[Path, typer.Option(help="Bundle to write.")],
    out_client: Annotated[Path | None, typer.Option(help="Write the client half alone, too: what clients get.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="Option of the protocol, name=value; repeatable.")] = None,
    n_bits: Annotated[int | None, typer.Option(help="Bits for layers without quantization of their own.")] = None,
    calibration: Annotated[str | None, typer.Option(help="Typical inputs: .npy, .npz, or a data set's name.")] = None,
    json: console.Json = False,
) -> None:
    """Compile a network for a protocol to a bundle.

    A model of the zoo brings its data and its options. --option and --calibration replace them.
    """
    network = networks.find(model)
    settings = {**network.options.get(protocol, {}), **networks.parse_options(option or [])}
    typical = network.calibration(calibration)
    with console.phase(f"compile {model} for {protocol}", json):
        from secure_infer import compiler

        compiled = compiler.compile(network.net, typical, protocol, n_bits=n_bits, **settings)
        compiled.save(out)
    written = {"bundle": roles.describe(out)}
    if out_client is not None:
        files.write(out_client, bundle.pack_client_half(compiled.interface, compiled.program.client))
        written["client_half"] = roles.describe(out_client)
    if json:
        console.emit({"model": model, **roles.summary(compiled.interface), "files": written})
        return
    console.say(str(compiled.guarantee))
    console.say_files(written)
