"""The trusted dealer: makes correlated randomness from streams it shares with each party; it sees shapes, never data.

Each party draws its part of every correlation from its own stream, so the dealer sends one thing only: the part of
party 0 that completes the correlation. Requests are JSON, answers raw int64; both streams advance in the same order.

    request                                          party 0   party i > 0   relation, with sums over all parties
    {"kind": "and", "sizes": [s, t]}                 a0 b0 c0  ai bi ci      (xor of a) & (xor of b) = xor of c
    {"kind": "own and", "size": s}                   a0 c0     ai ci         xor of aj & ak over all pairs = xor of c
    {"kind": "mul", "sizes": [s, t]}                 a0 b0 c0  ai bi ci      (sum of a) * (sum of b) = sum of c
    {"kind": "matmul", "sizes": [s, t]}              a0 b0 c0  ai bi ci      (sum of a) @ (sum of b) = sum of c
    {"kind": "bit", "size": s}                       r0 c0     ri ci         xor of r = sum of c, bits
    {"kind": "mask", "name", "size": s}              B         -             kept under its name; nothing is sent
    {"kind": "product", "name", "spec", "size": s}   c0        ai ci         spec(sum of a, B) = sum of c
    {"kind": "forget"}                               -         -             all masks are dropped
    {"kind": "ping"}                                 0         -             a sign of life
"""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import combinations
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from secure_infer.backends.mpc.kernels import bilinear, matmul
from secure_infer.backends.parties.channel import Channel
from secure_infer.backends.parties.streams import Stream
from secure_infer.graph.types import Integers


class Dealer:
    """Answers requests from the streams it shares with the parties, that of party 0 first."""

    def __init__(self, streams: Sequence[Stream]) -> None:
        self._streams = tuple(streams)
        self._masks: dict[str, Integers] = {}

    def answer(self, request: Mapping[str, Any]) -> Integers | None:
        """Party 0's last part of a correlation; None where there is nothing to send."""
        first, *others = self._streams
        match request["kind"]:
            case "and":
                a, b = (_xor(_drawn(self._streams, size)) for size in request["sizes"])
                return _xor([a & b, *_drawn(others, (a & b).shape)])
            case "own and":
                masks = _drawn(self._streams, request["size"])
                return _xor([pairwise_and(masks), *_drawn(others, request["size"])])
            case "mul":
                a, b = (_sum(_drawn(self._streams, size)) for size in request["sizes"])
                return _rest(a * b, others)
            case "matmul":
                a, b = (_sum(_drawn(self._streams, size)) for size in request["sizes"])
                return _rest(matmul(a, b), others)
            case "bit":
                bits = _xor([stream.bits(request["size"]) for stream in self._streams])
                return _rest(bits, others)
            case "product":
                a = _sum(_drawn(others, request["size"]))
                return _rest(bilinear(request["spec"], a, self._masks[request["name"]]), others)
            case "mask":
                self._masks[request["name"]] = first.words(request["size"])
            case "forget":
                self._masks.clear()
            case "ping":
                return np.zeros(1, dtype=np.int64)
        return None


def pairwise_and(words: Sequence[Integers]) -> Integers:
    """The XOR of the ANDs of all pairs: of two words their AND, of three the majority of each bit."""
    return _xor([one & other for one, other in combinations(words, 2)])


def _drawn(streams: Sequence[Stream], size: Sequence[int]) -> list[Integers]:
    return [stream.words(size) for stream in streams]


def _sum(parts: Sequence[Integers]) -> Integers:
    return np.asarray(reduce(operator.add, parts))


def _xor(parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return np.asarray(reduce(operator.xor, parts))


def _rest(total: npt.NDArray[Any], others: Sequence[Stream]) -> Integers:
    """What party 0 has to add to the other parties' parts."""
    return np.asarray(reduce(operator.sub, _drawn(others, total.shape), total))


def serve(dealer: Dealer, party: Channel) -> NoReturn:
    """Answer lists of requests until the channel fails; does not return otherwise.

    Raises:
        ProtocolError: Party 0 is gone, which is how a session ends.
    """
    while True:
        for request in json.loads(bytes(party.receive())):
            answer = dealer.answer(request)
            if answer is not None:
                party.send_words(answer)
