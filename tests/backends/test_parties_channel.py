"""The channel between two roles, between threads: sizes, time limits, strangers, and networks that are not there."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from secure_infer.errors import (
    ProtocolError,
)

pytest.importorskip("crypten")

from secure_infer.backends.parties.channel import Channel, Gate, new_identity
from secure_infer.backends.parties.network import LOOPBACK, NETWORKS, Line, Network, between_parties, chosen


def _connected(timeout: float = 5.0, network: Network | None = None) -> tuple[Channel, Channel]:
    identities = {name: new_identity(name) for name in ("party 0", "party 1")}
    gates = [
        Gate(identities[mine], {theirs: identities[theirs].certificate}, timeout)
        for mine, theirs in (("party 0", "party 1"), ("party 1", "party 0"))
    ]
    with ThreadPoolExecutor(1) as threads:
        accepted = threads.submit(lambda: [gates[0].accept("party 1") for _ in range(2)])
        called = [gates[1].call("party 0", ("127.0.0.1", gates[0].port)) for _ in range(2)]
        inbound, outbound = accepted.result()
    for gate in gates:
        gate.close()
    return Channel("party 1", inbound, outbound, network), Channel("party 0", called[1], called[0], network)


@pytest.mark.parametrize("size", [0, 1, 1 << 15, (1 << 15) + 1, 20_000_000])
def test_both_sides_can_send_at_once(size: int) -> None:
    left, right = _connected()
    data = [os.urandom(size), os.urandom(size)]
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(right.exchange, data[1], size)
        assert left.exchange(data[0], size) == data[1]
        assert other.result() == data[0]
    assert left.bytes_sent == right.bytes_sent == left.bytes_received == size + 8
    for channel in (left, right):
        channel.close()


def test_a_message_of_another_size_is_refused() -> None:
    left, right = _connected()
    left.send(b"four")
    with pytest.raises(ProtocolError, match="sent 4 bytes where 5 were due"):
        right.receive(5)
    left.close()
    with pytest.raises(ProtocolError, match="party 0 closed the connection"):
        right.receive(5)
    right.close()


def test_a_silent_peer_is_not_waited_for_forever() -> None:
    left, right = _connected(0.2)
    with pytest.raises(ProtocolError, match=r"was silent for 0\.2 s"):
        left.receive(1)
    left.close()
    right.close()


def test_strangers_are_turned_away() -> None:
    """A caller with a certificate of its own making, and one that does not speak TLS, do not get in; the peer does."""
    mine, peer, stranger = (new_identity(name) for name in ("party 0", "party 1", "party 1"))
    with contextlib.ExitStack() as stack:
        gate = stack.enter_context(contextlib.closing(Gate(mine, {"party 1": peer.certificate}, 5.0)))
        outside, inside = (
            stack.enter_context(contextlib.closing(Gate(identity, {"party 0": mine.certificate}, 5.0)))
            for identity in (stranger, peer)
        )
        threads = stack.enter_context(ThreadPoolExecutor(1))
        accepted = threads.submit(gate.accept, "party 1")
        with socket.create_connection(("127.0.0.1", gate.port)) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        # Under TLS 1.3 a client learns that it was refused only when it reads.
        with contextlib.suppress(ProtocolError, OSError), outside.call("party 0", ("127.0.0.1", gate.port)) as refused:
            assert not refused.recv(1)
        inside.call("party 0", ("127.0.0.1", gate.port)).close()
        accepted.result(10).close()


def test_an_impostor_that_listens_is_not_talked_to() -> None:
    mine, peer, stranger = (new_identity(name) for name in ("party 0", "party 1", "party 1"))
    with contextlib.ExitStack() as stack:
        impostor = stack.enter_context(contextlib.closing(Gate(stranger, {"party 0": mine.certificate}, 1.0)))
        gate = stack.enter_context(contextlib.closing(Gate(mine, {"party 1": peer.certificate}, 5.0)))
        threads = stack.enter_context(ThreadPoolExecutor(1))
        accepted = threads.submit(impostor.accept, "party 0")
        with pytest.raises(ProtocolError, match="does not hold the certificate"):
            gate.call("party 1", ("127.0.0.1", impostor.port))
        with pytest.raises(ProtocolError, match="did not connect"):
            accepted.result()


def test_secrets_do_not_print() -> None:
    identity = new_identity("party 0")
    assert "PRIVATE" not in repr(identity)
    assert "hidden" in repr(identity)


def test_a_line_delays_by_latency_and_what_was_sent_before() -> None:
    line = Line(Network("slow", 2.0, 80.0))
    assert line.due(10.0, 30) == 10 + 3 + 1
    assert line.due(10.5, 10) == 13 + 1 + 1, "its bytes wait for those of the message before"
    assert line.due(20.0, 0) == 21


def test_a_channel_behind_a_network_is_as_slow_as_it() -> None:
    network = Network("slow", 0.1, 8e6)
    channels = _connected(network=network)
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(lambda: [channels[1].exchange(b"x" * 10_000, 10_000) for _ in range(4)])
        started = time.monotonic()
        for _ in range(4):
            assert channels[0].exchange(b"y" * 10_000, 10_000) == b"x" * 10_000
        took = time.monotonic() - started
        other.result()
    assert 4 * (0.05 + 0.01) <= took < 3
    assert channels[0].bytes_sent == 4 * 10_008, "the sender's clock is not counted"
    for channel in channels:
        channel.close()


def test_sessions_take_the_network_of_their_block() -> None:
    assert chosen() == LOOPBACK
    with between_parties("wan"):
        assert chosen() == "wan"
    assert chosen() == LOOPBACK
    assert NETWORKS["wan"].seconds(5, 1000) == 5 * 0.02 + 8000 / 400e6
