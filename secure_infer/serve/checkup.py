"""Whether a store that no server uses is as it must be, whatever was done to the server."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from secure_infer.errors import BundleError, Problem
from secure_infer.serve import usage
from secure_infer.serve.audit import Audit
from secure_infer.serve.database import Database


def problems(folder: str | Path, url: str | None = None) -> list[Problem]:
    """All that is wrong with a store: its tables, its audit log, its counts, its keys. Empty if nothing is.

    Args:
        folder: The store; no server may be using it.
        url: Where its database is, if not in the folder.

    Raises:
        BundleError: Its database can't be read at all.
        UsageError, ProtocolError: It can't be opened.
    """
    database = Database.open(folder, url)
    try:
        return [*_tables(database), *_log(database, Path(folder)), *_counts(database), *_keys(Path(folder))]
    finally:
        database.close()


def _tables(database: Database) -> Iterator[Problem]:
    for what in database.integrity():
        yield Problem("database", f"{what}.", "put back a copy that was backed up.")


def _log(database: Database, folder: Path) -> Iterator[Problem]:
    try:
        Audit(database, folder).verify()
    except BundleError as error:
        yield from error.problems


def _counts(database: Database) -> Iterator[Problem]:
    """Every request that is known must be charged to its hour and its day, once."""
    with database.reading() as query:
        counted = {tuple(row[:3]): int(row[3]) for row in query.all("SELECT client, unit, start, requests FROM usage")}
        charges = query.all("SELECT client, charged FROM requests")
    known = Counter((client, unit, usage.start(unit, at)) for client, at in charges for unit in usage.WINDOWS)
    for window in sorted({*known, *counted}):
        count = counted.get(window, 0)
        if known[window] != count:
            client, unit, began = window
            what = f"In its {unit} from {began}, {count} requests are counted, and {known[window]} known."
            yield Problem(f"client {client}", what, "report this: it must not happen.")


def _keys(folder: Path) -> Iterator[Problem]:
    for path in sorted((folder / "keys").glob("*/*")):
        if path.suffix == ".key":
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != path.stem:
                yield Problem(str(path), "It has another SHA-256 than its name says.", "delete it.")
        elif path.suffix != ".part":
            yield Problem(str(path), "It is neither a key nor the beginning of one.", "see who put it there.")
