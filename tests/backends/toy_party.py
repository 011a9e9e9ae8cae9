"""The least protocol of the seam: `python -m tests.backends.toy_party`; shares are doubled and hidden, nobody deals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from secure_infer.backends.parties import process
from secure_infer.backends.parties.channel import Channel, as_bytes, exchange_all
from secure_infer.backends.parties.party import Answer, Party
from secure_infer.backends.parties.streams import Stream, fresh_key
from secure_infer.graph.types import Integers, Shape
from secure_infer.wire.frame import Frame


class ToyParty(Party):
    """A party that can only double."""

    _plan = b""

    def load(self, command: Frame) -> Answer:
        """Take in a plan: the name of a model of five numbers."""
        self._agree(command.parts[0])
        self._plan = command.parts[0]
        return self.loaded(), []

    def _primitives(self) -> Mapping[str, float]:
        return {}

    def _model(self) -> tuple[str, Shape]:
        return self._plan.decode(), (5,)

    def _evaluate(self, share: Integers) -> Integers:
        mask = Stream(fresh_key()).words(share.shape)
        told = exchange_all(self._others, as_bytes(mask), 8 * mask.size)
        parts = [np.frombuffer(part, np.int64).reshape(share.shape) for part in told]
        return np.asarray(2 * share + len(parts) * mask - sum(parts, np.zeros_like(mask)))


def sit(
    rank: int, peers: Mapping[int, Channel], dealer: Channel | None, threads: int, settings: Mapping[str, Any]
) -> Party:
    """A party, once it is connected."""
    assert dealer is None
    assert sorted({rank, *peers}) == list(range(len(peers) + 1))
    return ToyParty(rank, peers, dealer)


def deal(*ignored: object) -> NoReturn:
    """Nobody deals."""
    raise NotImplementedError


if __name__ == "__main__":
    process.main(sit, deal)
