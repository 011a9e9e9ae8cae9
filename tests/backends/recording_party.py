"""A party of `mpc` that keeps what it is told during runs: `python -m tests.backends.recording_party`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from secure_infer.backends.mpc.party import CrypTenParty, deal
from secure_infer.backends.parties import process
from secure_infer.backends.parties.channel import Channel
from secure_infer.backends.parties.party import Answer, Party
from secure_infer.graph.types import Integers
from secure_infer.wire.frame import Frame


class RecordingParty(CrypTenParty):
    """Writes what each other party sends: files `WHEN-SENDER-RECEIVER` in a folder, WHEN "load" or "0", "1" by run."""

    def __init__(self, rank: int, peers: Mapping[int, Channel], dealer: Channel | None, folder: Path) -> None:
        super().__init__(rank, peers, dealer, 1)
        self._folder, self._when, self._runs = folder, "", 0
        for number, peer in peers.items():
            self._listen(number, peer)

    def _listen(self, number: int, peer: Channel) -> None:
        receive = peer._receive

        def heard(size: int | None) -> memoryview:
            message = receive(size)
            if self._when:
                with (self._folder / f"{self._when}-{number}-{self._rank}").open("ab") as file:
                    file.write(message)
            return message

        setattr(peer, "_receive", heard)  # noqa: B010 - a channel has no hook for this

    def load(self, command: Frame) -> Answer:
        """Record what is told while a model is loaded."""
        self._when = "load"
        answer = super().load(command)
        self._when = ""
        return answer

    def _evaluate(self, share: Integers) -> Integers:
        self._when = str(self._runs)
        result = super()._evaluate(share)
        self._when, self._runs = "", self._runs + 1
        return result


def sit(
    rank: int, peers: Mapping[int, Channel], dealer: Channel | None, threads: int, settings: Mapping[str, Any]
) -> Party:
    """A party, once it is connected."""
    return RecordingParty(rank, peers, dealer, Path(settings["folder"]))


if __name__ == "__main__":
    process.main(sit, deal)
