"""The seam with three parties and no dealer, through a protocol that can only double; and with two, too."""

from __future__ import annotations

import os
import queue
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numpy as np
import pytest

from secure_infer.backends.parties import meeting
from secure_infer.backends.parties.client import ClientHalf, SharingClient
from secure_infer.errors import BundleError, DecryptionError, ProtocolError, SecureInferError, UsageError
from secure_infer.wire import frame

pytest.importorskip("cryptography")

from secure_infer.backends.parties.channel import Channel, Gate, exchange_all, new_identity
from secure_infer.backends.parties.pairs import Pairs
from secure_infer.backends.parties.process import connect
from secure_infer.backends.parties.seam import PARTY_NAMES, Half, Setup
from secure_infer.backends.parties.session import PartyRole, Session
from secure_infer.backends.parties.standing import Link, Seat
from secure_infer.backends.parties.worker import Worker

MODEL = "m" * 32
THREE = (0, 1, 2)
X = np.random.default_rng(1).integers(-9, 10, (3, 5))


def setup(parties: int = 3, timeout: float = 20.0) -> Setup:
    return Setup("tests.backends.toy_party", timeout, dealer=False, parties=parties)


def client(parties: int = 3) -> SharingClient:
    half = ClientHalf("toy", MODEL, (5,), -9, 9, (5,), parties=parties)
    return SharingClient(ClientHalf.unpack(half.pack(), "toy"))


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    session = Session(setup())
    session.load([[MODEL.encode()]] * 3)
    yield session
    session.close()


def ask(roles: Sequence[PartyRole], messages: Sequence[bytes]) -> list[bytes | BaseException]:
    with ThreadPoolExecutor(3) as threads:
        runs = [threads.submit(role.run, message, b"") for role, message in zip(roles, messages, strict=True)]
    return [run.exception() or run.result() for run in runs]


def answered(roles: Sequence[PartyRole], sharing: SharingClient) -> Any:
    replies = ask(roles, sharing.encrypt(X, sharing.keygen()))
    return sharing.decrypt(cast(list[bytes], replies), sharing.keygen())


def test_every_party_works_and_is_counted(session: Session) -> None:
    assert set(session.processes) == set(PARTY_NAMES)
    roles = [PartyRole(session, party) for party in THREE]
    for _ in range(2):
        assert np.array_equal(answered(roles, client()), 2 * X)
    for role in roles:
        assert role.statistics["rounds"] == 2
        assert role.statistics["bytes_sent"] == 2 * (8 + 64) + 2 * (8 + 8 * X.size)
    assert session.measure()["rounds"] > 0


def test_two_of_them_are_two_parties() -> None:
    session = Session(setup(2))
    try:
        session.load([[MODEL.encode()]] * 2)
        assert np.array_equal(answered([PartyRole(session, party) for party in (0, 1)], client(2)), 2 * X)
    finally:
        session.close()


def test_shares_are_uniform_and_add_up() -> None:
    sharing = client()
    parts = [
        np.frombuffer(frame.unpack(message, "mpc-share").parts[0], np.int64)
        for message in sharing.encrypt(X, sharing.keygen())
    ]
    assert len(parts) == 3 and np.array_equal(sum(parts).reshape(X.shape), X)
    assert len(np.unique(np.concatenate(parts))) == 3 * X.size


def test_wrong_numbers_of_shares_and_replies_are_refused(session: Session) -> None:
    sharing, roles = client(), [PartyRole(session, party) for party in THREE]
    replies = cast(list[bytes], ask(roles, sharing.encrypt(X, sharing.keygen())))
    others = cast(list[bytes], ask(roles, sharing.encrypt(X, sharing.keygen())))
    for wrong in (replies[:2], [*replies, replies[0]], [*replies[:2], others[2]], replies[::-1]):
        with pytest.raises(DecryptionError):
            sharing.decrypt(wrong, sharing.keygen())
    for parties in (1, 4):
        with pytest.raises(BundleError):
            ClientHalf.unpack(ClientHalf("toy", MODEL, (5,), 0, 1, (5,), parties=parties).pack(), "toy")
    with pytest.raises(BundleError, match="Expected 3 server halves, got 2"):
        session.load([[MODEL.encode()]] * 2)
    assert np.array_equal(answered(roles, sharing), 2 * X)


