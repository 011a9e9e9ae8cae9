"""Roles in folders of their own: stocks outlive processes and the dealer, and say when they are exhausted."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from secure_infer.backends.mpc_fss import MpcFssBackend
from secure_infer.backends.parties.channel import Identity, new_identity
from secure_infer.backends.parties.seam import Half, Setup
from secure_infer.backends.parties.standing import Link, Seat, deal_once
from secure_infer.errors import ProtocolError, SecureInferError, UsageError
from secure_infer.graph import Graph, Linear, Node, Sign, TensorType, interpret

BACKEND = MpcFssBackend()
NAMES = ("party 0", "party 1", "dealer")
TIMEOUT = 6.0
RNG = np.random.default_rng(2)
GRAPH = Graph(
    TensorType((6,), -8, 7),
    (
        Node("a", Linear(RNG.integers(-3, 4, (5, 6)), np.zeros(5, dtype=np.int64)), ("input",)),
        Node("b", Sign(), ("a",)),
    ),
    "b",
)
PROGRAM = BACKEND.compile(GRAPH, np.zeros((1, 6), dtype=np.int64), {"timeout": TIMEOUT})


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Trio:
    """Three roles with identities and folders; parties are started and stopped at will."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.identities = {name: new_identity(name) for name in NAMES}
        for name in NAMES:
            (folder / name).mkdir()

    def seat(self, name: str, addresses: dict[str, tuple[str, int]], alone: bool) -> Seat:
        peers = {other: identity.certificate for other, identity in self.identities.items() if other != name}
        listen = addresses.get(name, ("127.0.0.1", 0))
        return Seat(name, self.identities[name], peers, addresses, listen, self.folder / name, 3, alone)

    def start(self, alone: bool = False) -> list[Link]:
        """Both parties, and unless they do without it a dealer for one session."""
        addresses = {name: ("127.0.0.1", free_port()) for name in NAMES if name == "party 0" or not alone}
        seats = {
            name: self.seat(name, {**addresses}, alone and name != "dealer")
            for name in NAMES
            if name in addresses or name == "party 1"
        }
        if not alone:
            threading.Thread(
                target=deal_once, args=(seats["dealer"], TIMEOUT, BACKEND.deal, lambda: None), daemon=True
            ).start()
        with ThreadPoolExecutor(2) as threads:
            links = [
                threads.submit(Link, seats[NAMES[i]], BACKEND.party_half(PROGRAM.servers[i], i), 1, lambda _: None)
                for i in (0, 1)
            ]
        return [link.result() for link in links]


def ask(links: list[Link], x: np.ndarray) -> tuple[np.ndarray, list[int]]:
    client = BACKEND.client(PROGRAM.client)
    messages = client.encrypt(x, client.keygen())
    with ThreadPoolExecutor(2) as threads:
        runs = [threads.submit(link.run, message) for link, message in zip(links, messages, strict=True)]
    answers = [run.result() for run in runs]
    outputs = client.decrypt([answer.parts[0] for answer in answers], client.keygen())
    return np.asarray(outputs), [answer.meta["first_item"] for answer in answers]


def close(links: list[Link]) -> None:
    for link in links:
        link.close()


def test_a_stock_outlives_the_parties_and_the_dealer(tmp_path: Path) -> None:
    trio, used = Trio(tmp_path), list[int]()
    x = RNG.integers(-8, 8, (1, 6))
    for alone in (False, False, True):
        links = trio.start(alone)
        outputs, items = ask(links, x)
        close(links)
        assert np.array_equal(outputs, interpret(GRAPH, x))
        assert items[0] == items[1]
        used.append(items[0])
    assert used == sorted(set(used))
    assert (tmp_path / "dealer" / "dealer.key").stat().st_mode & 0o077 == 0
    with pytest.raises(SecureInferError) as caught:
        links = trio.start(alone=True)
        try:
            for _ in range(9):
                ask(links, x)
        finally:
            close(links)
    assert "--without-dealer" in str(caught.value) or "closed the connection" in str(caught.value)


def test_nothing_in_stock_and_no_dealer(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match="exhausted"):
        Trio(tmp_path).start(alone=True)


def test_a_protocol_without_a_stock_needs_its_dealer() -> None:
    seat = Seat("party 0", Identity(b"", b""), {"party 1": b"", "dealer": b""}, without_dealer=True)
    with pytest.raises(UsageError, match="without the dealer"):
        Link(seat, Half(Setup("no.such.module", 1.0), "m", (1,), ()), 1, lambda _: None)
