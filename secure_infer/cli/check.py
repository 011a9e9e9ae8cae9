"""`secure-infer check`: every layer that a protocol can't evaluate, before anything is compiled."""

from __future__ import annotations

from typing import Annotated

import typer

from secure_infer.cli import console, networks
from secure_infer.errors import UnsupportedNetwork


def check(
    model: Annotated[str, typer.Argument(help="Model of the zoo, module:object, or path.py:object.")],
    protocol: Annotated[str, typer.Option(help="clear, tfhe, ckks, mpc, mpc-fss or mpc-spu.")],
    json: console.Json = False,
) -> None:
    """List every layer of a network that a protocol can't evaluate, each with its fix.

    The exit code is 0 if there is none and 3 otherwise.
    """
    net = networks.find(model).net
    with console.phase("check", json):
        problems = networks.problems(net, protocol)
    if problems:
        raise UnsupportedNetwork(f"{model} does not run under {protocol}.", problems)
    if json:
        console.emit({"model": model, "protocol": protocol, "problems": []})
    else:
        console.say(f"{model} runs under {protocol}.")
