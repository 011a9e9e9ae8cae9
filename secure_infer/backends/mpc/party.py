"""The process of one party or of the dealer: `python -m secure_infer.backends.mpc.party`, driven through its pipes.

Commands come in on standard input, answers go out on standard output, each a frame behind its length (8 bytes, little
endian). Whatever a library prints goes to standard error. The process ends when its standard input does.

    start    {role, peers, timeout, provider, threads, listen}; key, certificate, peers' certificates   ->  {port}
    connect  {addresses}                                                                        ->  {}
    load     {}; plan [, graph.json, weights.safetensors at party 0]                            ->  {}
    run      {}; a share                                   ->  {rounds, bytes_sent, seconds, cpu_seconds}; a share
    measure  {}                                                         ->  {primitive: seconds}
    propose  {names}                                                    ->  {chosen}        party 0, see `meeting`
    hear     {}                                                         ->  {names}         party 1
    choose   {chosen}                                                   ->  {}              party 1
"""

from __future__ import annotations

import hashlib
import os
import select
import struct
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn, cast

from secure_infer.backends.mpc import meeting, messages
from secure_infer.backends.mpc.channel import HOST, Address, Channel, Gate, Identity, lost
from secure_infer.backends.mpc.dealer import Dealer, serve
from secure_infer.backends.mpc.messages import HANDSHAKE_BYTES, HEADER_BYTES, QUERY, REPLY, Share
from secure_infer.backends.mpc.plan import FIRST_PARTY, Plan
from secure_infer.backends.mpc.randomness import KEY_BYTES, Stream, fresh_key, install
from secure_infer.errors import Problem, ProtocolError, SecureInferError
from secure_infer.graph import store
from secure_infer.graph.types import Integers
from secure_infer.wire import frame
from secure_infer.wire.frame import Frame

if TYPE_CHECKING:
    from secure_infer.backends.mpc.correlations import Source
    from secure_infer.backends.mpc.evaluate import Evaluator
    from secure_infer.backends.mpc.protocols import Protocols

PARTY_NAMES = ("party 0", "party 1")
DEALER_NAME = "dealer"
COMMAND, ANSWER, FAILURE = "mpc-command", "mpc-answer", "mpc-failure"
_STALE_QUERIES = 1000
_NONCE_BYTES = 16


def write_frame(pipe: BinaryIO, data: bytes) -> None:
    """Write a frame behind its length."""
    pipe.write(struct.pack("<Q", len(data)) + data)
    pipe.flush()


def read_frame(pipe: BinaryIO) -> bytes:
    """Read a frame that `write_frame` wrote; empty at the end of the pipe."""
    header = pipe.read(8)
    return pipe.read(struct.unpack("<Q", header)[0]) if len(header) == 8 else b""


