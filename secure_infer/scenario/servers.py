"""Starts the server side of a bundle: one server, or parties and a dealer, each a process with TLS and tokens."""

from __future__ import annotations

import re
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from secure_infer.errors import ProtocolError
from secure_infer.scenario.authority import Authority
from secure_infer.scenario.processes import START_SECONDS, Role, Roles
from secure_infer.wire.api import SCOPES

CLIENT, MODEL = "client", "model"
_STORE, _CERTIFICATE, _KEY = "store", "tls.pem", "tls.key"
_COUNTED = re.compile(r'secure_infer_http_bytes_total\{direction="(in|out)"\} (\S+)')


@dataclass(frozen=True)
class Served:
    """Running servers, as a client is told of them.

    Attributes:
        names: Of the roles that a client talks to.
        urls: Their addresses, in the same order.
        tokens: One for each.
        ca: Certificate of the authority that signed theirs.
        folders: Of every role on the server side, by name.
    """

    names: tuple[str, ...]
    urls: tuple[str, ...]
    tokens: tuple[str, ...] = field(repr=False)
    ca: Path
    folders: dict[str, Path]

    def traffic(self) -> dict[str, dict[str, int]]:
        """Bytes of bodies that each server says it has taken in and given out."""
        found = {}
        for name, url, token in zip(self.names, self.urls, self.tokens, strict=True):
            text = _get(f"{url}/metrics", self.ca, token).decode()
            found[name] = {way: int(float(count)) for way, count in _COUNTED.findall(text)}
        return found


def start(roles: Roles, folder: Path, bundle: Path, parties: int, threads: int = 2) -> Served:
    """Start all roles on the server side below `folder`, and wait until they take requests.

    Raises:
        ProtocolError: A role does not start; says what it said.
    """
    (folder / CLIENT).mkdir(parents=True, exist_ok=True)
    authority = Authority()
    ca = authority.write(folder / CLIENT / "ca.pem")
    if parties == 1:
        served = _one(roles, folder, bundle, authority, ca, threads)
    else:
        served = _several(roles, folder, bundle, authority, ca)
    _await(roles, served)
    return served


def _one(roles: Roles, folder: Path, bundle: Path, authority: Authority, ca: Path, threads: int) -> Served:
    place = folder / "server"
    place.mkdir()
    shutil.copyfile(bundle, place / f"{MODEL}.bundle")
    token = _prepared(place, authority)
    words = ["serve", f"{MODEL}.bundle", "--store", _STORE, "--port", 0, "--workers", 1, "--threads", threads]
    role = roles.start("server", place, *words, "--tls-cert", _CERTIFICATE, "--tls-key", _KEY, "--json")
    url = str(role.announced(time.monotonic() + START_SECONDS)["url"])
    return Served(("server",), (url,), (token,), ca, {"server": place})


def _several(roles: Roles, folder: Path, bundle: Path, authority: Authority, ca: Path) -> Served:
    from secure_infer.serve.party_files import ROLES, provision

    places = provision(bundle, folder)
    parties = [short for short in places if short != "dealer"]
    tokens = tuple(_prepared(places[short], authority) for short in parties)
    meeting = {short: f"127.0.0.1:{_free_port()}" for short in places if short != parties[-1]}
    told = {"a": "--party-a", "b": "--party-b", "dealer": "--dealer"}
    started: dict[str, Role] = {}
    for short in sorted(places, reverse=True):
        words: list[object] = ["party", "--role", short, "--folder", ".", "--json"]
        words += ["--listen", meeting[short]] if short in meeting else []
        if short != "dealer":
            words += [word for other, place in meeting.items() if other != short for word in (told[other], place)]
            words += ["--http", "127.0.0.1:0", "--store", _STORE, "--name", MODEL]
        started[short] = roles.start(ROLES[short], places[short], *words)
    deadline = time.monotonic() + START_SECONDS
    urls = tuple(str(started[short].announced(deadline)["url"]) for short in parties)
    folders = {ROLES[short]: place for short, place in places.items()}
    return Served(tuple(ROLES[short] for short in parties), urls, tokens, ca, folders)


def _prepared(place: Path, authority: Authority) -> str:
    """Give a server a certificate and a store; returns a token for the client of this run."""
    from secure_infer.serve.accounts import Accounts
    from secure_infer.serve.database import Database

    authority.issue(place / _CERTIFICATE, place / _KEY)
    database = Database.open(place / _STORE)
    try:
        return Accounts(database).add("client", SCOPES, time.time() + 86400)
    finally:
        database.close()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _await(roles: Roles, served: Served) -> None:
    """Wait until every server is ready: parties are once they have found one another."""
    deadline = time.monotonic() + START_SECONDS
    for url in served.urls:
        while not _ready(url, served.ca):
            roles.check()
            if time.monotonic() > deadline:
                raise ProtocolError(f"The server at {url} does not become ready.")
            time.sleep(0.1)


def _ready(url: str, ca: Path) -> bool:
    try:
        return bool(_get(f"{url}/readyz", ca))
    except (urllib.error.URLError, OSError):
        return False


def _get(url: str, ca: Path, token: str = "") -> bytes:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    context = ssl.create_default_context(cafile=ca)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    with opener.open(urllib.request.Request(url, headers=headers), timeout=30) as reply:
        body: bytes = reply.read()
    return body
