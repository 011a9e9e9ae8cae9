"""One of several parties, once it is connected: what every protocol's party does alike."""

from __future__ import annotations

import hashlib
import os
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from secure_infer.backends.parties import meeting, messages
from secure_infer.backends.parties.channel import Channel, exchange_all, lost
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
    """One party.

    Args:
        rank: Its number.
        peers: The channels to the other parties, by number.
        dealer: The channel to the dealer, if there is one.
    """

    def __init__(self, rank: int, peers: Mapping[int, Channel], dealer: Channel | None) -> None:
        self._rank, self._peers, self._dealer = rank, dict(sorted(peers.items())), dealer
        self._others = tuple(self._peers.values())

    meeting_rounds, meeting_bytes = 1, HEADER_BYTES + HANDSHAKE_BYTES
    """What `_meet` costs with each other party; a run's statistics hold it."""

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
        dealt = self._dealer.bytes_received if self._dealer else 0
        run = self._meet(share)
        started, burnt = time.perf_counter(), time.process_time()
        rounds, sent, received = self._counted()
        meeting = self.meeting_bytes * len(self._others)
        try:
            result = self._evaluate(share.values)
        except Exception:
            # In the middle of a protocol nobody can tell where the other parties are, so this session is over.
            self.close()
            raise
        more_rounds, more_sent, more_received = self._counted()
        sent, received = more_sent - sent + meeting, more_received - received + meeting
        counted = {
            "rounds": more_rounds - rounds + self.meeting_rounds,
            "bytes_sent": sent,
            "bytes_between_parties": sent + received,
            "bytes_from_dealer": (self._dealer.bytes_received if self._dealer else 0) - dealt,
            "seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - burnt,
            **self._more(),
        }
        return counted, [Share(share.model, share.session, self._rank, result, run).pack(REPLY)]

    def propose(self, command: Frame) -> Answer:
        """Party 0: propose queries to the others; without any, make sure that everybody else is there as well."""
        names: Sequence[str] = command.meta["names"]
        if not names:
            self._look_after()
        chosen, refused = meeting.propose(self._others, names, command.meta.get("refused", ()))
        return {"chosen": chosen, "refused": refused}, []

    def hear(self, command: Frame) -> Answer:
        """Every other party: wait for a proposal."""
        for _ in self.spare():
            if self._others[0].has_message():
                break
        names, refused = meeting.hear(self._others[0])
        return {"names": names, "refused": refused}, []

    def choose(self, command: Frame) -> Answer:
        """Every other party: answer a proposal with the queries that wait here too, in order."""
        waiting, refused = command.meta["waiting"], command.meta.get("refused", ())
        chosen, theirs = meeting.choose(self._others[0], waiting, refused, len(self._others))
        return {"chosen": chosen, "refused": theirs}, []

    def close(self) -> None:
        """Close the channels; peers that wait are told so at once."""
        for channel in (*self._others, *([self._dealer] if self._dealer else [])):
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

    def _counted(self) -> tuple[int, int, int]:
        """So far: the most rounds with another party, and bytes sent to and received from all others."""
        rounds = max(channel.rounds for channel in self._others)
        return rounds, sum(each.bytes_sent for each in self._others), sum(each.bytes_received for each in self._others)

    def _round_trip(self) -> float:
        """Seconds for a message to all others and one back, the median of some after pauses, as before a query."""
        taken = []
        for _ in range(PINGS):
            if self._rank == 0:
                time.sleep(PAUSE_S)
                started = time.perf_counter()
                for peer in self._others:
                    peer.send(_PING)
                for peer in self._others:
                    peer.receive(len(_PING))
                taken.append(time.perf_counter() - started)
            else:
                self._others[0].receive(len(_PING))
                self._others[0].send(_PING)
        return statistics.median(taken) if taken else 0.0

    def _agree(self, plan: bytes) -> None:
        """Make sure that the other parties load the same plan."""
        digest = hashlib.sha256(plan).digest()
        if any(theirs != digest for theirs in exchange_all(self._others, digest, len(digest))):
            raise different_models()

    def _meet(self, share: Share) -> str:
        """Make sure that the other parties work on the same query; queries that they gave up are skipped.

        Returns:
            A name for the run, of all parties' making.
        """
        session, nonce = bytes.fromhex(share.session), os.urandom(_NONCE_BYTES)
        mine = session + hashlib.sha256(repr(share.values.shape).encode()).digest()
        nonces = {self._rank: nonce}
        told = exchange_all(self._others, mine + nonce, HANDSHAKE_BYTES)
        for (rank, peer), first in zip(self._peers.items(), told, strict=True):
            theirs = bytes(first)
            for _ in range(_STALE_QUERIES):
                if theirs[:16] == session:
                    break
                theirs = bytes(peer.receive(HANDSHAKE_BYTES))
            if theirs[: len(mine)] != mine:
                raise lost(peer.peer, "was given a share of another shape for this query")
            nonces[rank] = theirs[len(mine) :]
        return hashlib.sha256(b"".join(nonces[rank] for rank in sorted(nonces))).hexdigest()[:32]


def different_models() -> ProtocolError:
    """The error for parties that were given plans that differ."""
    return ProtocolError(
        "The halves belong to different models.",
        [Problem("servers", "The parties were given different plans.", "use the halves of one bundle.")],
    )
