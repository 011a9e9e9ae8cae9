"""One owner's process: `python -m secure_infer.backends.mpc.training.party`; the dealer is that of `mpc`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from secure_infer.backends.mpc.party import CrypTenParty, deal
from secure_infer.backends.mpc.training.learn import half, step
from secure_infer.backends.mpc.training.task import Task, Weights
from secure_infer.backends.parties import process
from secure_infer.backends.parties.channel import Channel
from secure_infer.backends.parties.party import Answer
from secure_infer.errors import ProtocolError
from secure_infer.graph.types import Integers
from secure_infer.wire.frame import Frame

if TYPE_CHECKING:
    from secure_infer.backends.mpc.protocols import Protocols


class Shared:
    """Numbers as this party's shares."""

    def __init__(self, protocols: Protocols) -> None:
        self._protocols = protocols

    def product(self, x: Integers, y: Integers) -> Integers:
        """The product of matrices."""
        return self._protocols.matrix_product(x, y)

    def times(self, x: Integers, y: Integers) -> Integers:
        """The product element by element."""
        return self._protocols.multiply(x, y)

    def rounded(self, x: Integers, places: int) -> Integers:
        """The integer nearest to `x / 2**places`; the greater of two."""
        if not places:
            return x
        return self._protocols.shift(x + half(places) if self._protocols.rank == 0 else x, places)

    def positive(self, x: Integers) -> Integers:
        """One where `x >= 0`, else zero."""
        negative = self._protocols.negative(x, 64)
        return 1 - negative if self._protocols.rank == 0 else -negative


class Owner(CrypTenParty):
    """Party 0 or 1, which has samples of its own."""

    _task: Task | None = None

    def __init__(self, rank: int, peers: Mapping[int, Channel], dealer: Channel | None, threads: int) -> None:
        super().__init__(rank, peers, dealer, threads)
        (self._peer,) = peers.values()

    def load(self, command: Frame) -> Answer:
        """Take in the task and this owner's samples, and tell the other owner how many there are."""
        self._task = Task.from_bytes(command.parts[0])
        self._agree(command.parts[0])
        sizes = self._task.sizes
        features, labels = (np.frombuffer(part, dtype="<i8") for part in command.parts[1:])
        self._x, self._y = features.reshape(-1, sizes[0]), labels.reshape(-1, sizes[-1])
        (theirs,) = self._peer.exchange_words(np.array([len(self._x)], dtype=np.int64))
        self._counts = (len(self._x), int(theirs)) if self._rank == 0 else (int(theirs), len(self._x))
        return {}, []

    def run(self, command: Frame) -> Answer:
        """Train; both owners get the weights."""
        if self._task is None:
            raise ProtocolError("No task is loaded.")
        started, rounds = time.perf_counter(), self._peer.rounds
        sent, received = self._peer.bytes_sent, self._peer.bytes_received
        try:
            weights = self._train(self._task)
        except Exception:
            self.close()
            raise
        statistics = {
            "rounds": self._peer.rounds - rounds,
            "bytes_between_parties": self._peer.bytes_sent - sent + self._peer.bytes_received - received,
            "seconds": time.perf_counter() - started,
        }
        flat = np.concatenate([part.reshape(-1) for part in weights])
        return statistics, [flat.astype("<i8").tobytes()]

    def _train(self, task: Task) -> Weights:
        x, y = self._shared(self._x), self._shared(self._y)
        first = task.first_weights()
        weights = [part if self._rank == 0 else np.zeros_like(part) for part in first]
        ring = Shared(self._protocols)
        for chosen in task.batches(len(x)):
            if self._source:
                self._source.begin("step")
            weights = step(ring, task, weights, x[chosen], y[chosen])
            if self._source:
                self._source.end("step")
        return [self._opened(self._protocols.refresh(part)) for part in weights]

    def _opened(self, share: Integers) -> Integers:
        return share + self._peer.exchange_words(share)

    def _shared(self, mine: Integers) -> Integers:
        """Shares of both owners' rows, those of party 0 first: one's own rows, hidden by a sharing of zero."""
        start = 0 if self._rank == 0 else self._counts[0]
        rows = np.zeros((sum(self._counts), mine.shape[1]), dtype=np.int64)
        rows[start : start + len(mine)] = mine
        return self._protocols.refresh(rows)


def sit(
    rank: int, peers: Mapping[int, Channel], dealer: Channel | None, threads: int, settings: Mapping[str, Any]
) -> Owner:
    """An owner, once it is connected."""
    return Owner(rank, peers, dealer, threads)


if __name__ == "__main__":
    process.main(sit, deal)
