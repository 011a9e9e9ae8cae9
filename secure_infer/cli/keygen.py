"""`secure-infer keygen`: a client's keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secure_infer import backends
from secure_infer.cli import console, remote, roles
from secure_infer.client import write_keys
from secure_infer.errors import Problem, UsageError


def keygen(
    *,
    bundle: Annotated[Path | None, typer.Argument(help="Bundle, or client half alone; not with --url.")] = None,
    out_secret: Annotated[
        Path | None, typer.Option(help="Secret key to write (mode 0600); never leaves the client.")
    ] = None,
    out_evaluation: Annotated[Path | None, typer.Option(help="Evaluation keys to write, for the server.")] = None,
    url: remote.Url = None,
    model: remote.Model = "",
    token_file: remote.TokenFile = None,
    ca: remote.Ca = None,
    cert: remote.Cert = None,
    cert_key: remote.CertKey = None,
    key_cache: Annotated[Path | None, typer.Option(help="With --url: folder that keeps both keys.")] = None,
    json: console.Json = False,
) -> None:
    """Make a secret key and evaluation keys from the operating system's random numbers.

    With --url, the evaluation keys are uploaded; `secure-infer predict --url` finds both in the same --key-cache.
    """
    if not url:
        remote.alone(model=model, token_file=token_file, ca=ca, cert=cert, cert_key=cert_key, key_cache=key_cache)
        _to_files(bundle, out_secret, out_evaluation, json)
        return
    fix = "give --key-cache instead."
    remote.refuse("Keys for a server go to a cache.", fix, out_secret=out_secret, out_evaluation=out_evaluation)
    if bundle is not None:
        problem = Problem(str(bundle), "The server has the model.", "name it with --model, or leave --url out.")
        raise UsageError("A bundle and a server don't go together.", [problem])
    remote.require("The keys have to be kept.", key_cache=key_cache)
    with remote.connected(url, model, token_file, ca, (cert, cert_key), key_cache, "keygen", json) as client:
        size = len(client.keys().evaluation)
    if json:
        console.emit({**roles.summary(client.interface), "evaluation_bytes": size})
    else:
        console.say(f"evaluation keys at the server: {console.size(size)}; both keys in {key_cache}")


def _to_files(bundle: Path | None, out_secret: Path | None, out_evaluation: Path | None, json: bool) -> None:
    if bundle is None or out_secret is None or out_evaluation is None:
        remote.require("Something is missing.", bundle=bundle, out_secret=out_secret, out_evaluation=out_evaluation)
        return
    interface, half = roles.read_client_half(bundle)
    with console.phase(f"keygen for {interface.protocol}", json):
        keys = backends.load(interface.protocol).client(half).keygen()
    write_keys(keys, out_secret, out_evaluation, half)
    written = {"secret": roles.describe(out_secret), "evaluation": roles.describe(out_evaluation)}
    if json:
        console.emit({**roles.summary(interface), "files": written})
    else:
        console.say_files(written)
