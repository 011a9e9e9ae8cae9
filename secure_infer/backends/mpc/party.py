"""One party under CrypTen, and the dealer: `python -m secure_infer.backends.mpc.party`; see `parties.process`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn, cast

from secure_infer.backends.mpc.dealer import Dealer, serve
from secure_infer.backends.mpc.plan import Plan
from secure_infer.backends.mpc.randomness import install
from secure_infer.backends.parties import process
from secure_infer.backends.parties.channel import Channel
from secure_infer.backends.parties.party import Answer, Party
from secure_infer.backends.parties.seam import PARTY_NAMES
from secure_infer.backends.parties.streams import KEY_BYTES, Stream, fresh_key
from secure_infer.errors import ProtocolError
from secure_infer.graph import store
from secure_infer.graph.types import Integers, Shape
from secure_infer.wire.frame import Frame

if TYPE_CHECKING:
    from secure_infer.backends.mpc.correlations import Source
    from secure_infer.backends.mpc.evaluate import Evaluator
    from secure_infer.backends.mpc.protocols import Protocols


class CrypTenParty(Party):
    """Party 0, 1 or 2, with CrypTen's protocols."""

    def __init__(self, rank: int, peers: Mapping[int, Channel], dealer: Channel | None, threads: int) -> None:
        super().__init__(rank, peers, dealer)
        self._source: Source | None = None
        self._protocols = self._start(threads)
        self._evaluator: Evaluator | None = None

    def load(self, command: Frame) -> Answer:
        """Take in a plan, and the weights if this is party 0; all parties must be given the same plan."""
        from secure_infer.backends.mpc.evaluate import Evaluator

        plan = Plan.from_bytes(command.parts[0])
        graph = store.from_bytes(command.parts[1], command.parts[2]) if self._rank == 0 else None
        self._agree(command.parts[0])
        if self._source:
            self._source.forget()
        self._evaluator = Evaluator(plan, graph, self._protocols)
        return self.loaded(), []

    def _primitives(self) -> Mapping[str, float]:
        return self._protocols.measure()

    def _model(self) -> tuple[str, Shape]:
        if self._evaluator is None:
            raise ProtocolError("No model is loaded.")
        return self._evaluator.plan.model, self._evaluator.plan.input_shape

    def _evaluate(self, share: Integers) -> Integers:
        evaluator = cast("Evaluator", self._evaluator)
        if self._source:
            self._source.begin(share.shape)
        result = self._protocols.refresh(evaluator.run(share), evaluator.plan.output_bits)
        if self._source:
            self._source.end(share.shape)
        return result

    def _look_after(self) -> None:
        if self._source:
            self._source.ping()

    def _start(self, threads: int) -> Protocols:
        """Import the libraries, agree on keys with the peers, and take over CrypTen's randomness and communication."""
        warnings.simplefilter("ignore")
        import crypten
        import torch

        from secure_infer.backends.mpc.correlations import Correlations, RemoteDealer
        from secure_infer.backends.mpc.protocols import Communicator, Protocols

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        parties, following = len(self._peers) + 1, fresh_key()
        self._peers[(self._rank + 1) % parties].send(following)
        previous = bytes(self._peers[(self._rank - 1) % parties].receive(KEY_BYTES))
        if self._dealer is None:
            key = self._first_party_key()
        else:
            key = bytes(self._dealer.receive(KEY_BYTES))
            self._source = RemoteDealer(self._dealer) if self._rank == 0 else None
        install(crypten.generators, previous, following)
        correlations = Correlations(Stream(key), self._source)
        communicator = Communicator(self._rank, self._others)
        crypten.communicator.get = lambda: communicator
        crypten.mpc.get_default_provider = lambda: correlations
        # A plain object in place of CrypTen's configuration, whose every access costs ten microseconds and more.
        settings = SimpleNamespace(
            encoder=SimpleNamespace(precision_bits=0), mpc=SimpleNamespace(active_security=False, protocol="beaver")
        )
        for module in (crypten.encoder, crypten.mpc.primitives.beaver, crypten.mpc.primitives.arithmetic):
            module.cfg = settings
        return Protocols(self._rank, self._others, correlations)

    def _first_party_key(self) -> bytes:
        """Without a dealer party 0 deals, and so knows everything: for development only."""
        from secure_infer.backends.mpc.correlations import LocalDealer

        if self._rank > 0:
            return bytes(self._peers[0].receive(KEY_BYTES))
        mine, *others = (fresh_key() for _ in range(len(self._peers) + 1))
        self._source = LocalDealer(Dealer([Stream(key) for key in (mine, *others)]))
        for peer, other in zip(self._others, others, strict=True):
            peer.send(other)
        return mine


def deal(channels: Mapping[str, Channel], ready: Callable[[], None], folder: Path | None = None) -> NoReturn:
    """Be the dealer until party 0 is gone, which is a ProtocolError."""
    keys = {name: fresh_key() for name in channels}
    for name, key in keys.items():
        channels[name].send(key)
    ready()
    channels[PARTY_NAMES[0]].wait_forever()
    serve(Dealer([Stream(key) for key in keys.values()]), channels[PARTY_NAMES[0]])


def main() -> None:
    """Serve one role until standard input ends."""

    def sit(
        rank: int, peers: Mapping[int, Channel], dealer: Channel | None, threads: int, settings: Mapping[str, Any]
    ) -> Party:
        return CrypTenParty(rank, peers, dealer, threads)

    process.main(sit, deal)


if __name__ == "__main__":
    main()
