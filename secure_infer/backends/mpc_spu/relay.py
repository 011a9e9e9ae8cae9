"""Carries SPU's own connections over our channels: mutually authenticated TLS, pinned, counted, on no other port.

SPU's transport (brpc) encrypts on request, but a server of it answers whoever calls without TLS as well. So it listens
at a Unix socket in a folder that only this process' user can enter and that is gone once all are connected; what it
sends to a peer goes through the channel to that peer, among our own messages.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from secure_infer.backends.parties.channel import Channel, lost
from secure_infer.errors import ProtocolError

OWN, PART, CALLS, ANSWERS = b"\0", b"\1", b"\2", b"\3"
"""What a message holds, by its first byte: one of ours or its last part, an earlier part of one, what the sender's SPU
says as a caller, or as one called."""
_PIECE = 1 << 18
_RETRY = 0.02
_HEAD = 12
"""Bytes of what precedes a message of brpc; the second four of them say how many follow it."""


class Trunk(Channel):
    """A channel that carries SPU's connections to and from its peer besides our own messages.

    Its rounds are our own and the calls that the peer's SPU makes.

    Args:
        channel: What it takes over; nobody else may use it any more.
        here: Socket of this party's SPU, which the peer's is connected to.
        there: Socket to be made, that stands for the peer's SPU.
        failed: Told when the peer is gone.
    """

    _awake_s = 0.0  # SPU has more threads than there are cores

    def __init__(self, channel: Channel, here: Path, there: Path, failed: Callable[[ProtocolError], None]) -> None:
        vars(self).update(vars(channel))
        self._here, self._failed, self._turn = here, failed, threading.Lock()
        self._own: queue.SimpleQueue[bytes | ProtocolError] = queue.SimpleQueue()
        self._local: dict[bytes, socket.socket] = {}
        self._rest, self._skipped = b"", 0
        self._seconds = self._inbound.gettimeout()
        self._inbound.settimeout(None)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(there))
        self._listener.listen()
        for work in (self._call, self._deliver):
            threading.Thread(target=work, daemon=True).start()

    def has_message(self) -> bool:
        """Whether a message of ours waits, or the peer is gone."""
        return not self._own.empty()

    def wait_forever(self) -> None:
        """Set no time limit for the peer."""
        self._seconds = None

    def close(self) -> None:
        """Close the connections, those to our SPU too."""
        super().close()
        for local in (self._listener, *self._local.values()):
            with contextlib.suppress(OSError):
                local.shutdown(socket.SHUT_RDWR)
            local.close()

    def _send(self, data: bytes | memoryview) -> None:
        *first, last = (data[place : place + _PIECE] for place in range(0, max(1, len(data)), _PIECE))
        with self._turn:
            for piece in first:
                super()._send(PART + bytes(piece))
            super()._send(OWN + bytes(last))

    def _receive(self, size: int | None) -> memoryview:
        try:
            found = self._own.get(timeout=self._seconds)
        except queue.Empty as error:
            raise lost(self.peer, f"was silent for {self._seconds:g} s") from error
        if isinstance(found, ProtocolError):
            self._own.put(found)  # for whoever asks next
            raise found
        if size not in (None, len(found)):
            raise lost(self.peer, f"sent {len(found)} bytes where {size} were due")
        return memoryview(found)

    def _call(self) -> None:
        """Carry what our SPU says as a caller of the peer's."""
        with contextlib.suppress(OSError):  # it was closed before our SPU called
            self._local[ANSWERS], _ = self._listener.accept()
            self._listener.close()
            self._carry(self._local[ANSWERS], CALLS)

    def _carry(self, local: socket.socket, kind: bytes) -> None:
        try:
            while data := local.recv(_PIECE):
                with self._turn:
                    super()._send(kind + data)
        except (OSError, ProtocolError):
            return  # whoever reads from the peer says why

    def _deliver(self) -> None:
        """Hand out all that comes from the peer, until it is gone."""
        parts = b""
        try:
            while True:
                data = bytes(super()._receive(None))
                kind, content = data[:1], data[1:]
                if kind == PART:
                    parts += content
                elif kind == OWN:
                    self._own.put(parts + content)
                    parts = b""
                else:
                    self.rounds += self._begun(content) if kind == CALLS else 0
                    self._spu(kind).sendall(content)
        except OSError:
            error = lost(self.peer, "sent something to an SPU that has ended")
        except ProtocolError as found:
            error = found
        self._own.put(error)
        self._failed(error)

    def _begun(self, data: bytes) -> int:
        """How many more messages of brpc have begun with this piece of them."""
        data, found = self._rest + data, 0
        place = self._skipped
        while place + _HEAD <= len(data):
            place += _HEAD + int.from_bytes(data[place + 4 : place + 8], "big")
            found += 1
        self._rest, self._skipped = data[place:], max(0, place - len(data))
        return found

    def _spu(self, kind: bytes) -> socket.socket:
        """The connection of our SPU that takes what comes as `kind`; the first call of the peer's makes one."""
        if kind == CALLS and kind not in self._local:
            connection = socket.socket(socket.AF_UNIX)
            while connection.connect_ex(str(self._here)):
                time.sleep(_RETRY)  # it does not listen yet
            self._local[kind] = connection
            threading.Thread(target=self._carry, args=(connection, ANSWERS), daemon=True).start()
        if kind not in self._local:
            raise lost(self.peer, "sent something else than a message")
        return self._local[kind]
