"""Measurements behind networks that are not there, and of networks that nobody trained."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pytest

from secure_infer.backends.parties.network import Network
from secure_infer.bench import records, run_case
from secure_infer.bench.cases import Case, Entry
from secure_infer.bench.contender import Sample
from secure_infer.bench.faraway import Faraway
from secure_infer.bench.floor import floor, waiting
from secure_infer.bench.subjects import load_subject
from secure_infer.bench.untrained import GRAPHS, PREFIX, binarized_mlp
from secure_infer.errors import UsageError
from secure_infer.report import tables
from secure_infer.report.select import headline
from secure_infer.wire.transport import Answer
from tests.bench.networks import binary_mlp, subject


class Echo:
    def infer(self, messages: Sequence[bytes], key_name: str) -> Answer:
        return Answer(tuple(messages), 0.0, 1.0, {"rounds": 3})


def test_a_faraway_server_is_as_slow_as_its_network() -> None:
    far = Faraway(Echo(), Network("slow", 0.1, 8e5))
    started = time.monotonic()
    answer = far.infer((b"x" * 500, b"y" * 500), "")
    took = time.monotonic() - started
    assert 0.1 + 2 * 0.01 <= answer.wall_s <= took < 2
    assert answer.replies == (b"x" * 500, b"y" * 500) and answer.statistics == {"rounds": 3}


def test_the_floor_holds_what_messages_take() -> None:
    sample = Sample(
        np.zeros((1, 4)), {}, {}, {"input": 3000, "output": 2000}, {"rounds": 5, "bytes_between_parties": 8000}
    )
    assert waiting(Entry("mpc", "tiny", 1), [sample]) == 0
    over = waiting(Entry("mpc", "tiny", 1, network="wan"), [sample])
    assert over == pytest.approx(5 * 0.02 + 4000 * 8 / 400e6 + 0.04 + 5000 * 8 / 400e6)
    near, far = (floor({"rounds": 5}, {"rounds": 0.001}, 2, wait) for wait in (0.0, over))
    assert far.seconds == pytest.approx(near.seconds + over) and far.network_s == over


def test_records_tell_networks_apart_and_the_headline_takes_the_near_one() -> None:
    entries = (Entry("clear", "tiny", 3), Entry("clear", "tiny", 3, network="lan"))
    near, far = run_case(Case("one", "t", entries), load=lambda name: subject(binary_mlp()))
    assert (near["network"], far["network"]) == ("loopback", "lan")
    assert records.identity(near) != records.identity(far)
    assert records.identity({**near, "network": None} | {"network": "loopback"}) == records.identity(near)
    assert headline([far, near]) == [near]
    assert "clear over lan" in tables.latency([near, far])
    (all_far,) = run_case(Case("one", "t", entries[:1]), network="wan", load=lambda name: subject(binary_mlp()))
    assert all_far["network"] == "wan" and all_far["wall_s"]["run"] > 0.04


def test_a_dealers_cost_is_that_of_the_requests_after_the_first() -> None:
    samples = [
        Sample(np.zeros((2, 4)), {}, {}, {}, {"dealer_total_seconds": total, "rounds": 5})
        for total in (9.0, 10.0, 13.0)
    ]
    assert records._dealing(samples, 2) == (13 - 9) / 2 / 2
    assert records._dealing(samples[:1], 2) is None


def test_untrained_networks_state_no_accuracy() -> None:
    tiny = load_subject(PREFIX + "alexnet-cifar10")
    assert tiny.net.output_type.shape == (10,)
    (record,) = run_case(Case("one", "t", (Entry("clear", tiny.name, 2),)), load=lambda name: tiny)
    assert record["accuracy"] is None and record["agreement"] == 1
    assert not headline([record]) and tiny.name not in tables.quality([record])
    with pytest.raises(UsageError, match="untrained-vgg16-cifar10"):
        load_subject(PREFIX + "vgg")
    assert set(GRAPHS) >= {"vgg16-cifar10", "mlp-bnn-4096"}


def test_levels_of_untrained_networks_all_occur() -> None:
    graph = load_subject(PREFIX + "alexnet-cifar10").net
    steps = [node.op.thresholds for node in graph.nodes if node.kind == "QuantRelu"]
    assert all(len(set(levels.tolist())) == 3 for levels in steps)
    assert binarized_mlp([9, 4, 2]).kinds >= {"Linear", "Sign"}
