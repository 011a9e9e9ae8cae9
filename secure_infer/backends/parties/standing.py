"""Roles that are started on their own, on hosts of their own: what each must be told, and how it finds the others.

A session lasts until one of its processes fails. The others notice at once, or at the next sign of life, and all
connect anew; so whoever runs a role starts it again and again, and nobody has to start the roles in any order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secure_infer.backends.parties.channel import HOST, Address, Channel, Gate, Identity
from secure_infer.backends.parties.process import Deal, connect
from secure_infer.backends.parties.seam import DEALER_NAME, LONGEST_RUN, PARTY_NAMES, Half, Setup
from secure_infer.backends.parties.worker import START_SECONDS, Worker
from secure_infer.errors import Problem, ProtocolError, UsageError
from secure_infer.wire.frame import Frame

_MARGIN = 10.0


@dataclass(frozen=True)
class Seat:
    """One role, and all it knows of the others.

    Attributes:
        role: "party 0", "party 1", "party 2" or "dealer".
        identity: Its key and certificate.
        peers: Certificates (PEM) of the other roles, which are pinned.
        addresses: Where the roles listen that it calls: parties of lower numbers, and the dealer.
        listen: Where it listens; the party of the highest number is never called, and listens nowhere in particular.
        folder: Where it keeps what has to outlive its process, for protocols that have such.
        ahead: Inferences for which a party keeps correlations in stock; what the model says if None.
        without_dealer: Whether a party does without the dealer, on what it has in stock.
        parties: How many parties there are.
        dealer: Whether there is a dealer at all.

    Raises:
        UsageError: A certificate or an address is missing.
    """

    role: str
    identity: Identity
    peers: Mapping[str, bytes]
    addresses: Mapping[str, Address] = field(default_factory=dict)
    listen: Address = ("127.0.0.1", 0)
    folder: Path | None = None
    ahead: int | None = None
    without_dealer: bool = False
    parties: int = 2
    dealer: bool = True

    def __post_init__(self) -> None:
        others = {*PARTY_NAMES[: self.parties], *([DEALER_NAME] if self.dealer else [])} - {self.role}
        problems = [
            Problem(name, "Its certificate is not known here.", "copy it into the folder of pinned certificates.")
            for name in sorted(others - set(self.peers))
        ]
        problems += [
            Problem(name, "Its address is not known here.", "name it in the environment or in protocol.toml.")
            for name in self.calls
            if name not in self.addresses
        ]
        if problems:
            raise UsageError(f"The {self.role} can't be started.", problems)

    @property
    def calls(self) -> tuple[str, ...]:
        """Whom it calls."""
        if self.role == DEALER_NAME:
            return ()
        lower = PARTY_NAMES[: PARTY_NAMES.index(self.role)]
        return (*lower, DEALER_NAME) if self.dealer and not self.without_dealer else lower

    @property
    def is_called(self) -> bool:
        """Whether others call it."""
        return self.role != PARTY_NAMES[self.parties - 1]


class Link:
    """A party's process, connected to its peers, with its model loaded.

    Args:
        seat: Which party, and who the others are.
        half: The party's half of the model.
        threads: For its libraries.
        started: Called with the process as soon as there is one, so that somebody else may end it.

    Raises:
        ProtocolError: It does not connect.
        UsageError: It was to do without the dealer, and can't.
    """

    def __init__(self, seat: Seat, half: Half, threads: int, started: Callable[[Worker], None]) -> None:
        if seat.without_dealer and not half.setup.stocked:
            problem = Problem(seat.role, "This protocol keeps no stock of correlations.", "start it with the dealer.")
            raise UsageError("This protocol can't do without the dealer.", [problem])
        self._timeout = half.setup.timeout
        self._worker = Worker(seat.role, threads, half.setup.module)
        started(self._worker)
        try:
            self._start(seat, half.setup, threads)
            self.call("load", parts=half.parts, limits=LONGEST_RUN)
        except BaseException:
            self.close()
            raise

    def call(
        self, verb: str, meta: Mapping[str, Any] | None = None, parts: Sequence[bytes] = (), limits: float = 1.5
    ) -> Frame:
        """The answer to a command, which may take `limits` times the time limit of one message.

        Raises:
            SecureInferError: What the process met, or its end.
        """
        self._worker.send(verb, meta, parts)
        return self._worker.receive(limits * self._timeout + _MARGIN)

    def run(self, share: bytes) -> Frame:
        """The answer to a share that the other parties run as well."""
        self._worker.pass_on(share)
        return self._worker.receive(LONGEST_RUN * self._timeout + _MARGIN)

    def close(self) -> None:
        """End the process."""
        self._worker.end()

    def _start(self, seat: Seat, setup: Setup, threads: int) -> None:
        meta = {
            "role": seat.role,
            "parties": seat.parties,
            "peers": list(seat.peers),
            "timeout": setup.timeout,
            "settings": {**setup.settings, "folder": seat.folder and str(seat.folder), "ahead": seat.ahead},
            "threads": threads,
            "listen": seat.listen if seat.is_called else (HOST, 0),
        }
        self._worker.send("start", meta, [seat.identity.key, seat.identity.certificate, *seat.peers.values()])
        self._worker.receive(START_SECONDS)
        self._worker.send("connect", {"addresses": {name: seat.addresses[name] for name in seat.calls}})
        self._worker.receive(START_SECONDS + 3 * setup.timeout)


def deal_once(seat: Seat, timeout: float, deal: Deal, ready: Callable[[], None]) -> ProtocolError:
    """Be the dealer for one session: wait for all parties however long it takes, then deal until party 0 is gone.

    Args:
        seat: The dealer's.
        timeout: Seconds that a message may take.
        deal: The protocol's dealer.
        ready: Called when all are connected.

    Returns:
        How the session ended.

    Raises:
        ProtocolError: It can't listen.
    """
    gate = Gate(seat.identity, seat.peers, timeout, seat.listen)
    gate.wait_forever()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(gate))
        try:
            channels: dict[str, Channel] = connect(DEALER_NAME, gate, {}, seat.parties)
            for channel in channels.values():
                stack.callback(channel.close)
            deal(channels, ready, seat.folder)
        except ProtocolError as error:
            return error
