"""`secure-infer compile`: from a network to a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secure_infer import bundle, files
from secure_infer.cli import console, networks, roles
from secure_infer.errors import Problem, UsageError

if TYPE_CHECKING:
    from secure_infer.compiler import Compiled


def compile(
    model: Annotated[str, typer.Argument(help="Model of the zoo, module:object, path.py:object, or a bundle.")],
    protocol: Annotated[str, typer.Option(help="clear, tfhe, ckks, mpc, mpc-fss or mpc-spu.")],
    out: Annotated[Path, typer.Option(help="Bundle to write.")],
    out_client: Annotated[Path | None, typer.Option(help="Write the client half alone, too: what clients get.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="Option of the protocol, name=value; repeatable.")] = None,
    n_bits: Annotated[int | None, typer.Option(help="Bits for layers without quantization of their own.")] = None,
    calibration: Annotated[str | None, typer.Option(help="Typical inputs: .npy, .npz, or a data set's name.")] = None,
    json: console.Json = False,
) -> None:
    """Compile a network for a protocol to a bundle.

    A model of the zoo brings its data and its options. --option and --calibration replace them. A bundle needs neither:
    it gets halves for this machine's libraries, for it may have been made with other versions; its keys become useless.
    """
    if networks.is_bundle(model):
        compiled = _rebuilt(model, protocol, not (option or n_bits or calibration), json)
    else:
        compiled = _compiled(model, protocol, networks.parse_options(option or []), n_bits, calibration, json)
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


def _compiled(
    model: str, protocol: str, options: dict[str, Any], n_bits: int | None, calibration: str | None, json: bool
) -> Compiled:
    network = networks.find(model)
    settings = {**network.options.get(protocol, {}), **options}
    typical = network.calibration(calibration)
    with console.phase(f"compile {model} for {protocol}", json):
        from secure_infer import compiler

        return compiler.compile(network.net, typical, protocol, n_bits=n_bits, **settings)


def _rebuilt(path: str, protocol: str, plain: bool, json: bool) -> Compiled:
    from secure_infer import compiler

    found = bundle.load(path)[1].protocol
    if found != protocol or not plain:
        raise UsageError(
            f"{path} is compiled already.",
            [
                Problem(
                    "MODEL",
                    f"A bundle keeps its protocol, which is {found}, its options and its ranges.",
                    "compile its network anew to change them.",
                )
            ],
        )
    with console.phase(f"rebuild {path}", json):
        return compiler.rebuild(path)
