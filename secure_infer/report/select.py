"""Which records a table shows, in which order, and which peer's record belongs beside which of ours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from secure_infer.backends.parties.network import LOOPBACK
from secure_infer.bench.records import Record
from secure_infer.bench.statistics import ratio_of_medians

PROTOCOLS = ("clear", "tfhe", "ckks", "mpc", "mpc-fss", "mpc-spu")


def order(record: Record) -> tuple[str, int, bool, str, int, str, str]:
    """Sort key: model, then protocol, then ours before peers, then the batch, the mode and the network."""
    protocol = record["protocol"]
    place = PROTOCOLS.index(protocol) if protocol in PROTOCOLS else len(PROTOCOLS)
    return (
        record["model"],
        place,
        bool(record["peer"]),
        name_of(record),
        record["batch"],
        record["mode"],
        network_of(record),
    )


def name_of(record: Record) -> str:
    """Whose record it is, with the options that differ from the recipe's: `concrete-ml, p_error 0.01`."""
    options = [f"{name} {_plain(value)}" for name, value in record["options"].items()]
    return ", ".join([record["peer"] or "ours", *options])


def _plain(value: object) -> str:
    return " ".join(map(str, value.values())) if isinstance(value, dict) else str(value)


def network_of(record: Record) -> str:
    """Name of the network that the processes were made to wait for; empty if none."""
    name = str(record.get("network", LOOPBACK))
    return "" if name == LOOPBACK else name


def headline(records: Sequence[Record]) -> list[Record]:
    """Ours by the recipe, one image a request, not simulated or delayed: the largest of each model and protocol."""
    best: dict[tuple[str, str], Record] = {}
    for record in records:
        if record["peer"] or record["options"] or record["mode"] != "encrypted" or record["batch"] != 1:
            continue
        if network_of(record) or record["accuracy"] is None:
            continue
        key = (record["model"], record["protocol"])
        if key not in best or (record["n"], record["at"]) > (best[key]["n"], best[key]["at"]):
            best[key] = record
    return sorted(best.values(), key=order)


@dataclass(frozen=True)
class Duel:
    """Ours and a peer on the same network and images, run in turn.

    Attributes:
        ours: Our record.
        peer: The peer's record.
        ratio: Peer's median run time over ours; above 1 we are faster.
        low: Lower end of its 95 % interval.
        high: Upper end.
    """

    ours: Record
    peer: Record
    ratio: float
    low: float
    high: float


def duels(records: Sequence[Record]) -> Iterator[Duel]:
    """Each peer beside ours of the same run; records of different runs are never compared."""
    for peer in sorted((record for record in records if record["peer"]), key=order):
        same = ("case", "protocol", "model", "mode", "batch", "at")
        for ours in records:
            near = network_of(ours) == network_of(peer)
            if ours["peer"] is None and near and all(ours[key] == peer[key] for key in same):
                yield Duel(ours, peer, *ratio_of_medians(peer["run_s_all"], ours["run_s_all"]))


def best(found: Iterable[Duel]) -> Iterator[Duel]:
    """For each peer the fastest of ours that agrees with the clear network as often as the peer, or else most often."""
    by_peer: dict[int, list[Duel]] = {}
    for duel in found:
        by_peer.setdefault(id(duel.peer), []).append(duel)
    for duels_of_peer in by_peer.values():
        yield max(duels_of_peer, key=lambda d: (min(d.ours["agreement"], d.peer["agreement"]), d.ratio))
