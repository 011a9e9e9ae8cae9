"""A party's side of the dealer, as a provider that CrypTen's protocols draw Beaver triples from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from crypten.mpc.primitives import ArithmeticSharedTensor, BinarySharedTensor

from secure_infer.backends.mpc.dealer import Dealer
from secure_infer.backends.parties.channel import Channel
from secure_infer.backends.parties.streams import Stream
from secure_infer.graph.types import Integers

Request = dict[str, Any]
_SCHEDULES_KEPT = 32
_NOTHING: Integers = np.empty(0, dtype=np.int64)


class Source(Protocol):
    """Where party 0 gets the last part of each correlation from."""

    def begin(self, program: object) -> None:
        """Announce a run of `program`: any hashable that determines all requests."""
        ...

    def end(self, program: object) -> None:
        """The run of `program` is over."""
        ...

    def forget(self) -> None:
        """Drop the masks of a model that is unloaded."""
        ...

    def ping(self) -> None:
        """Make sure that the dealer is there."""
        ...

    def ask(self, request: Request, size: Sequence[int] | None) -> Integers:
        """The answer to a request, of shape `size`; an empty array if `size` is None, as there is no answer."""
        ...


class RemoteDealer:
    """Party 0's line to the dealer's process.

    The first run of a program asks for one correlation at a time and notes the requests; later runs of the same program
    send the whole list at once, so that the dealer works ahead and no more time goes into asking.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._schedules: dict[object, list[Request]] = {}
        self._requests: list[Request] = []
        self._ahead = False

    def begin(self, program: object) -> None:
        """Send the whole list of requests, if it is known."""
        self._requests = []
        self._ahead = program in self._schedules
        if self._ahead:
            self._send(self._schedules[program])

    def end(self, program: object) -> None:
        """Keep the list of requests for next time."""
        if not self._ahead:
            if len(self._schedules) >= _SCHEDULES_KEPT:
                self._schedules.clear()
            self._schedules[program] = self._requests
        self._ahead = False

    def forget(self) -> None:
        """Drop masks and schedules."""
        self._schedules.clear()
        self._send([{"kind": "forget"}])

    def ping(self) -> None:
        """Ask for a sign of life."""
        self._send([{"kind": "ping"}])
        self._channel.receive_words((1,))

    def ask(self, request: Request, size: Sequence[int] | None) -> Integers:
        """The dealer's answer, asked for now or ahead."""
        if not self._ahead:
            self._requests.append(request)
            self._send([request])
        return _NOTHING if size is None else self._channel.receive_words(size)

    def _send(self, requests: Sequence[Request]) -> None:
        self._channel.send(json.dumps(requests).encode())


class LocalDealer:
    """Party 0 as its own dealer: insecure, for development on one's own data only."""

    def __init__(self, dealer: Dealer) -> None:
        self._dealer = dealer

    def begin(self, program: object) -> None:
        """Nothing to announce."""

    def end(self, program: object) -> None:
        """Nothing to keep."""

    def forget(self) -> None:
        """Drop masks."""
        self._dealer.answer({"kind": "forget"})

    def ping(self) -> None:
        """It is here."""

    def ask(self, request: Request, size: Sequence[int] | None) -> Integers:
        """The answer, made here."""
        answer = self._dealer.answer(request)
        return _NOTHING if answer is None else answer


class Correlations:
    """What CrypTen calls a provider: all parties call the same methods with the same sizes in the same order.

    Args:
        stream: The stream that this party shares with the dealer.
        source: Party 0's way to the dealer; None at the others, which are never sent anything.
    """

    def __init__(self, stream: Stream, source: Source | None) -> None:
        self._stream, self._source = stream, source

    def generate_binary_triple(self, size0: torch.Size, size1: torch.Size, device: object = None) -> tuple[Any, ...]:
        """Binary shares of a, b and a & b; called by CrypTen."""
        return tuple(BinarySharedTensor.from_shares(part) for part in self._triple("and", size0, size1))

    def generate_additive_triple(
        self, size0: torch.Size, size1: torch.Size, op: str, device: object = None, **ignored: Any
    ) -> tuple[Any, ...]:
        """Additive shares of a, b and their element-wise product; called by CrypTen. Weights have `product` instead."""
        if op != "mul":
            raise NotImplementedError(f"{op} of two shared tensors is not used here.")
        parts = self._triple("mul", size0, size1)
        return tuple(ArithmeticSharedTensor.from_shares(part, precision=0) for part in parts)

    def matrix_triple(self, size0: Sequence[int], size1: Sequence[int]) -> tuple[Integers, Integers, Integers]:
        """Additive shares of matrices a, b and their product."""
        a, b = self._stream.words(size0), self._stream.words(size1)
        request = {"kind": "matmul", "sizes": [list(size0), list(size1)]}
        return a, b, self._completed(request, (size0[0], size1[1]))

    def own_triple(self, size: Sequence[int]) -> tuple[Integers, Integers]:
        """This party's mask, and binary shares of the XOR of the ANDs of all pairs of parties' masks."""
        mask = self._stream.words(size)
        return mask, self._completed({"kind": "own and", "size": list(size)}, size)

    def bits(self, size: Sequence[int]) -> tuple[Integers, npt.NDArray[np.uint8]]:
        """Shares of uniform bits: additive ones and binary ones."""
        binary = self._stream.bits(size)
        return self._completed({"kind": "bit", "size": list(size)}, size), binary

    def mask(self, name: str, size: Sequence[int]) -> Integers:
        """The mask B of a weight, which the dealer keeps; for party 0 alone."""
        if self._source:
            self._source.ask({"kind": "mask", "name": name, "size": list(size)}, None)
        return self._stream.words(size)

    def product(
        self, name: str, spec: Mapping[str, Any], size: Sequence[int], result: Sequence[int]
    ) -> tuple[Integers, Integers]:
        """This party's mask (empty at party 0), and a share of `spec(a, B)`, a the sum of all masks."""
        a = _NOTHING if self._source else self._stream.words(size)
        request = {"kind": "product", "name": name, "spec": dict(spec), "size": list(size)}
        return a, self._completed(request, result)

    def _triple(self, kind: str, size0: Sequence[int], size1: Sequence[int]) -> tuple[torch.Tensor, ...]:
        a, b = self._stream.words(size0), self._stream.words(size1)
        request = {"kind": kind, "sizes": [list(size0), list(size1)]}
        c = self._completed(request, np.broadcast_shapes(tuple(size0), tuple(size1)))
        return torch.from_numpy(a), torch.from_numpy(b), torch.from_numpy(c)

    def _completed(self, request: Request, size: Sequence[int]) -> Integers:
        return self._source.ask(request, size) if self._source else self._stream.words(size)
