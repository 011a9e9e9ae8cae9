"""Plays a protocol folder and shows who saw what: what each role holds, and every message by kind and size."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from secure_infer import compiler
from secure_infer.cli import console, networks
from secure_infer.cli.inputs import dataset
from secure_infer.errors import Problem, SecureInferError, missing_extra


def run_scenario(folder: Path, as_json: bool) -> None:
    """Compile the model that the folder names, start all roles, predict, and show what each has seen.

    Raises:
        UsageError: A folder without a usable protocol.toml.
        ProtocolError: A role failed.
        SecureInferError: A prediction is not that of the same network in the clear.
    """
    try:
        from secure_infer.scenario.play import play, read_plan
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("secure_infer"):
            raise
        raise missing_extra("secure-infer run FOLDER", "serve", error.name) from error
    plan = read_plan(folder)
    data = dataset("digits")
    with tempfile.TemporaryDirectory(prefix="secure-infer-") as place:
        path = Path(place) / "model.bundle"
        with console.phase(f"compile {plan.model} for {plan.protocol}", as_json):
            compile_to(path, plan.model, plan.protocol)

        def enter(what: str) -> None:
            if console.watched(as_json):
                console.complain(what)

        with console.ended_by_sigterm():
            found = play(plan, path, data.x_test[: plan.n], data.y_test[: plan.n], enter)
    if as_json:
        console.emit(found)
    else:
        show(found)
    agreeing = sum(each["predicted"] == each["clear"] for each in found["predictions"])
    if agreeing < len(found["predictions"]):
        what = f"{agreeing} of {len(found['predictions'])} agree."
        raise SecureInferError(
            "Not every prediction is that of the same network in the clear.",
            [Problem(plan.protocol, what, "compare with its guarantee.")],
        )


def compile_to(path: Path, model: str, protocol: str) -> None:
    """Compile a model of the zoo to a bundle."""
    network = networks.find(model)
    options = network.options.get(protocol, {})
    compiler.compile(network.net, network.calibration(None), protocol, **options).save(path)


def show(found: Mapping[str, Any]) -> None:
    """Print predictions, roles and messages."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    out = Console(highlight=False)
    said = " ".join(f"{each['label']}->{each['predicted']}" for each in found["predictions"])
    agreeing = sum(each["predicted"] == each["clear"] for each in found["predictions"])
    out.print(f"{found['protocol']}  {found['model']}  digit->prediction {said}")
    out.print(f"{agreeing} of {len(found['predictions'])} as the same network in the clear\n")
    table = Table("role", "holds", "size", box=None, pad_edge=False, header_style="dim")
    for role, state in found["roles"].items():
        for place, entry in enumerate(state["holds"]):
            name = Text(role if place == 0 else "", style="bold cyan")
            table.add_row(name, f"{_short(entry['path'])}  [dim]{entry['kind']}[/dim]", console.size(entry["bytes"]))
        for way, count in state["http_bytes"].items():
            table.add_row("", f"[dim]says it has taken {way}[/dim]", console.size(count))
    out.print(table)
    wires = Table("message", "kind", "size", "times", "secret key in it", "input in it", box=None, pad_edge=False)
    wires.header_style = "dim"
    for each in found["messages"]:
        marks = ["yes" if each[name] else "no" for name in ("holds_secret_key", "holds_input")]
        route, least, most = f"{each['sender']} -> {each['receiver']}", min(each["bytes"]), max(each["bytes"])
        sizes = console.size(most) if console.size(least) == console.size(most) else f"{console.size(least)} or more"
        wires.add_row(route, each["kind"], sizes, str(each["count"]), *marks)
    out.print()
    out.print(wires)
    for line in _notes(found):
        out.print(f"\n{line}")


def _short(path: str) -> str:
    """A path whose long names are cut."""
    return re.sub(r"([0-9a-f]{8})[0-9a-f]{20,}", r"\1...", path)


def _notes(found: Mapping[str, Any]) -> list[str]:
    notes = []
    owners = found["secret_key_in_files_of"]
    notes.append(f"The secret key was found in the files of: {', '.join(owners) or 'nobody; there is none'}.")
    statistics = found["statistics"][0]
    if "bytes_sent" in statistics:
        rounds, count = int(statistics["rounds"]), console.size(statistics["bytes_sent"])
        notes.append(f"The parties exchanged {rounds} messages for one input; each sent {count}, all of it masked.")
    notes.append(f"Against: {found['guarantee']['adversary']}.")
    return notes
