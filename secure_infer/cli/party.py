"""`secure-infer party`: one role of a protocol of several parties, on a host of its own."""

from __future__ import annotations

import hashlib
import logging
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secure_infer import files
from secure_infer.cli import console
from secure_infer.errors import Problem, UsageError, missing_extra
from secure_infer.serve import party_files
from secure_infer.serve.party_files import ROLES

if TYPE_CHECKING:
    from secure_infer.backends.parties.standing import Seat
    from secure_infer.serve.catalog import Model

_CERTIFICATE, _KEY = "tls.pem", "tls.key"
_TIMEOUT = 60.0


def party(
    *,
    role: Annotated[str, typer.Option(envvar="SECURE_INFER_ROLE", help="a, b, c or dealer.")],
    folder: Annotated[Path, typer.Option(envvar="SECURE_INFER_FOLDER", help="Made by `provision`.")],
    config: Annotated[Path | None, typer.Option(help="protocol.toml, for addresses that are not given.")] = None,
    listen: Annotated[str, typer.Option(envvar="SECURE_INFER_LISTEN", help="host:port for the other roles.")] = "",
    party_a: Annotated[str, typer.Option(envvar="SECURE_INFER_PARTY_A", help="host:port of party a.")] = "",
    party_b: Annotated[str, typer.Option(envvar="SECURE_INFER_PARTY_B", help="host:port of party b, for c.")] = "",
    dealer: Annotated[str, typer.Option(envvar="SECURE_INFER_DEALER", help="host:port of the dealer.")] = "",
    http: Annotated[str, typer.Option(envvar="SECURE_INFER_HTTP", help="host:port for clients.")] = "",
    store: Annotated[Path | None, typer.Option(envvar="SECURE_INFER_STORE", help="As of `serve`.")] = None,
    name: Annotated[str, typer.Option(envvar="SECURE_INFER_MODEL", help="The model's name for clients.")] = "model",
    ahead: Annotated[int | None, typer.Option(min=1, help="Inferences to keep correlations in stock for.")] = None,
    without_dealer: Annotated[bool, typer.Option("--without-dealer", help="Live on what is in stock.")] = False,
    open: Annotated[bool, typer.Option("--open", help="Let requests without a token in; loopback only.")] = False,
    insecure: Annotated[bool, typer.Option("--insecure", help="Permit plain HTTP to other machines.")] = False,
    json: console.Json = False,
) -> None:
    """Run a party or the dealer of an MPC model until SIGTERM or Ctrl-C. In any order: they find one another.

    For TLS to clients, the folder holds tls.pem and tls.key; clients need tokens made with `secure-infer token`.
    """
    if role not in ROLES:
        known = ", ".join(ROLES)
        raise UsageError("There is no such role.", [Problem("--role", f"{role!r} is none of {known}.", "correct it.")])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    known_places = _configured(config)
    given = {"a": party_a, "b": party_b, "dealer": dealer, role: listen}
    seat = _seat(role, folder, given, known_places, ahead, without_dealer)
    if role == "dealer":
        _deal(seat, folder, known_places, json)
    else:
        _serve(
            seat,
            folder,
            _address("--http", http or known_places.get(f"{role} front", "")),
            store,
            name,
            open,
            insecure,
            json,
        )


def _configured(config: Path | None) -> Mapping[str, str]:
    """Addresses in a protocol.toml, by role, and the time limit."""
    if config is None:
        return {}
    try:
        data = tomllib.loads(files.read(config).decode())
        names = {full: short for short, full in ROLES.items()}
        found = {"timeout": str(data.get("options", {}).get("timeout", _TIMEOUT))}
        for entry in data["roles"]:
            for key, label in (("endpoint", ""), ("front", " front")):
                if entry["name"] in names and key in entry:
                    found[names[entry["name"]] + label] = f"{entry[key]['host']}:{entry[key]['port']}"
        return found
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        problem = Problem(str(config), f"{type(error).__name__}: {error}.", "give a protocol.toml with [[roles]].")
        raise UsageError("The protocol's file can't be read.", [problem]) from error


