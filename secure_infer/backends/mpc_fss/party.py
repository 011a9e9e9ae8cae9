"""One server, and the dealer: `python -m secure_infer.backends.mpc_fss.party`; see `parties.process`.

Party 0 asks the dealer: `plan` and the plan, which names the model; `deal` and a number of items; `ping`. The dealer
answers both parties, each with its own part; a ping is answered to party 0 alone. Party 1 sends the digest of its plan.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from secure_infer import files
from secure_infer.backends.mpc_fss.dealing import GREETING_BYTES, Dealing, Greeting, greetings, lot_size
from secure_infer.backends.mpc_fss.evaluate import Evaluator
from secure_infer.backends.mpc_fss.generator import Generator
from secure_infer.backends.mpc_fss.plan import Plan
from secure_infer.backends.mpc_fss.ring import Factor
from secure_infer.backends.mpc_fss.secrets import masked, masked_bytes, masks, shares
from secure_infer.backends.mpc_fss.stock import Span, Stock, as_spans, describe, known_greeting
from secure_infer.backends.mpc_fss.wire import Wire
from secure_infer.backends.parties import process
from secure_infer.backends.parties.channel import Channel, lost
from secure_infer.backends.parties.messages import Share
from secure_infer.backends.parties.party import Answer, Party, different_models
from secure_infer.backends.parties.streams import KEY_BYTES, fresh_key
from secure_infer.errors import Problem, ProtocolError, UsageError
from secure_infer.graph.types import Integers, Shape
from secure_infer.wire.frame import Frame

_PLAN, _DEAL, _PING = b"plan", b"deal", b"ping"
_PONG = b"pong"
_STOCKS, _MASTER = "stock", "dealer.key"
_REFILL = 8  # items that are dealt at once, between runs
_LARGEST_STOCK = 1 << 28  # bytes to keep ahead for batches larger than the stock was meant for


class FssParty(Party):
    """Party 0 or 1.

    Args:
        rank: 0 or 1.
        peers: The channel to the other party, by its number.
        dealer: The channel to the dealer; None if this party does without it, on its stock.
        folder: Where its stock is kept; None for memory alone.
        ahead: Inferences to keep in stock; what the plan says if None.

    Raises:
        ProtocolError: Neither a dealer nor a stock.
    """

    meeting_rounds = meeting_bytes = 0

    def __init__(
        self,
        rank: int,
        peers: Mapping[int, Channel],
        dealer: Channel | None,
        folder: Path | None = None,
        ahead: int | None = None,
    ) -> None:
        super().__init__(rank, peers, dealer)
        (self._peer,) = peers.values()
        self._folder, self._ahead = folder, ahead
        self._evaluator: Evaluator | None = None
        self._stock: Stock | None = None
        self._trouble: ProtocolError | None = None
        self._tag, self._items = b"", list[Span]()
        self._wanted = self._due = 0
        self._ended = self._between = 0.0
        if dealer is None:
            self._trouble = ProtocolError("It was started without one.")

    def load(self, command: Frame) -> Answer:
        """Take in a plan and this party's share of the secrets; agree with the other party, and stock up."""
        plan = Plan.from_bytes(command.parts[0])
        mine = shares(plan, self._rank, command.parts[1])
        self._agree(command.parts[0])
        greeting = self._greet(command.parts[0])
        said = masked(plan, mine, masks(plan, self._rank, greeting.masks))
        theirs = bytes(self._peer.exchange(said, masked_bytes(plan)))
        self._evaluator = Evaluator(plan, self._rank, mine, greeting, theirs)
        size = self._evaluator.layout.item_bytes(self._rank)
        self._stock = Stock(self._evaluator.prepare, size, self._place(command.parts[0]), greeting.pack())
        self._reconcile(self._stock, greeting.epoch.hex())
        self._wanted = self._ahead or plan.ahead
        self._due = self._wanted - self._stock.count
        self.idle()
        return self.loaded(), []

    def _primitives(self) -> Mapping[str, float]:
        return _primitives()

    def idle(self) -> None:
        """Have dealt what a run has used, and prepare the next item."""
        if self._stock is None:
            return
        due, self._due = self._due, 0  # both parties get here with the same number, once after each run
        if due > 0 and self._trouble is None:
            self._try_to_deal(due)
        self._stock.ready()

    def spare(self) -> Iterator[None]:
        """Evaluate what the next run's comparisons have in common whatever its input, step by step."""
        item = self._stock.following() if self._stock else None
        if self._stock is None or self._evaluator is None or item is None:
            return
        for piece in self._evaluator.foresee(item):
            yield
            self._stock.add_to_following(piece())

    def _model(self) -> tuple[str, Shape]:
        if self._evaluator is None:
            raise ProtocolError("No model is loaded.")
        return self._evaluator.plan.model, self._evaluator.plan.input_shape

    def _meet(self, share: Share) -> str:
        """Choose the items of the run; the first message of the run says whether the other party chose the same."""
        assert self._stock is not None
        self._between = time.process_time() - self._ended
        self._stock_up(self._stock, len(share.values))
        shape = repr((share.session, share.values.shape, self._stock.next, self._stock.spans[:1]))
        self._tag = hashlib.sha256(shape.encode()).digest()
        return hashlib.sha256(self._tag).hexdigest()[:32]

    def _evaluate(self, share: Integers) -> Integers:
        assert self._stock is not None and self._evaluator is not None
        self._items, material = self._stock.take(len(share))
        room = _LARGEST_STOCK // self._evaluator.layout.item_bytes(1)
        self._wanted = max(self._wanted, min(len(share), room))  # the next batch may be as large
        self._due = min(self._wanted - self._stock.count, max(_REFILL, len(share)))
        self._due = self._due if self._due >= min(_REFILL, self._wanted) else 0
        return self._evaluator.run(share, material, Wire(self._peer, self._tag))

    def _more(self) -> Mapping[str, float]:
        self._ended, used = time.process_time(), sum(count for _, count in self._items)
        return {"first_item": self._items[0][0], "items": used, "cpu_ms_before": 1000 * self._between}

    def _look_after(self) -> None:
        """Party 0: make sure that the dealer is there, unless there is enough in stock without it."""
        if self._dealer is not None and self._trouble is None:
            try:
                self._dealer.send(_PING)
                self._dealer.receive(len(_PONG))
            except ProtocolError as error:
                self._trouble = error
                if self._stock is None or not self._stock.count:
                    raise

    def _place(self, plan: bytes) -> Path | None:
        """Where the stock for a plan is kept."""
        return self._folder / _STOCKS / hashlib.sha256(plan).hexdigest()[:32] if self._folder else None

    def _greet(self, plan: bytes) -> Greeting:
        if self._dealer is None:
            place = self._place(plan)
            known = known_greeting(place) if place else None
            if known is None or len(known) != GREETING_BYTES:
                raise _exhausted(1, 0, self._trouble)
            return Greeting.unpack(known)
        self._dealer.send(_PLAN + plan if self._rank == 0 else hashlib.sha256(plan).digest())
        return Greeting.unpack(bytes(self._dealer.receive(GREETING_BYTES)))

    def _reconcile(self, stock: Stock, epoch: str) -> None:
        """Agree with the other party on what both have, dealt under the same masks."""
        mine = {**describe(stock), "epoch": epoch}
        try:
            theirs = json.loads(bytes(self._peer.exchange(json.dumps(mine).encode())))
            if theirs["epoch"] != epoch:
                raise _different_dealers()
            stock.agree(int(theirs["next"]), as_spans(theirs["spans"]))
        except (ValueError, KeyError, TypeError) as error:
            raise lost(self._peer.peer, "sent something else than what it has in stock") from error

    def _stock_up(self, stock: Stock, count: int) -> None:
        """Make sure that there are so many items, dealing more if there is a dealer."""
        if stock.count < count and self._trouble is None:
            self._try_to_deal(count - stock.count)
        if stock.count < count:
            self.close()
            raise _exhausted(count, stock.count, self._trouble)

    def _try_to_deal(self, count: int) -> None:
        try:
            self._deal(count)
        except ProtocolError as error:
            self._trouble = error

    def _deal(self, count: int) -> None:
        """Have so many items dealt, in lots that fit memory."""
        assert self._stock is not None and self._evaluator is not None and self._dealer is not None
        layout, end = self._evaluator.layout, self._stock.end + count
        while self._stock.end < end:
            first = self._stock.end
            items = lot_size(layout, end - first)
            if self._rank == 0:
                self._dealer.send(_DEAL + struct.pack("<Q", items))
            self._stock.add(first, self._dealer.receive(items * layout.item_bytes(self._rank)))


