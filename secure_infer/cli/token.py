"""`secure-infer token`: who may ask a server, for what, and how much."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secure_infer.cli import console
from secure_infer.cli.store import DatabaseUrl, Store, choose, open_database
from secure_infer.errors import Problem, UsageError

if TYPE_CHECKING:
    from secure_infer.serve.accounts import Accounts, Token
    from secure_infer.serve.database import Database

ACTIONS = ("add", "list", "rotate", "revoke")
PER_DAY = 1000
SCOPES = ("models", "keys", "infer")
_SECONDS = {"m": 60.0, "h": 3600.0, "d": 86400.0}
_LIMITS = {
    "per_hour": "an hour",
    "per_day": "a day",
    "cpu_per_hour": "s of CPU an hour",
    "cpu_per_day": "s of CPU a day",
}


def token(
    action: Annotated[str, typer.Argument(metavar="ACTION", help="add, list, rotate or revoke.")],
    name: Annotated[str, typer.Argument(help="Client (add, revoke), or public name of a token (rotate, revoke).")] = "",
    *,
    store: Store,
    scope: Annotated[
        list[str] | None,
        typer.Option("--scope", help="models, keys, infer (these three by default), metrics; repeatable."),
    ] = None,
    expires: Annotated[str, typer.Option(help="90d, 12h, 30m, a date like 2030-01-31 (UTC), or never.")] = "90d",
    per_hour: Annotated[int | None, typer.Option(min=0, help="Requests an hour for all tokens of the client.")] = None,
    per_day: Annotated[int | None, typer.Option(min=0, help=f"Requests a day; {PER_DAY} for a new client.")] = None,
    cpu_per_hour: Annotated[float | None, typer.Option(min=0, help="Seconds of CPU an hour.")] = None,
    cpu_per_day: Annotated[float | None, typer.Option(min=0, help="Seconds of CPU a day.")] = None,
    no_limits: Annotated[bool, typer.Option("--no-limits", help="Lift all limits of the client.")] = False,
    grace: Annotated[str, typer.Option(help="rotate: for how long the old token still holds.")] = "0m",
    database: DatabaseUrl = None,
    json: console.Json = False,
) -> None:
    """Add, list, rotate or revoke tokens; a server that is running heeds it at once.

    A new token is printed once, alone on standard output. The store keeps only its hash.
    """
    choose(action, ACTIONS)
    _check_name(action, name)
    asked = {"per_hour": per_hour, "per_day": per_day, "cpu_per_hour": cpu_per_hour, "cpu_per_day": cpu_per_day}
    limits = {key: value for key, value in asked.items() if value is not None}
    if limits and no_limits:
        problem = Problem("--no-limits", "It contradicts the limits given.", "give either.")
        raise UsageError("These options can't go together.", [problem])
    until, grace_s = _expiry(expires), _duration("--grace", grace)
    opened = open_database(store, database, make=action == "add")
    try:
        match action:
            case "add":
                _add(opened, name, scope or SCOPES, until, None if no_limits else limits, json)
            case "rotate":
                _rotate(opened, name, grace_s, json)
            case "revoke":
                _revoke(opened, name, json)
            case _:
                _list(opened, json)
    finally:
        opened.close()


def _add(
    database: Database,
    client: str,
    scopes: Sequence[str],
    until: float | None,
    limits: Mapping[str, float] | None,
    as_json: bool,
) -> None:
    """Make a token. Limits that are not given stay as they are; None lifts all."""
    from secure_infer.serve.accounts import Accounts, Limits

    accounts = Accounts(database)
    old = accounts.limits(client) or Limits(per_day=PER_DAY)
    new = Limits() if limits is None else replace(old, **limits)  # type: ignore[arg-type]
    _show(accounts, accounts.add(client, scopes, until, new), as_json)


def _rotate(database: Database, name: str, grace_s: float, as_json: bool) -> None:
    from secure_infer.serve.accounts import Accounts

    accounts = Accounts(database)
    _show(accounts, accounts.rotate(name, grace_s), as_json)


def _revoke(database: Database, name: str, as_json: bool) -> None:
    from secure_infer.serve.accounts import Accounts

    ended = Accounts(database).revoke(name)
    if as_json:
        console.emit({"revoked": list(ended)})
    else:
        console.say(f"Revoked: {', '.join(ended) or 'nothing; that was done before'}.")


def _list(database: Database, as_json: bool) -> None:
    from secure_infer.serve.accounts import Accounts
    from secure_infer.serve.usage import spent

    found, now = Accounts(database).tokens(), time.time()
    with database.reading() as query:
        today = {token.client: spent(query, token.client, "day", now) for token in found}
    if as_json:
        day = {name: {"requests": used.requests, "cpu_s": used.cpu_s} for name, used in today.items()}
        console.emit({"tokens": [_plain(token, now) | {"today": day[token.client]} for token in found]})
        return
    for token in found:
        used = today[token.client]
        console.say(f"{_line(token, now)}; today {used.requests} requests, {used.cpu_s:.1f} s of CPU")


def _show(accounts: Accounts, secret: str, as_json: bool) -> None:
    """Show a new token, the one time that it can be."""
    public = accounts.authenticate(secret).token
    made = next(token for token in accounts.tokens() if token.id == public)
    if as_json:
        console.emit({"token": secret, **_plain(made, made.made)})
        return
    console.complain(f"{_line(made, made.made)}\nThe token, which is not shown again:")
    console.say(secret)


def _plain(token: Token, now: float) -> dict[str, Any]:
    return {**asdict(token), "scopes": list(token.scopes), "state": _state(token, now)}


def _line(token: Token, now: float) -> str:
    until = "never" if token.expires is None else datetime.fromtimestamp(token.expires, UTC).strftime("%Y-%m-%d %H:%M")
    limits = ", ".join(
        f"{limit:g} {_LIMITS[name]}" for name, limit in asdict(token.limits).items() if limit is not None
    )
    state = f"{_state(token, now):<7}  expires {until:<16}"
    return f"{token.id}  {token.client:<16}  {state}  {','.join(token.scopes)}; {limits or 'no limits'}"


def _state(token: Token, now: float) -> str:
    if token.revoked is not None:
        return "revoked"
    return "expired" if token.expires is not None and token.expires <= now else "good"


def _check_name(action: str, name: str) -> None:
    if (action == "list") == bool(name):
        what, fix = ("It takes no name.", "leave it out.") if name else ("None is given.", f"token {action} NAME ...")
        raise UsageError(f"`token {action}` can't do that.", [Problem("NAME", what, fix)])


def _expiry(text: str) -> float | None:
    """Seconds since 1970; None for never."""
    if text == "never":
        return None
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return time.time() + _duration("--expires", text)


def _duration(option: str, text: str) -> float:
    """Seconds that `90d`, `12h` or `30m` are."""
    if not re.fullmatch(r"[0-9]{1,5}[mhd]", text):
        problem = Problem(option, f"{text[:40]!r} is no duration.", "give a number and m, h or d: 30m, 12h, 90d.")
        raise UsageError("No such time.", [problem])
    return int(text[:-1]) * _SECONDS[text[-1]]
