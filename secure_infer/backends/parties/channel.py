"""Mutually authenticated TLS 1.3 between parties: lock-step messages with a time limit, counted exactly.

Two parties hold two connections, one for each direction, so that both can send at once however large the messages are.
Each party knows its peers by their certificates, which are pinned; anybody else is turned away.
"""

from __future__ import annotations

import contextlib
import datetime
import math
import os
import select
import socket
import ssl
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from secure_infer.backends.parties.messages import HEADER_BYTES
from secure_infer.backends.parties.network import STAMP_BYTES, Line, Network
from secure_infer.cores import usable_cores
from secure_infer.errors import Problem, ProtocolError
from secure_infer.graph.types import Integers

HOST = "127.0.0.1"
_SMALL = 1 << 15  # what any socket buffer takes in at once
_LONGEST_UNSIZED = 1 << 22
_LONGEST_HANDSHAKE = 5.0  # seconds for which somebody who calls and says nothing keeps others waiting
_RETRY = 0.2
# To look again and again for so long costs less than to fall asleep and be woken, where a peer has a core of its own.
_AWAKE_S = 3e-4 if usable_cores() > 1 else 0.0

Address = tuple[str, int]
"""Host and port."""


def as_bytes(values: npt.NDArray[Any]) -> memoryview:
    """The bytes of an array, without a copy if it is contiguous."""
    return memoryview(np.ascontiguousarray(values).reshape(-1).data).cast("B")


@dataclass(frozen=True)
class Identity:
    """A private key and its self-signed certificate, both PEM."""

    key: bytes
    certificate: bytes

    def __repr__(self) -> str:
        return "Identity(key=hidden)"