def deal(channels: Mapping[str, Channel], ready: Callable[[], None], folder: Path | None = None) -> NoReturn:
    """Be the dealer until a party is gone, which is a ProtocolError."""
    first, second = channels.values()
    ready()
    for channel in (first, second):
        channel.wait_forever()
    master, dealing = _master(folder), None
    while True:
        verb, rest = _split(first.receive())
        if verb == _PLAN:
            if bytes(second.receive(KEY_BYTES)) != hashlib.sha256(rest).digest():
                raise different_models()
            both = greetings(master, rest)
            dealing = Dealing(Plan.from_bytes(rest), both)
            for channel, greeting in zip((first, second), both, strict=True):
                channel.send(greeting.pack())
        elif verb == _DEAL and dealing is not None and len(rest) == 8:
            lots = dealing.lot(lot_size(dealing.layout, struct.unpack("<Q", rest)[0]))
            for channel, lot in zip((first, second), lots, strict=True):
                channel.send(lot)
        elif verb == _PING:
            first.send(_PONG)
        else:
            raise lost(first.peer, "asked for something that is not dealt")


def _master(folder: Path | None) -> bytes:
    """The key that lasting masks are derived from: one that is kept, so that stocks outlive a session."""
    if folder is None:
        return fresh_key()
    path = folder / _MASTER
    if not path.exists():
        files.write(path, fresh_key(), mode=files.PRIVATE)
    key = files.read(path)
    if len(key) != KEY_BYTES:
        problem = Problem(str(path), f"Expected {KEY_BYTES} bytes.", "delete it; parties throw their stocks away then.")
        raise UsageError("The dealer's key is damaged.", [problem])
    return key


