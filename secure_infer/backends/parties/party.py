"""One of two parties, once it is connected: what every protocol's party does alike."""

from __future__ import annotations

import hashlib
import os
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from secure_infer.backends.parties import meeting, messages
from secure_infer.backends.parties.channel import Channel, lost
from secure_infer.backends.parties.messages import HANDSHAKE_BYTES, HEADER_BYTES, REPLY, Share
from secure_infer.errors import Problem, ProtocolError
from secure_infer.graph.types import Integers, Shape
from secure_infer.wire.frame import Frame

Answer = tuple[Mapping[str, Any], list[bytes]]
"""Plain JSON values and raw parts."""
_STALE_QUERIES = 1000
_NONCE_BYTES = 16
PAUSE_S = 5e-3
"""Before each message that is timed: a query finds everybody asleep."""
PINGS = 50
_PING = b"ping"


class Party(ABC):
    """Party 0 or 1.

    Args:
        rank: 0 or 1.
        peer: The channel to the other party.
        dealer: The channel to the dealer, if there is one.
    """

    def __init__(self, rank: int, peer: Channel, dealer: Channel | None) -> None:
        self._rank, self._peer = rank, peer
        self._channels = [peer, dealer] if dealer else [peer]

    meeting_rounds, meeting_bytes = 1, HEADER_BYTES + HANDSHAKE_BYTES
    """What `_meet` costs; a run's statistics hold it."""

    @abstractmethod
    def load(self, command: Frame) -> Answer:
        """Take in a model: the parts of this party's half."""

    def measure(self, command: Frame) -> Answer:
        """Time one of each primitive; a round is a message there and back, between parties that were asleep."""
        return {"rounds": self._round_trip(), **self._primitives()}, []

    def ping(self, command: Frame) -> Answer:
        """Answer."""
        return {}, []

    @abstractmethod
    def _primitives(self) -> Mapping[str, float]:
        """Seconds for one of each primitive but a round."""

    @abstractmethod
    def _model(self) -> tuple[str, Shape]:
        """Name and input shape of the loaded model.

        Raises:
            ProtocolError: None is loaded.
        """

    @abstractmethod
    def _evaluate(self, share: Integers) -> Integers:
        """A fresh share of the output from a share of a batch."""

    def loaded(self) -> Mapping[str, Any]:
        """What the answer to `load` says: what shares have to fit."""
        model, input_shape = self._model()
        return {"model": model, "input_shape": list(input_shape)}

    def run(self, command: Frame) -> Answer:
        """Evaluate the loaded model on a share of a batch."""
        model, input_shape = self._model()
        share = messages.checked(command, model, self._rank, input_shape)
        dealt = sum(channel.bytes_received for channel in self._channels[1:])
        run = self._meet(share)
        started, burnt = time.perf_counter(), time.process_time()
        rounds, sent = self._peer.rounds - self.meeting_rounds, self._peer.bytes_sent - self.meeting_bytes
        received = self._peer.bytes_received - HEADER_BYTES - HANDSHAKE_BYTES
        try:
            result = self._evaluate(share.values)
        except Exception:
            # In the middle of a protocol nobody can tell where the other party is, so this session is over.
            self.close()
            raise
        counted = {
            "rounds": self._peer.rounds - rounds,
            "bytes_sent": self._peer.bytes_sent - sent,
            "bytes_between_parties": self._peer.bytes_sent - sent + self._peer.bytes_received - received,
            "bytes_from_dealer": sum(channel.bytes_received for channel in self._channels[1:]) - dealt,
            "seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - burnt,
            **self._more(),
        }
        return counted, [Share(share.model, share.session, self._rank, result, run).pack(REPLY)]

    def propose(self, command: Frame) -> Answer:
        """Party 0: propose queries to party 1; without any, make sure that everybody else is there as well."""
        names: Sequence[str] = command.meta["names"]
        if not names:
            self._look_after()
        chosen, refused = meeting.propose(self._peer, names, command.meta.get("refused", ()))
        return {"chosen": chosen, "refused": refused}, []

    def hear(self, command: Frame) -> Answer:
        """Party 1: wait for a proposal."""
        for _ in self.spare():
            if self._peer.has_message():
                break
        names, refused = meeting.hear(self._peer)
        return {"names": names, "refused": refused}, []

    def choose(self, command: Frame) -> Answer:
        """Party 1: answer a proposal."""
        meeting.choose(self._peer, command.meta["chosen"], command.meta.get("refused", ()))
        return {}, []

    def close(self) -> None:
        """Close the channels; peers that wait are told so at once."""
        for channel in self._channels:
            channel.close()

    def idle(self) -> None:  # noqa: B027 - most protocols have nothing to do
        """After an answer, before the next command: what need not wait for a query."""

    def spare(self) -> Iterator[None]:
        """Work for later runs that need not be done, in pieces of milliseconds; it yields before each."""
        return iter(())

    def _more(self) -> Mapping[str, float]:
        """Further statistics of the run that has just ended."""
        return {}

    def _look_after(self) -> None:  # noqa: B027 - most protocols have nothing to do
        """Party 0, while nothing is asked."""

    def _round_trip(self) -> float:
        """Seconds for a message to the other party and one back, the median of some after pauses, as before a query."""
        taken = []
        for _ in range(PINGS):
            if self._rank == 0:
                time.sleep(PAUSE_S)
                started = time.perf_counter()
                self._peer.send(_PING)
                self._peer.receive(len(_PING))
                taken.append(time.perf_counter() - started)
            else:
                self._peer.receive(len(_PING))
                self._peer.send(_PING)
        return statistics.median(taken) if taken else 0.0

    def _agree(self, plan: bytes) -> None:
        """Make sure that the other party loads the same plan."""
        digest = hashlib.sha256(plan).digest()
        if self._peer.exchange(digest, len(digest)) != digest:
            raise different_models()

    def _meet(self, share: Share) -> str:
        """Make sure that the other party works on the same query; queries that it gave up are skipped.

        Returns:
            A name for the run, of both parties' making.
        """
        session, nonce = bytes.fromhex(share.session), os.urandom(_NONCE_BYTES)
        mine = session + hashlib.sha256(repr(share.values.shape).encode()).digest()
        theirs = bytes(self._peer.exchange(mine + nonce, HANDSHAKE_BYTES))
        for _ in range(_STALE_QUERIES):
            if theirs[:16] == session:
                break
            theirs = bytes(self._peer.receive(HANDSHAKE_BYTES))
        if theirs[: len(mine)] != mine:
            raise lost(self._peer.peer, "was given a share of another shape for this query")
        nonces = (nonce, theirs[len(mine) :])
        return hashlib.sha256(b"".join(nonces if self._rank == 0 else reversed(nonces))).hexdigest()[:32]


def different_models() -> ProtocolError:
    """The error for two parties that were given plans that differ."""
    return ProtocolError(
        "The two halves belong to different models.",
        [Problem("servers", "The parties were given different plans.", "use the halves of one bundle.")],
    )
