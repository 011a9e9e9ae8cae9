"""Other libraries on the same networks, each by its own published recipe; one library a file."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from secure_infer.errors import Problem, UsageError

if TYPE_CHECKING:
    from secure_infer.bench.contender import Maker

_HOMES = {
    "concrete-ml": ("secure_infer.bench.peers.concrete_ml", "ConcreteML"),
    "tenseal": ("secure_infer.bench.peers.tenseal_vector", "TensealVector"),
    "orion": ("secure_infer.bench.peers.orion", "Orion"),
    "helayers": ("secure_infer.bench.peers.helayers", "HElayers"),
    "crypten": ("secure_infer.bench.peers.crypten_stock", "CryptenStock"),
    "spu": ("secure_infer.bench.peers.spu", "Spu"),
}
PEERS = tuple(_HOMES)


def load_peer(name: str) -> Maker:
    """What builds the contender of a peer.

    Raises:
        UsageError: No such peer.
    """
    if name not in _HOMES:
        raise UsageError(
            f"There is no peer {name!r}.",
            [Problem("peer", f"Expected one of {', '.join(PEERS)}.", "check the spelling.")],
        )
    module, attribute = _HOMES[name]
    maker: Maker = getattr(import_module(module), attribute)
    return maker