def new_identity(name: str, days: float = 7) -> Identity:
    """A fresh P-256 key with a certificate that says `name`, valid for `days`."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    hour = datetime.timedelta(hours=1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - hour)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return Identity(private, certificate.public_bytes(pem))


def lost(peer: str, what: str) -> ProtocolError:
    """The error for a peer that is gone, silent or out of step."""
    return ProtocolError(
        f"The {peer} {what}.",
        [Problem(peer, f"It {what}.", "start the servers again, and run all parties of a query at the same time.")],
    )


def _deaf(listen: Address, error: OSError) -> ProtocolError:
    where = f"{listen[0]}:{listen[1]}"
    reason = error.strerror or type(error).__name__
    return ProtocolError(f"Can't listen at {where}.", [Problem(where, f"{reason}.", "give another address.")])


class Channel:
    """Messages to and from one peer, strictly in turn.

    Args:
        peer: Its name.
        inbound: The connection that it sends on.
        outbound: The connection that it receives on, which may be the same.
        network: To be waited for, in measurements on one machine; both ends must be given the same.

    Attributes:
        peer: Name of the peer, for errors.
        bytes_sent: Payload and length prefixes handed to TLS so far.
        bytes_received: The same in the other direction.
        rounds: Messages or simultaneous exchanges of messages so far.
    """

    _awake_s = _AWAKE_S

    def __init__(
        self, peer: str, inbound: ssl.SSLSocket, outbound: ssl.SSLSocket, network: Network | None = None
    ) -> None:
        self.peer, self._inbound, self._outbound = peer, inbound, outbound
        self._line = Line(network) if network else None
        self._arrivals = select.poll()
        self._arrivals.register(inbound, select.POLLIN)
        self.bytes_sent = self.bytes_received = self.rounds = 0

    def send(self, data: bytes | memoryview) -> None:
        """Send one message."""
        self.rounds += 1
        self._send(data)

    def receive(self, size: int | None = None) -> memoryview:
        """Receive one message, of `size` bytes if that is known.

        Raises:
            ProtocolError: The peer is gone, silent for longer than the time limit, or sends another size.
        """
        self.rounds += 1
        return self._receive(size)

    def exchange(self, data: bytes | memoryview, size: int | None = None) -> memoryview:
        """Send one message and receive another, at the same time: one round."""
        return self.start_exchange(data)(size)

    def start_exchange(self, data: bytes | memoryview) -> Callable[[int | None], memoryview]:
        """Send one message; what is returned receives another, of a known size or any, in the same round."""
        self.rounds += 1
        if len(data) <= _SMALL or self._inbound is self._outbound:
            self._send(data)
            return self._receive
        failures: list[ProtocolError] = []
        sender = threading.Thread(target=self._send_or_note, args=(data, failures), daemon=True)
        sender.start()

        def receive(size: int | None) -> memoryview:
            received = self._receive(size)
            sender.join()
            if failures:
                raise failures[0]
            return received

        return receive

    def send_words(self, values: Integers) -> None:
        """Send an int64 array as one message."""
        self.send(as_bytes(values))

    def receive_words(self, shape: Sequence[int]) -> Integers:
        """Receive an int64 array of a known shape."""
        return np.frombuffer(self.receive(8 * math.prod(shape)), dtype=np.int64).reshape(tuple(shape))

    def exchange_words(self, values: Integers) -> Integers:
        """Send an int64 array and receive one of the same shape, in one round."""
        data = as_bytes(values)
        return np.frombuffer(self.exchange(data, len(data)), dtype=np.int64).reshape(values.shape)

    def has_message(self) -> bool:
        """Whether something has come that was not received yet, or the peer is gone."""
        return bool(self._inbound.pending() or self._arrivals.poll(0))

    def wait_forever(self) -> None:
        """Set no time limit for the peer: it may have nothing to say for hours."""
        self._inbound.settimeout(None)

    def fall_asleep_at_once(self) -> None:
        """Do not look for a message before waiting for it: the peer needs this core."""
        self._awake_s = 0.0

    def close(self) -> None:
        """Close the connections; a peer that waits is told so at once."""
        for connection in (self._inbound, self._outbound):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _send_or_note(self, data: bytes | memoryview, failures: list[ProtocolError]) -> None:
        try:
            self._send(data)
        except ProtocolError as error:
            failures.append(error)

    def _send(self, data: bytes | memoryview) -> None:
        try:
            header = struct.pack("<Q", len(data)) + (self._line.stamp() if self._line else b"")
            if len(data) <= _SMALL:
                self._outbound.sendall(header + bytes(data))
            else:
                self._outbound.sendall(header)
                self._outbound.sendall(data)
        except OSError as error:
            raise self._lost(error) from error
        self.bytes_sent += HEADER_BYTES + len(data)

    def _receive(self, size: int | None) -> memoryview:
        head = HEADER_BYTES + (STAMP_BYTES if self._line else 0)
        buffer = memoryview(bytearray(head + (size or 0)))
        there = self._read(buffer, 0, head)  # a small message comes with its header
        (length,) = struct.unpack_from("<Q", buffer)
        if length != size and (size is not None or length > _LONGEST_UNSIZED):
            raise lost(self.peer, f"sent {length} bytes where {size} were due")
        received = buffer[head:]
        if size is None:
            there, received = head, memoryview(bytearray(length))
        self._read(received, there - head, length)
        self.bytes_received += HEADER_BYTES + length
        if self._line:
            self._line.wait(buffer[HEADER_BYTES:head], HEADER_BYTES + length)
        return received

    def _read(self, buffer: memoryview, there: int, wanted: int) -> int:
        """Fill a buffer until it holds so many bytes, or more; returns how many."""
        try:
            while there < wanted:
                asleep = time.perf_counter() + self._awake_s
                while not self.has_message() and time.perf_counter() < asleep:
                    os.sched_yield()  # whoever has no core gets this one
                got = self._inbound.recv_into(buffer[there:])
                if not got:
                    raise lost(self.peer, "closed the connection")
                there += got
        except OSError as error:
            raise self._lost(error) from error
        return there

    def _lost(self, error: OSError) -> ProtocolError:
        if isinstance(error, TimeoutError):
            return lost(self.peer, f"was silent for {self._inbound.gettimeout():g} s")
        return lost(self.peer, "closed the connection")


def exchange_all(channels: Sequence[Channel], data: bytes | memoryview, size: int | None = None) -> list[memoryview]:
    """Send one message to each of several peers and receive another from each, all at the same time: one round.

    Raises:
        ProtocolError: A peer is gone, silent, or sends another size.
    """
    return [receive(size) for receive in [channel.start_exchange(data) for channel in channels]]


class Gate:
    """Makes this party's connections: it listens for some peers and calls others.

    Args:
        identity: This party's key and certificate.
        peers: Certificates (PEM) of the peers, by name.
        timeout: Seconds to wait for a peer, at connection and at every later message.
        listen: Where to listen; any free port of this machine by default.

    Raises:
        ProtocolError: It can't listen there.
    """

    def __init__(
        self, identity: Identity, peers: Mapping[str, bytes], timeout: float, listen: Address = (HOST, 0)
    ) -> None:
        self._identity, self._timeout = identity, timeout
        self._names = {ssl.PEM_cert_to_DER_cert(pem.decode()): name for name, pem in peers.items()}
        self._waiting: dict[str, list[ssl.SSLSocket]] = {name: [] for name in peers}
        self._trusted = b"".join(peers.values()).decode()
        try:
            self._listener = socket.create_server(listen)
        except OSError as error:
            raise _deaf(listen, error) from error
        self._listener.settimeout(timeout)

    @property
    def port(self) -> int:
        """The port that it listens at."""
        return int(self._listener.getsockname()[1])

    def accept(self, peer: str) -> ssl.SSLSocket:
        """Wait until `peer` calls; other peers are kept for later, strangers turned away."""
        context = self._context(ssl.PROTOCOL_TLS_SERVER)
        while not self._waiting[peer]:
            try:
                raw, _ = self._listener.accept()
            except OSError as error:
                raise lost(peer, "did not connect") from error
            caller, connection = self._handshake(raw, context)
            if connection is not None:
                self._waiting[caller].append(connection)
        return self._waiting[peer].pop(0)

    def call(self, peer: str, address: Address) -> ssl.SSLSocket:
        """Call `peer` until it listens: it may have been started later."""
        raw = self._dial(peer, address)
        found, connection = self._handshake(raw, self._context(ssl.PROTOCOL_TLS_CLIENT))
        if connection is None or found != peer:
            raise lost(peer, "does not hold the certificate that is pinned for it")
        return connection

    def wait_forever(self) -> None:
        """Set no time limit for the next caller."""
        self._listener.settimeout(None)

    def close(self) -> None:
        """Stop listening, and hang up on whoever called once too often."""
        self._listener.close()
        for connection in (connection for waiting in self._waiting.values() for connection in waiting):
            connection.close()

    def _dial(self, peer: str, address: Address) -> socket.socket:
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                return socket.create_connection(address, max(_RETRY, deadline - time.monotonic()))
            except OSError as error:
                if time.monotonic() + _RETRY > deadline:
                    raise lost(peer, f"does not listen at {address[0]}:{address[1]}") from error
            time.sleep(_RETRY)

    def _handshake(self, raw: socket.socket, context: ssl.SSLContext) -> tuple[str, ssl.SSLSocket | None]:
        """Name of the peer at the other end, and the connection; no connection if it is a stranger."""
        raw.settimeout(min(self._timeout, _LONGEST_HANDSHAKE))
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            connection = context.wrap_socket(raw, server_side=context.protocol == ssl.PROTOCOL_TLS_SERVER)
        except OSError:
            raw.close()
            return "", None
        connection.settimeout(self._timeout)
        name = self._names.get(connection.getpeercert(binary_form=True) or b"", "")
        if name:
            return name, connection
        connection.close()
        return "", None

    def _context(self, role: int) -> ssl.SSLContext:
        context = ssl.SSLContext(role)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # the pinned certificate is the identity, whatever its address
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=self._trusted)
        if role == ssl.PROTOCOL_TLS_SERVER:
            context.num_tickets = 0  # nobody resumes a session, and a connection used one way must not be written to
        # The ssl module reads keys from files only: a private one, gone before anybody connects.
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "identity.pem")
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(self._identity.key + self._identity.certificate)
            context.load_cert_chain(path)
        return context
