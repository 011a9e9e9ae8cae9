"""Plays a protocol folder: reads protocol.toml, starts all roles, has the client predict, and gathers who saw what."""

from __future__ import annotations

import json
import tempfile
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from secure_infer import bundle, files
from secure_infer.errors import Problem, UsageError
from secure_infer.graph.interpret import interpret, interpret_real
from secure_infer.scenario import client as client_process
from secure_infer.scenario import servers, witness
from secure_infer.scenario.processes import Role, Roles

FILE = "protocol.toml"
_RUN_SECONDS = 1800.0
_LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Plan:
    """What a protocol folder says of its run.

    Attributes:
        protocol: Name of the protocol.
        exact: Whether results are those of the integer network.
        model: Model of the zoo that is compiled for the run.
        n: How many held-out inputs are asked about.
    """

    protocol: str
    exact: bool
    model: str
    n: int


def read_plan(folder: Path) -> Plan:
    """Read `protocol.toml`.

    Raises:
        UsageError: There is none, or it lacks something.
    """
    path = folder / FILE
    try:
        data = tomllib.loads(files.read(path).decode())
        scenario = data["scenario"]
        plan = Plan(str(data["name"]), bool(data["exact"]), str(scenario["model"]), int(scenario["n"]))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        problem = Problem(str(path), f"{type(error).__name__}: {error}.", "give name, exact, and [scenario] model, n.")
        raise UsageError("The protocol's file can't be read.", [problem]) from error
    if plan.n < 1:
        raise UsageError("Nothing to predict.", [Problem(str(path), f"n is {plan.n}.", "ask about 1 or more.")])
    return plan


def play(
    plan: Plan, compiled: Path, x: npt.NDArray[Any], labels: npt.NDArray[Any], enter: Callable[[str], None]
) -> dict[str, Any]:
    """Run all roles on this machine once.

    Args:
        plan: What to run.
        compiled: The bundle.
        x: Inputs, reals, `(n, ...)`.
        labels: What they show, `(n,)`.
        enter: Told what happens next.

    Returns:
        Plain JSON values: predictions, roles with what they hold and say they have received, messages, statistics.

    Raises:
        ProtocolError: A role failed; says which, and what it said.
    """
    graph, interface, program = bundle.load(compiled)
    with tempfile.TemporaryDirectory(prefix="secure-infer-") as name, Roles() as roles:
        folder = Path(name)
        enter("start the servers")
        served = servers.start(roles, folder, compiled, len(program.servers))
        enter(f"predict {len(x)} inputs")
        said = _ask(roles, folder / servers.CLIENT, served, x)
        traffic = served.traffic()
        folders = {servers.CLIENT: folder / servers.CLIENT, **served.folders}
        secret = {piece: witness.holders(folders, bytes.fromhex(piece)) for piece in said.pop("secret_pieces")}
        held = {role: witness.held(place) for role, place in folders.items()}
    evaluate = interpret if plan.exact else interpret_real
    clear = graph.dequantize(evaluate(graph, graph.quantize(x.reshape(-1, *graph.input.shape))))
    return {
        "protocol": plan.protocol,
        "model": plan.model,
        "predictions": [
            {"label": int(label), "predicted": int(np.argmax(scores)), "clear": int(np.argmax(exact))}
            for label, scores, exact in zip(labels, said["outputs"], clear, strict=True)
        ],
        "roles": {role: {"holds": held[role], "http_bytes": traffic.get(role, {})} for role in held},
        "messages": _counted(said["messages"]),
        "secret_key_in_files_of": sorted({role for found in secret.values() for role in found}),
        "statistics": said["statistics"],
        "wall_s": {"once": said["once_s"], "each": said["wall_s"]},
        "guarantee": interface.guarantee.as_dict(),
    }


def _ask(roles: Roles, place: Path, served: servers.Served, x: npt.NDArray[Any]) -> dict[str, Any]:
    np.save(place / client_process.INPUTS, x)
    spec = {
        "names": served.names,
        "urls": served.urls,
        "tokens": served.tokens,
        "ca": str(served.ca),
        "model": servers.MODEL,
    }
    files.write(place / "spec.json", json.dumps(spec).encode(), mode=files.PRIVATE)
    role = roles.start(servers.CLIENT, place, "spec.json", module="secure_infer.scenario.client")
    return _watched(roles, role)


def _watched(roles: Roles, client: Role) -> dict[str, Any]:
    """The client's document; a server that fails meanwhile is the error."""
    deadline = time.monotonic() + _RUN_SECONDS
    while client.process.poll() is None and time.monotonic() < deadline and not client.readable(_LOOK_SECONDS):
        roles.check(but=client)
    return client.announced(deadline)


def _counted(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages of one kind between the same two roles, with their number and sizes, in the order of the first."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for each in messages:
        name = (each["sender"], each["receiver"], each["kind"])
        entry = found.setdefault(name, {**each, "count": 0, "bytes": []})
        entry["count"] += 1
        entry["bytes"].append(entry.pop("size", each["size"]))
        for mark in ("holds_secret_key", "holds_input"):
            entry[mark] = entry[mark] or each[mark]
    return list(found.values())