class Party:
    """Party 0 or 1, once it is connected."""

    def __init__(self, rank: int, peer: Channel, dealer: Channel | None, threads: int) -> None:
        self._rank, self._peer = rank, peer
        self._channels = [peer, dealer] if dealer else [peer]
        self._source: Source | None = None
        self._protocols = self._start(dealer, threads)
        self._evaluator: Evaluator | None = None

    def load(self, command: Frame) -> tuple[Mapping[str, Any], list[bytes]]:
        """Take in a plan, and the weights if this is party 0; both parties must be given the same plan."""
        from secure_infer.backends.mpc.evaluate import Evaluator

        plan = Plan.from_bytes(command.parts[0])
        graph = store.from_bytes(command.parts[1], command.parts[2]) if self._rank == 0 else None
        digest = hashlib.sha256(command.parts[0]).digest()
        if self._peer.exchange(digest, len(digest)) != digest:
            raise ProtocolError(
                "The two halves belong to different models.",
                [Problem("servers", "The parties were given different plans.", "use the halves of one bundle.")],
            )
        if self._source:
            self._source.forget()
        self._evaluator = Evaluator(plan, graph, self._protocols)
        return {}, []

    def run(self, command: Frame) -> tuple[Mapping[str, Any], list[bytes]]:
        """Evaluate the loaded plan on a share of a batch."""
        if self._evaluator is None:
            raise ProtocolError("No model is loaded.")
        plan = self._evaluator.plan
        share = messages.unpack(command.parts[0], QUERY, plan.model, self._rank, plan.input_shape)
        run = self._meet(share)
        started, burnt = time.perf_counter(), time.process_time()
        rounds, sent = self._peer.rounds - 1, self._peer.bytes_sent - HEADER_BYTES - HANDSHAKE_BYTES
        try:
            result = self._evaluate(share.values)
        except Exception:
            # In the middle of a protocol nobody can tell where the other party is, so this session is over.
            self.close()
            raise
        statistics = {
            "rounds": self._peer.rounds - rounds,
            "bytes_sent": self._peer.bytes_sent - sent,
            "seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - burnt,
        }
        return statistics, [Share(share.model, share.session, self._rank, result, run).pack(REPLY)]

    def _evaluate(self, share: Integers) -> Integers:
        evaluator = cast("Evaluator", self._evaluator)
        if self._source:
            self._source.begin(share.shape)
        result = self._protocols.refresh(evaluator.run(share))
        if self._source:
            self._source.end(share.shape)
        return result

    def close(self) -> None:
        """Close the channels; peers that wait are told so at once."""
        for channel in self._channels:
            channel.close()

    def measure(self, command: Frame) -> tuple[Mapping[str, Any], list[bytes]]:
        """Time one of each primitive."""
        return self._protocols.measure(), []

    def propose(self, command: Frame) -> tuple[Mapping[str, Any], list[bytes]]:
        """Party 0: propose queries to party 1; without any, make sure that the dealer is there as well."""
        names = command.meta["names"]
        if self._source and not names:
            self._source.ping()
        return {"chosen": meeting.propose(self._peer, names)}, []

    def hear(self, command: Frame) -> tuple[Mapping[str, Any], list[bytes]]:
        """Party 1: wait for a proposal."""
        return {"names": meeting.hear(self._peer)}, []

    def choose(self, command: Frame) -> tuple[Mapping[str, Any], list[bytes]]:
        """Party 1: answer a proposal."""
        meeting.choose(self._peer, command.meta["chosen"])
        return {}, []

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

    def _start(self, dealer: Channel | None, threads: int) -> Protocols:
        """Import the libraries, agree on keys with the peers, and take over CrypTen's randomness and communication."""
        warnings.simplefilter("ignore")
        import crypten
        import torch

        from secure_infer.backends.mpc.correlations import Correlations, RemoteDealer
        from secure_infer.backends.mpc.protocols import Communicator, Protocols

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        following = fresh_key()
        previous = bytes(self._peer.exchange(following, KEY_BYTES))
        if dealer is None:
            key = self._first_party_key()
        else:
            key = bytes(dealer.receive(KEY_BYTES))
            self._source = RemoteDealer(dealer) if self._rank == 0 else None
        install(crypten.generators, previous, following)
        correlations = Correlations(Stream(key), self._source)
        communicator = Communicator(self._rank, self._peer)
        crypten.communicator.get = lambda: communicator
        crypten.mpc.get_default_provider = lambda: correlations
        # A plain object in place of CrypTen's configuration, whose every access costs ten microseconds and more.
        settings = SimpleNamespace(
            encoder=SimpleNamespace(precision_bits=0), mpc=SimpleNamespace(active_security=False, protocol="beaver")
        )
        for module in (crypten.encoder, crypten.mpc.primitives.beaver, crypten.mpc.primitives.arithmetic):
            module.cfg = settings
        return Protocols(self._rank, self._peer, correlations)

    def _first_party_key(self) -> bytes:
        """Without a dealer party 0 deals, and so knows everything: for development only."""
        from secure_infer.backends.mpc.correlations import LocalDealer

        if self._rank == 1:
            return bytes(self._peer.receive(KEY_BYTES))
        mine, other = fresh_key(), fresh_key()
        self._source = LocalDealer(Dealer([Stream(mine), Stream(other)]))
        self._peer.send(other)
        return mine