def _split(message: memoryview) -> tuple[bytes, bytes]:
    return bytes(message[: len(_PLAN)]), bytes(message[len(_PLAN) :])


def _different_dealers() -> ProtocolError:
    problem = Problem("stock", "The parties' stocks fit different masks.", "start both with one dealer once more.")
    return ProtocolError("The parties have their stocks from different dealers.", [problem])


def _exhausted(wanted: int, left: int, cause: ProtocolError | None) -> ProtocolError:
    why = f" The dealer does not deal: {cause.summary}" if cause else ""
    return ProtocolError(
        "The stock of correlations is exhausted.",
        [
            Problem(
                "stock",
                f"{wanted} inferences were asked for, and correlations for {left} are left.{why}",
                "start the dealer (`secure-infer party --role dealer`), and both parties without `--without-dealer`: "
                "they have more dealt at once; `--ahead N` keeps N in stock.",
            )
        ],
    )


def _primitives() -> dict[str, float]:
    """Seconds for a block of AES alone, of many, and for a product modulo 2^16, which takes least."""
    count = 1 << 15
    blocks = np.frombuffer(os.urandom(16 * count), np.uint64).reshape(count, 2)
    generator, made = Generator(os.urandom(16)), np.empty_like(blocks)
    square = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    factor = Factor(square)
    return {
        "nodes": _seconds(lambda: generator.expand(blocks, made), 9) / count,
        "multiplications": _seconds(lambda: factor.left(square), 3) / 256**3,
    }


def _seconds(act: Callable[[], object], repeats: int) -> float:
    act()
    start = time.perf_counter()
    for _ in range(repeats):
        act()
    return (time.perf_counter() - start) / repeats


def main() -> None:
    """Serve one role until standard input ends."""

    def sit(
        rank: int, peers: Mapping[int, Channel], dealer: Channel | None, threads: int, settings: Mapping[str, Any]
    ) -> Party:
        folder = settings.get("folder")
        return FssParty(rank, peers, dealer, Path(folder) if folder else None, settings.get("ahead"))

    process.main(sit, deal)


if __name__ == "__main__":
    main()
