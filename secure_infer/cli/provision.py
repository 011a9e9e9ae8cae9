"""`secure-infer provision`: what each role of a protocol with several parties keeps in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from secure_infer.cli import console
from secure_infer.errors import Problem, UsageError
from secure_infer.serve import party_files


def provision(
    *,
    bundle: Annotated[Path | None, typer.Argument(help="Bundle of a protocol with several parties.")] = None,
    out: Annotated[Path, typer.Option(help="Folder to make; with --role, the folder of that role.")],
    role: Annotated[str, typer.Option(help="Make the identity of this role alone: a, b, c or dealer.")] = "",
    days: Annotated[float, typer.Option(help="How long certificates are good for.", min=1, max=3650)] = 365,
    json: console.Json = False,
) -> None:
    """Make a folder for each role: its key and certificate, the others' certificates, its half of the model.

    Where nobody may see all keys, each role runs this with --role on its own host and sends out identity.pem.
    """
    if role:
        certificate = party_files.make_identity(out, _known(role), days)
        made = {role: certificate.parent}
    elif bundle is None:
        raise UsageError("There is nothing to provision.", [Problem("BUNDLE", "Missing.", "give one, or --role.")])
    else:
        made = party_files.provision(bundle, out, days)
    if json:
        console.emit({"folders": {name: str(path) for name, path in made.items()}})
    else:
        for name, path in made.items():
            console.say(f"{name:<6}  {path}  {', '.join(sorted(entry.name for entry in path.iterdir()))}")


def _known(role: str) -> str:
    if role not in party_files.ROLES:
        known = ", ".join(party_files.ROLES)
        raise UsageError("There is no such role.", [Problem("--role", f"{role!r} is none of {known}.", "correct it.")])
    return role