def connect(role: str, gate: Gate, addresses: Mapping[str, Address]) -> dict[str, Channel]:
    """Connect: party 0 listens for party 1, on a connection for each direction; the dealer listens for both."""
    channels = {}
    first, second = PARTY_NAMES
    if role == first:
        inbound, outbound = gate.accept(second), gate.accept(second)
        channels[second] = Channel(second, inbound, outbound)
    elif role == second:
        outbound, inbound = gate.call(first, addresses[first]), gate.call(first, addresses[first])
        channels[first] = Channel(first, inbound, outbound)
    if role == DEALER_NAME:
        for name in PARTY_NAMES:
            connection = gate.accept(name)
            channels[name] = Channel(name, connection, connection)
    elif DEALER_NAME in addresses:
        connection = gate.call(DEALER_NAME, addresses[DEALER_NAME])
        channels[DEALER_NAME] = Channel(DEALER_NAME, connection, connection)
    gate.close()
    return channels


def deal(channels: Mapping[str, Channel], ready: Callable[[], None]) -> NoReturn:
    """Be the dealer until party 0 is gone, which is a ProtocolError."""
    keys = {name: fresh_key() for name in PARTY_NAMES}
    for name, key in keys.items():
        channels[name].send(key)
    ready()
    channels[PARTY_NAMES[0]].wait_forever()
    serve(Dealer([Stream(keys[name]) for name in PARTY_NAMES]), channels[PARTY_NAMES[0]])


def _answer(party: Party, command: Frame) -> bytes:
    """The answer to a command, or the failure it met."""
    verbs = {"load": party.load, "run": party.run, "measure": party.measure}
    verbs |= {"propose": party.propose, "hear": party.hear, "choose": party.choose}
    try:
        meta, parts = verbs[command.meta["verb"]](command)
        return frame.pack(ANSWER, parts, meta)
    except SecureInferError as error:
        return failure(error)
    except Exception as error:
        return failure(ProtocolError(f"The party failed: {type(error).__name__}: {error}."))


def failure(error: SecureInferError) -> bytes:
    """An error as a frame."""
    problems = [[problem.where, problem.what, problem.fix] for problem in error.problems]
    return frame.pack(FAILURE, [], {"type": type(error).__name__, "summary": error.summary, "problems": problems})


def _end_with_parent() -> None:
    """End this process when nobody holds the other end of its input, whatever it is waiting for."""
    poll = select.poll()
    poll.register(0, 0)  # a hang-up is always reported
    poll.poll()
    os._exit(0)


def main() -> None:
    """Serve one role until standard input ends."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    commands, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    start = frame.unpack(read_frame(commands), COMMAND)
    meta, (key, certificate, *others) = start.meta, start.parts
    peers = dict(zip(meta["peers"], others, strict=True))
    role, threads = meta["role"], meta["threads"]
    try:
        gate = Gate(Identity(key, certificate), peers, meta["timeout"], tuple(meta.get("listen", (HOST, 0))))
        write_frame(answers, frame.pack(ANSWER, [], {"port": gate.port}))
        given = frame.unpack(read_frame(commands), COMMAND).meta["addresses"]
        channels = connect(role, gate, {name: (host, port) for name, (host, port) in given.items()})
        if role == DEALER_NAME:
            deal(channels, lambda: write_frame(answers, frame.pack(ANSWER, [])))
        rank = PARTY_NAMES.index(role)
        dealer = None if meta["provider"] == FIRST_PARTY else channels[DEALER_NAME]
        party = Party(rank, channels[PARTY_NAMES[1 - rank]], dealer, threads)
    except SecureInferError as error:
        write_frame(answers, failure(error))
        return
    write_frame(answers, frame.pack(ANSWER, []))
    while data := read_frame(commands):
        write_frame(answers, _answer(party, frame.unpack(data, COMMAND)))


if __name__ == "__main__":
    main()
