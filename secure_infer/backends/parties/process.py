"""The process of one role, driven through its pipes; a protocol's own module adds the party and the dealer.

Commands come in on standard input, answers go out on standard output, each a frame behind its length (8 bytes, little
endian). Whatever a library prints goes to standard error. The process ends when its standard input does.

    start    {role, parties, peers, timeout, threads, listen, network, crowded, settings}; key, certificate, those of
             the peers                                                                  ->  {port}
    connect  {addresses}                                                                ->  {}
    load     {}; the parts of the party's half                                          ->  {model, input_shape}
    a share, as the client sent it                         ->  {rounds, bytes_sent, seconds, cpu_seconds}; a share
    measure  {}                                                         ->  {primitive: seconds}
    ping     {}                                                         ->  {}
    propose  {names, refused}                                           ->  {chosen, refused}   party 0, see `meeting`
    hear     {}                                                         ->  {names, refused}    every other party
    choose   {waiting, refused}                                         ->  {chosen, refused}   every other party
"""

from __future__ import annotations

import gc
import os
import select
import struct
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from secure_infer.backends.parties.channel import HOST, Address, Channel, Gate, Identity
from secure_infer.backends.parties.messages import QUERY
from secure_infer.backends.parties.network import LOOPBACK, NETWORKS, Network
from secure_infer.backends.parties.party import Party
from secure_infer.backends.parties.seam import DEALER_NAME, PARTY_NAMES
from secure_infer.errors import ProtocolError, SecureInferError
from secure_infer.wire import frame
from secure_infer.wire.frame import Frame

COMMAND, ANSWER, FAILURE = "mpc-command", "mpc-answer", "mpc-failure"

Sit = Callable[[int, Mapping[int, Channel], Channel | None, int, Mapping[str, Any]], Party]
"""Makes a party from its number, its channels to the other parties (by number) and to the dealer, its threads and its
settings."""
Deal = Callable[[Mapping[str, Channel], Callable[[], None], Path | None], NoReturn]
"""Is the dealer; see `seam.SeveralParties.deal`."""


def write_frame(pipe: BinaryIO, data: bytes) -> None:
    """Write a frame behind its length."""
    pipe.write(struct.pack("<Q", len(data)) + data)
    pipe.flush()


def read_frame(pipe: BinaryIO) -> bytes:
    """Read a frame that `write_frame` wrote; empty at the end of the pipe."""
    header = pipe.read(8)
    return pipe.read(struct.unpack("<Q", header)[0]) if len(header) == 8 else b""


def connect(
    role: str, gate: Gate, addresses: Mapping[str, Address], parties: int, network: Network | None = None
) -> dict[str, Channel]:
    """Connect: a party calls those of lower numbers and listens for those of higher ones; the dealer listens for all.

    Parties have a connection for each direction. Channels come in the order of parties, the dealer's last.
    """
    channels: dict[str, Channel] = {}
    names = PARTY_NAMES[:parties]
    if role == DEALER_NAME:
        for name in names:
            connection = gate.accept(name)
            channels[name] = Channel(name, connection, connection, network)
        gate.close()
        return channels
    mine = names.index(role)
    for name in names[:mine]:
        outbound, inbound = gate.call(name, addresses[name]), gate.call(name, addresses[name])
        channels[name] = Channel(name, inbound, outbound, network)
    for name in names[mine + 1 :]:
        inbound, outbound = gate.accept(name), gate.accept(name)
        channels[name] = Channel(name, inbound, outbound, network)
    if DEALER_NAME in addresses:
        connection = gate.call(DEALER_NAME, addresses[DEALER_NAME])
        channels[DEALER_NAME] = Channel(DEALER_NAME, connection, connection, network)
    gate.close()
    return channels


def failure(error: SecureInferError) -> bytes:
    """An error as a frame."""
    problems = [[problem.where, problem.what, problem.fix] for problem in error.problems]
    return frame.pack(FAILURE, [], {"type": type(error).__name__, "summary": error.summary, "problems": problems})


def _answer(party: Party, command: Frame) -> bytes:
    """The answer to a command, or the failure it met."""
    verbs = {"load": party.load, "measure": party.measure, "ping": party.ping}
    verbs |= {"propose": party.propose, "hear": party.hear, "choose": party.choose}
    try:
        act = party.run if command.kind == QUERY else verbs[command.meta["verb"]]
        meta, parts = act(command)
        return frame.pack(ANSWER, parts, meta)
    except SecureInferError as error:
        return failure(error)
    except Exception as error:
        return failure(ProtocolError(f"The party failed: {type(error).__name__}: {error}."))


def _end_with_parent() -> None:
    """End this process when nobody holds the other end of its input, whatever it is waiting for."""
    poll = select.poll()
    poll.register(0, 0)  # a hang-up is always reported
    poll.poll()
    os._exit(0)


def _commanded() -> bool:
    """Whether a command waits, or nobody will send one any more."""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    return bool(poll.poll(0))


def main(sit: Sit, deal: Deal) -> None:
    """Serve one role until standard input ends."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    commands, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    start = frame.unpack(read_frame(commands), COMMAND)
    meta, (key, certificate, *others) = start.meta, start.parts
    peers, role = dict(zip(meta["peers"], others, strict=True)), meta["role"]
    try:
        gate = Gate(Identity(key, certificate), peers, meta["timeout"], tuple(meta.get("listen", (HOST, 0))))
        write_frame(answers, frame.pack(ANSWER, [], {"port": gate.port}))
        given = frame.unpack(read_frame(commands), COMMAND).meta["addresses"]
        network = NETWORKS[meta.get("network", LOOPBACK)]
        addresses = {name: (host, port) for name, (host, port) in given.items()}
        channels = connect(role, gate, addresses, meta["parties"], network)
        for channel in channels.values() if meta.get("crowded") else ():
            channel.fall_asleep_at_once()
        if role == DEALER_NAME:
            deal(channels, lambda: write_frame(answers, frame.pack(ANSWER, [])), None)
        dealer = channels.pop(DEALER_NAME, None)
        reached = {PARTY_NAMES.index(name): channel for name, channel in channels.items()}
        party = sit(PARTY_NAMES.index(role), reached, dealer, meta["threads"], meta["settings"])
    except SecureInferError as error:
        write_frame(answers, failure(error))
        return
    write_frame(answers, frame.pack(ANSWER, []))
    gc.freeze()  # what was imported stays: no query has to wait while it is looked through
    while data := read_frame(commands):
        write_frame(answers, _answer(party, frame.unpack(data, None)))
        party.idle()
        for _ in party.spare():
            if _commanded():
                break
