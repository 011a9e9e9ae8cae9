"""Both servers and the dealer in this process, on a pair of sockets: the engine without its processes and its TLS."""

from __future__ import annotations

import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from secure_infer.backends.mpc_fss.dealing import Dealing, greetings
from secure_infer.backends.mpc_fss.evaluate import Evaluator
from secure_infer.backends.mpc_fss.lower import Fusing, lower
from secure_infer.backends.mpc_fss.plan import Plan
from secure_infer.backends.mpc_fss.secrets import masked, masks, shares, split
from secure_infer.backends.mpc_fss.wire import Wire
from secure_infer.backends.parties.channel import Channel
from secure_infer.backends.parties.messages import HEADER_BYTES
from secure_infer.graph import Graph

TAG = b"t" * 32


class Pipe:
    """What a wire asks of a channel; everything that arrives is kept, as this party's view."""

    peer = "other"

    def __init__(self, end: socket.socket) -> None:
        self.end, self.rounds, self.bytes_sent, self.seen = end, 0, 0, bytearray()

    def send(self, data: Any) -> None:
        self.rounds += 1
        self._send(data)

    def receive(self, size: int) -> bytearray:
        self.rounds += 1
        return self._receive(size)

    def exchange(self, data: Any, size: int) -> bytearray:
        self.rounds += 1
        sender = threading.Thread(target=self._send, args=(data,))
        sender.start()
        received = self._receive(size)
        sender.join()
        return received

    def _send(self, data: Any) -> None:
        self.bytes_sent += HEADER_BYTES + len(data)
        self.end.sendall(data)

    def _receive(self, size: int) -> bytearray:
        found = bytearray()
        while len(found) < size:
            found += self.end.recv(size - len(found))
        self.seen += found
        return found


@dataclass
class Ran:
    """A run: outputs, the plan, and what each party's channel counted and saw."""

    outputs: np.ndarray
    plan: Plan
    pipes: list[Pipe]


class Engine:
    """A network, set up at both parties."""

    def __init__(self, graph: Graph, mode: str, fuse: int = 0) -> None:
        lowered = lower(graph, "0" * 32, mode, 60.0, 4, Fusing(fuse))
        self.plan = lowered.plan
        both = greetings(os.urandom(32), self.plan.to_bytes())
        halves = [shares(self.plan, party, half) for party, half in enumerate(split(lowered))]
        hidden = [masks(self.plan, party, greeting.masks) for party, greeting in enumerate(both)]
        said = [masked(self.plan, half, mask) for half, mask in zip(halves, hidden, strict=True)]
        self.dealing = Dealing(self.plan, both)
        self.parties = [Evaluator(self.plan, party, halves[party], both[party], said[1 - party]) for party in (0, 1)]

    def run(self, x: np.ndarray, foreseen: bool = False) -> Ran:
        lots = self.dealing.lot(len(x))
        material = [party.prepare(lot) for party, lot in zip(self.parties, lots, strict=True)]
        if foreseen:
            for party, arrays in zip(self.parties, material, strict=True):
                for piece in list(party.foresee(arrays)):
                    arrays.update(piece())
                assert not list(party.foresee(arrays))
        mask = np.frombuffer(os.urandom(8 * x.size), np.int64).reshape(x.shape)
        ends = socket.socketpair()
        pipes = [Pipe(end) for end in ends]
        inputs = (mask, x - mask)
        with ThreadPoolExecutor(2) as threads:
            runs = [
                threads.submit(self.parties[i].run, inputs[i], material[i], Wire(cast(Channel, pipes[i]), TAG))
                for i in (0, 1)
            ]
            total = runs[0].result() + runs[1].result()
        for end in ends:
            end.close()
        spare = 64 - self.plan.rings[self.plan.output]
        return Ran((total << spare) >> spare, self.plan, pipes)
