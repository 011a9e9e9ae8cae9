"""`secure-infer predict`: all roles on this machine in one call, or a client of servers elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from secure_infer import compiler
from secure_infer.cli import console, networks, outputs, remote, roles
from secure_infer.cli.inputs import read_input
from secure_infer.client import Prediction
from secure_infer.compiler import Compiled
from secure_infer.errors import Problem, UsageError


def predict(
    *,
    input: Annotated[str, typer.Option(help="Inputs: .npy, .npz, or a data set's name (its held-out part).")],
    source: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="Bundle, model of the zoo, module:object, or path.py:object."),
    ] = None,
    protocol: Annotated[str | None, typer.Option(help="Compile MODEL for this protocol; not for a bundle.")] = None,
    mode: Annotated[str, typer.Option(help="clear, simulate or encrypted.")] = "encrypted",
    url: remote.Url = None,
    model: remote.Model = "",
    token_file: remote.TokenFile = None,
    ca: remote.Ca = None,
    cert: remote.Cert = None,
    cert_key: remote.CertKey = None,
    key_cache: Annotated[Path | None, typer.Option(help="Folder that keeps keys between runs.")] = None,
    index: Annotated[list[int] | None, typer.Option(help="Which of the inputs; repeatable. All if absent.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the outputs as .npy, float64 (n, *output shape).")] = None,
    json: console.Json = False,
) -> None:
    """Predict with a bundle or a network. Encrypted, this makes keys, encrypts, runs every server here and decrypts.

    With --url, the servers are elsewhere: this makes and uploads keys once, encrypts, asks and decrypts.
    """
    if not url:
        remote.alone(model=model, token_file=token_file, ca=ca, cert=cert, cert_key=cert_key)
        if source is None:
            problem = Problem("MODEL", "It is missing.", "give a bundle or a model, or --url.")
            raise UsageError("There is nothing to predict with.", [problem])
        _here(source, protocol, mode, input, index or [], key_cache, out, json)
        return
    elsewhere = {"MODEL": source, "protocol": protocol, "mode": mode != "encrypted"}
    remote.refuse("The server has the model, compiled.", "name it with --model, or leave --url out.", **elsewhere)
    with remote.connected(url, model, token_file, ca, (cert, cert_key), key_cache, "predict", json) as client:
        prediction = client.infer(read_input(input, index or [], client.interface.input.shape))
    details = roles.summary(client.interface) | {"mode": mode} | _spent(prediction)
    outputs.show(prediction.outputs, details, out, json)


def _here(
    source: str,
    protocol: str | None,
    mode: str,
    input: str,
    index: list[int],
    key_cache: Path | None,
    out: Path | None,
    json: bool,
) -> None:
    compiled = _open(source, protocol, json)
    try:
        x = read_input(input, index, compiled.interface.input.shape)
        title = f"{mode} prediction of {len(x)} under {compiled.protocol}"
        details: dict[str, Any] = {"mode": mode}
        with console.phase(title, json):
            if mode == "encrypted":
                prediction = compiled.client(key_cache).infer(x)
                details |= _spent(prediction)
                values = prediction.outputs
            else:
                values = compiled.predict(x, mode)  # type: ignore[arg-type]  # refused there if it is another word
        outputs.show(values, roles.summary(compiled.interface) | details, out, json)
    finally:
        compiled.close()


def _spent(prediction: Prediction) -> dict[str, Any]:
    return {"wall_s": dict(prediction.wall_s), "bytes": dict(prediction.bytes)}


def _open(model: str, protocol: str | None, quiet: bool) -> Compiled:
    if Path(model).is_file():
        if protocol is not None:
            raise UsageError(
                "A bundle is compiled already.",
                [Problem("--protocol", f"{model} has its protocol.", "leave --protocol out.")],
            )
        return compiler.load(model)
    if protocol is None:
        raise UsageError(
            f"{model} has to be compiled first.",
            [
                Problem(
                    "--protocol", "Missing, and there is no such bundle file.", "give --protocol, or a bundle's path."
                )
            ],
        )
    network = networks.find(model)
    with console.phase(f"compile {model} for {protocol}", quiet):
        options = network.options.get(protocol, {})
        return compiler.compile(network.net, network.calibration(None), protocol, **options)
