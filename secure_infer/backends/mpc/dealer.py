"""The trusted dealer: makes correlated randomness from streams it shares with each party; it sees shapes, never data.

Each party draws its part of every correlation from its own stream, so the dealer sends one thing only: the part of
party 0 that completes the correlation. Requests are JSON, answers raw int64; both streams advance in the same order.

    request                                          party 0   party 1   relation
    {"kind": "and", "sizes": [s, t]}                 a0 b0 c0  a1 b1 c1  (a0^a1) & (b0^b1) = c0^c1
    {"kind": "own and", "size": s}                   a c0      b c1      a & b = c0^c1
    {"kind": "mul", "sizes": [s, t]}                 a0 b0 c0  a1 b1 c1  (a0+a1) * (b0+b1) = c0+c1
    {"kind": "matmul", "sizes": [s, t]}              a0 b0 c0  a1 b1 c1  (a0+a1) @ (b0+b1) = c0+c1
    {"kind": "bit", "size": s}                       r0 c0     r1 c1     r0^r1 = c0+c1, bits
    {"kind": "mask", "name", "size": s}              B         -         kept under its name; nothing is sent
    {"kind": "product", "name", "spec", "size": s}   c0        a c1      spec(a, B) = c0+c1
    {"kind": "forget"}                               -         -         all masks are dropped
    {"kind": "ping"}                                 0         -         a sign of life
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from secure_infer.backends.mpc.kernels import bilinear, matmul
from secure_infer.backends.parties.channel import Channel
from secure_infer.backends.parties.streams import Stream
from secure_infer.graph.types import Integers


class Dealer:
    """Answers requests from the two streams it shares with the parties."""

    def __init__(self, streams: Sequence[Stream]) -> None:
        self._streams = tuple(streams)
        self._masks: dict[str, Integers] = {}

    def answer(self, request: Mapping[str, Any]) -> Integers | None:
        """Party 0's last part of a correlation; None where there is nothing to send."""
        first, second = self._streams
        match request["kind"]:
            case "and":
                a, b = (first.words(size) ^ second.words(size) for size in request["sizes"])
                conjunction = a & b
                return np.asarray(conjunction ^ second.words(conjunction.shape))
            case "own and":
                conjunction = first.words(request["size"]) & second.words(request["size"])
                return np.asarray(conjunction ^ second.words(request["size"]))
            case "mul":
                a, b = (first.words(size) + second.words(size) for size in request["sizes"])
                product = a * b
                return np.asarray(product - second.words(product.shape))
            case "matmul":
                a, b = (first.words(size) + second.words(size) for size in request["sizes"])
                product = matmul(a, b)
                return product - second.words(product.shape)
            case "bit":
                bit = first.bits(request["size"]) ^ second.bits(request["size"])
                return bit - second.words(request["size"])
            case "product":
                a = second.words(request["size"])
                product = bilinear(request["spec"], a, self._masks[request["name"]])
                return product - second.words(product.shape)
            case "mask":
                self._masks[request["name"]] = first.words(request["size"])
            case "forget":
                self._masks.clear()
            case "ping":
                return np.zeros(1, dtype=np.int64)
        return None


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