@pytest.mark.parametrize("party", THREE)
def test_a_share_that_one_party_refuses_is_told_to_the_others(session: Session, party: int) -> None:
    sharing, roles = client(), [PartyRole(session, party) for party in THREE]
    messages = list(sharing.encrypt(X, sharing.keygen()))
    messages[party] = messages[(party + 1) % 3]
    found = ask(roles, messages)
    assert isinstance(found.pop(party), BundleError)
    assert all(f"party {party} refused its share" in str(each) for each in found)
    assert np.array_equal(answered(roles, sharing), 2 * X)


def test_a_share_that_does_not_come_ends_the_query_for_all() -> None:
    pairs = Pairs(0.3, 5.0, lambda: None, parties=3)
    started: list[int] = []

    def bring(party: int, samples: int = 1, name: str = "a") -> str:
        try:
            pairs.begin(name, party, samples, b"", lambda to, _: started.append(to))()
        except SecureInferError as error:
            pairs.end(name)
            return str(error)
        return ""

    with ThreadPoolExecutor(3) as threads:
        told = [threads.submit(bring, party) for party in (0, 2)]
        assert all("party 1 was not given its share within 0.3 s" in each.result() for each in told)
        told = [threads.submit(bring, party, 1 + party // 2, "b") for party in THREE]
        assert all("another shape than party 2" in each.result() for each in told)
        assert started == []
        assert [each.result() for each in [threads.submit(bring, party, 1, "c") for party in THREE]] == [""] * 3
    assert sorted(started) == [0, 1, 2]


@pytest.mark.parametrize("victim", [2, pytest.param(0, marks=pytest.mark.full)])
def test_a_killed_party_is_named_at_both_others(victim: int) -> None:
    session, sharing = Session(setup(timeout=6.0)), client()
    try:
        session.load([[MODEL.encode()]] * 3)
        messages = sharing.encrypt(X, sharing.keygen())
        with ThreadPoolExecutor(2) as threads:
            others = [party for party in THREE if party != victim]
            waiting = [threads.submit(PartyRole(session, party).run, messages[party], b"") for party in others]
            time.sleep(0.2)
            os.kill(session.processes[f"party {victim}"], signal.SIGKILL)
            for each in waiting:
                with pytest.raises(ProtocolError, match=f"party {victim}"):
                    each.result(5)
    finally:
        session.close()


@pytest.mark.parametrize(("cores", "crowded"), [(2, True), (3, False)])
def test_parties_look_for_messages_only_where_each_has_a_core(
    cores: int, crowded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, send = [], Worker.send

    def noted(worker: Worker, verb: str, meta: Any = None, *rest: Any) -> None:
        told.append(meta)
        send(worker, verb, meta, *rest)

    monkeypatch.setattr(Worker, "send", noted)
    monkeypatch.setattr("secure_infer.backends.parties.session.usable_cores", lambda: cores)
    Session(setup()).close()
    assert [meta["crowded"] for meta in told if "crowded" in meta] == [crowded] * 3


def test_parties_with_other_plans_do_not_load() -> None:
    session = Session(setup())
    try:
        with pytest.raises(ProtocolError, match="belong to different models"):
            session.load([[MODEL.encode()], [MODEL.encode()], [b"n" * 32]])
    finally:
        session.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def seats() -> list[Seat]:
    identities = {name: new_identity(name) for name in PARTY_NAMES}
    addresses = {name: ("127.0.0.1", free_port()) for name in PARTY_NAMES[:2]}
    found = []
    for name, identity in identities.items():
        peers = {other: each.certificate for other, each in identities.items() if other != name}
        listen = addresses.get(name, ("127.0.0.1", 0))
        found.append(Seat(name, identity, peers, addresses, listen, parties=3, dealer=False))
    return found


def test_seats_of_three_without_a_dealer() -> None:
    first, second, third = seats()
    assert [seat.calls for seat in (first, second, third)] == [(), ("party 0",), ("party 0", "party 1")]
    assert [seat.is_called for seat in (first, second, third)] == [True, True, False]
    with pytest.raises(UsageError, match="party 2 can't be started") as caught:
        Seat("party 2", third.identity, first.peers, {"party 0": ("127.0.0.1", 1)}, parties=3)
    assert sorted(problem.where for problem in caught.value.problems) == ["dealer", "dealer", "party 0", "party 1"]


def test_parties_started_apart_find_one_another_and_agree_on_what_runs() -> None:
    half, sharing = Half(setup(timeout=10.0), MODEL, (5,), (MODEL.encode(),)), client()
    with ThreadPoolExecutor(3) as threads:
        starting = [threads.submit(Link, seat, half, 1, lambda _: None) for seat in seats()[::-1]]
        links = [each.result() for each in starting][::-1]
        names = [meeting.name_of(format(n, "032x"), 1) for n in range(3)]
        proposal = threads.submit(links[0].call, "propose", {"names": names, "refused": ["d" * 32]})
        heard = [each.result().meta for each in [threads.submit(link.call, "hear") for link in links[1:]]]
        assert heard == [{"names": names, "refused": ["d" * 32]}] * 2
        known = ({"waiting": names, "refused": ["e" * 32]}, {"waiting": names[1:], "refused": []})
        choices = [threads.submit(link.call, "choose", meta) for link, meta in zip(links[1:], known, strict=True)]
        for each in (proposal, *choices):
            assert each.result().meta == {"chosen": names[1], "refused": ["e" * 32]}
        messages = sharing.encrypt(X, sharing.keygen())
        runs = [threads.submit(link.run, message) for link, message in zip(links, messages, strict=True)]
        replies = [run.result().parts[0] for run in runs]
        assert np.array_equal(sharing.decrypt(replies, sharing.keygen()), 2 * X)
        for link in links:
            link.close()


class Wire:
    """One end of a channel, for messages without a network."""

    def __init__(self, out: queue.Queue[bytes], into: queue.Queue[bytes]) -> None:
        self.peer, self._out, self._into = "party x", out, into

    def send(self, data: bytes) -> None:
        self._out.put(data)

    def receive(self) -> bytes:
        return self._into.get(timeout=1)


def test_three_parties_that_answer_with_something_else_are_refused() -> None:
    name, other = meeting.name_of("a" * 32, 1), meeting.name_of("b" * 32, 1)
    for answer in (
        b'{"chosen": "", "refused": []}',
        b'{"waiting": "x", "refused": []}',
        b'{"waiting": ["%s"], "refused": []}' % other.encode(),
        b"[]",
    ):
        sent, good, bad = queue.Queue[bytes](), queue.Queue[bytes](), queue.Queue[bytes]()
        good.put(b'{"waiting": ["%s"], "refused": []}' % name.encode())
        bad.put(answer)
        with pytest.raises(ProtocolError):
            meeting.propose(cast(list[Channel], [Wire(sent, good), Wire(sent, bad)]), [name])
    decision: queue.Queue[bytes] = queue.Queue()
    decision.put(b'{"chosen": "%s", "refused": []}' % other.encode())
    with pytest.raises(ProtocolError, match="not proposed"):
        meeting.choose(cast(Channel, Wire(queue.Queue(), decision)), [name], others=2)


@pytest.mark.parametrize("size", [0, 40, 3_000_000])
def test_three_can_send_to_each_other_at_once(size: int) -> None:
    identities = {name: new_identity(name) for name in PARTY_NAMES}
    gates = {
        name: Gate(identity, {other: each.certificate for other, each in identities.items() if other != name}, 5.0)
        for name, identity in identities.items()
    }
    addresses = {name: ("127.0.0.1", gate.port) for name, gate in gates.items()}
    data = {name: os.urandom(size) for name in PARTY_NAMES}
    with ThreadPoolExecutor(3) as threads:
        reached = [threads.submit(connect, name, gate, addresses, 3) for name, gate in gates.items()]
        channels = dict(zip(gates, (each.result() for each in reached), strict=True))
        for name, found in channels.items():
            assert list(found) == [other for other in PARTY_NAMES if other != name]
        told = {
            name: threads.submit(exchange_all, list(found.values()), data[name], size)
            for name, found in channels.items()
        }
        for name, each in told.items():
            assert each.result() == [data[other] for other in PARTY_NAMES if other != name]
    for channel in (channel for found in channels.values() for channel in found.values()):
        assert (channel.rounds, channel.bytes_sent) == (1, size + 8)
        channel.close()
