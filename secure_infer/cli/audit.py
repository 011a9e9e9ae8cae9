"""`secure-infer audit`: who asked what and when, and whether anybody changed that log."""

from __future__ import annotations

import json as encoder
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from secure_infer.cli import console
from secure_infer.cli.store import DatabaseUrl, choose, open_database

if TYPE_CHECKING:
    from secure_infer.serve.audit import Audit, Record

ACTIONS = ("show", "verify")


def audit(
    action: Annotated[str, typer.Argument(metavar="ACTION", help="show or verify.")],
    store: Annotated[Path, typer.Argument(metavar="STORE", help="The server's store.")],
    client: Annotated[str, typer.Option(help="show: records of this client only.")] = "",
    last: Annotated[int, typer.Option(min=0, help="show: the newest so many; 0 for all.")] = 20,
    expect: Annotated[str, typer.Option(metavar="N:SHA256", help="verify: what an earlier run printed as head.")] = "",
    database: DatabaseUrl = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON: a record a line, or the verdict.")] = False,
) -> None:
    """Show the log, or follow its chain of hashes from the first record to the last, beside a running server or not.

    A broken chain is exit code 6 and names the first record that is wrong. Records cut off at the end are found by the
    anchor in the store; if somebody may have changed that, too, by a head that was noted elsewhere (--expect).
    """
    from secure_infer.serve.audit import Audit

    choose(action, ACTIONS)
    opened = open_database(store, database)
    try:
        log = Audit(opened, store)
        if action == "verify":
            _verify(log, expect, json)
        else:
            _show(log, client, last, json)
    finally:
        opened.close()


def _verify(log: Audit, expect: str, as_json: bool) -> None:
    from secure_infer.serve.audit import Head

    anchored = log.anchored
    with console.phase("verifying", as_json):
        head = log.verify(Head.parse(expect) if expect else None)
    if as_json:
        console.emit({"whole": True, "records": head.seq, "head": str(head), "anchored": anchored})
        return
    console.say(f"The audit log is whole: {head.seq} records.\nhead  {head}")
    if head.seq and not anchored:
        console.complain("warning: there is no anchor (audit.head), so records may have been cut off at the end.")


def _show(log: Audit, client: str, last: int, as_json: bool) -> None:
    found: Iterator[Record] = (record for record in log.records() if client in ("", record.event.client))
    for record in deque(found, maxlen=last) if last else found:
        if as_json:
            console.say(encoder.dumps({"time": _time(record), **asdict(record)}))
        else:
            console.say(_line(record))


def _time(record: Record) -> str:
    return datetime.fromtimestamp(record.time_ms / 1000, UTC).isoformat(timespec="milliseconds")


def _line(record: Record) -> str:
    event = record.event
    what = " ".join(word for word in (event.model, event.key_name[:12], event.request_id[:12]) if word)
    traffic = f"{event.received} B in, {event.sent} B out, {event.cpu_ms} ms"
    return (
        f"{record.seq:>6}  {_time(record)}  {event.client:<16}  {event.action:<8}  {event.outcome}  {what}  {traffic}"
    )