def _seat(
    role: str,
    folder: Path,
    given: Mapping[str, str],
    known: Mapping[str, str],
    ahead: int | None,
    without_dealer: bool,
) -> Seat:
    try:
        from secure_infer.backends.parties.standing import Seat
    except ModuleNotFoundError as error:
        raise missing_extra("mpc", "mpc", error.name or "crypten") from error
    identity, peers = party_files.read_identity(folder)
    places = {short: given.get(short) or known.get(short, "") for short in ROLES}
    addresses = {ROLES[short]: _address(short, text) for short, text in places.items() if text}
    mine = addresses.pop(ROLES[role], ("127.0.0.1", 0))
    parties, dealt = party_files.roles_of(folder, ROLES[role], peers)
    if role != list(ROLES)[parties - 1] and mine[1] == 0:
        problem = Problem("--listen", "The other roles would not find it.", "give host:port, or --config.")
        raise UsageError(f"The {ROLES[role]} has to listen somewhere.", [problem])
    return Seat(ROLES[role], identity, peers, addresses, mine, folder.resolve(), ahead, without_dealer, parties, dealt)


def _address(option: str, text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise UsageError(
            "This is no address.", [Problem(option, f"Got {text!r}.", "give host:port, here or in --config.")]
        )
    return host.strip("[]"), int(port)


def _deal(seat: Seat, folder: Path, known: Mapping[str, str], as_json: bool) -> None:
    """Deal for one session after another."""
    from secure_infer.backends.parties.standing import deal_once

    backend = party_files.read_protocol(folder)
    log, last = logging.getLogger(__name__), ""
    _announce({"role": "dealer", "listens": f"{seat.listen[0]}:{seat.listen[1]}"}, as_json)
    while True:
        timeout = float(known.get("timeout", _TIMEOUT))
        ended = deal_once(seat, timeout, backend.deal, lambda: log.info("all parties are connected"))
        if str(ended) != last:
            log.warning("%s", ended.summary)
        last = str(ended)


def _serve(
    seat: Seat,
    folder: Path,
    address: tuple[str, int],
    store: Path | None,
    name: str,
    anonymous: bool,
    insecure: bool,
    as_json: bool,
) -> None:
    """One party behind HTTP."""
    try:
        from secure_infer.serve.app import Front, Options
        from secure_infer.serve.catalog import Catalog
        from secure_infer.serve.party import PartyRunner
        from secure_infer.serve.server import Listen, Server
        from secure_infer.serve.state import State
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("secure_infer"):
            raise
        raise missing_extra("secure-infer party", "serve", error.name) from error
    if store is None:
        raise UsageError("A party needs a store.", [Problem("--store", "Missing.", "give a folder of its own.")])
    encrypted = (folder / _CERTIFICATE).exists()
    certificate, key = (folder / _CERTIFICATE, folder / _KEY) if encrypted else (None, None)
    listen = Listen(address[0], address[1], certificate, key, insecure=insecure)
    listen.check(anonymous=anonymous)
    number = list(ROLES.values()).index(seat.role)
    half = party_files.read_half(folder, number)
    with State.open(store) as state:
        runner = PartyRunner(half, seat)
        catalog = Catalog([_model(name, folder / party_files.MODEL, half)])
        server = Server(Front(catalog, state, runner, Options(open=anonymous), runner.start), listen)
        document = {"role": seat.role, "url": server.url, "model": name}
        server.run(lambda: _announce(document, as_json))


def _model(name: str, path: Path, half: party_files.PartyHalf) -> Model:
    from secure_infer.serve.catalog import Model
    from secure_infer.serve.sizes import sizes

    etag = hashlib.sha256(half.client_half).hexdigest()
    bounds = sizes(half.interface, {})
    return Model(name, path, half.interface, half.party, half.parties, half.client_half, etag, bounds)


def _announce(document: dict[str, Any], as_json: bool) -> None:
    """Say that the role has begun, at once, for whoever waits for it."""
    if as_json:
        console.emit(document)
    else:
        console.say("  ".join(f"{key} {value}" for key, value in document.items()))
    sys.stdout.flush()
