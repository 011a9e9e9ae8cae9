"""Options and openings that the verbs for a server's store share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secure_infer.errors import Problem, UsageError

if TYPE_CHECKING:
    from secure_infer.serve.database import Database

Store = Annotated[Path, typer.Option("--store", metavar="DIR", help="The server's store.")]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database",
        envvar="SECURE_INFER_DATABASE",
        show_envvar=True,
        metavar="URL",
        help="postgresql://..., where the store's database is not in DIR.",
    ),
]


def open_database(store: Path, url: str | None, make: bool = False) -> Database:
    """The database of a store, beside a server that may be running.

    Args:
        store: The store.
        url: Where its database is, if not in the store.
        make: Make a store that is absent.

    Raises:
        UsageError: There is none.
    """
    from secure_infer.serve.database import Database, is_store

    if not make and not is_store(store):
        fix = "give the server's --store, or make one with `secure-infer token add`."
        raise UsageError("No store of a server.", [Problem(str(store), "It holds no database.", fix)])
    return Database.open(store, url)


def choose(action: str, actions: tuple[str, ...]) -> None:
    """Check the word after a verb.

    Raises:
        UsageError: It is none of the verb's actions.
    """
    if action not in actions:
        problem = Problem("ACTION", f"{action!r} is none of them.", f"give one of {', '.join(actions)}.")
        raise UsageError("No such action.", [problem])
