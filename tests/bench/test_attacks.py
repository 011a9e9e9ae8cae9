"""The contests of the attacks: what counts as success, whose turn it is, and libraries that are not there."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from secure_infer.bench import queries
from secure_infer.bench.attacks import contests, peers
from secure_infer.bench.attacks import whole as running
from secure_infer.bench.attacks.contest import Contest, Field, hold
from secure_infer.bench.records import append
from secure_infer.report.contests import contests as contests_table


@pytest.fixture
def ground() -> Field:
    """Four images of two features, of class 0 below a half and of class 1 above it, by their first feature."""
    net = nn.Linear(2, 2)
    net.weight.data = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])
    net.bias.data = torch.tensor([0.5, -0.5])
    images = torch.tensor([[0.1, 0.0], [0.2, 0.0], [0.3, 0.0], [0.9, 0.0]])
    return Field(net.eval(), images, torch.tensor([0, 0, 0, 1]))


def test_contenders_take_turns_and_are_judged_by_the_network(ground: Field) -> None:
    turns: list[str] = []

    def shift(name: str, by: float) -> torch.Tensor:
        turns.append(name)
        return ground.images[:3] + torch.tensor([by, 0.0])

    contest = Contest(
        "shift", {"a": 1}, lambda _: {"ours": lambda: shift("ours", 0.35), "far": lambda: shift("far", 5.0)}, 3, 2
    )
    told: list[tuple[str, int, int]] = []
    record = hold(contest, ground, lambda *words: told.append(words))
    assert turns == ["ours", "far"] * 2 and told == [("shift", i, 2) for i in range(3)]
    assert record["settings"] == {"images": 3, "rounds": 2, "a": 1}
    ours, far = record["rows"]["ours"], record["rows"]["far"]
    assert ours["success"] == pytest.approx(2 / 3) and ours["median_l2"] == pytest.approx(0.35)
    assert ours["success_interval"][0] < 2 / 3 < ours["success_interval"][1]
    assert len(ours["seconds"]) == len(ours["cpu_seconds"]) == 2
    assert ours["times_ours"][0] == ours["cpu_times_ours"][0] == pytest.approx(1)
    assert far["success"] == 0 and far["median_l2"] is None, "images outside the bounds are no success"
    json.dumps(record, allow_nan=False)


def test_a_success_beyond_the_radius_is_none(ground: Field) -> None:
    moved = ground.images[:3] + torch.tensor([0.45, 0.0])
    row = hold(Contest("x", {}, lambda _: {"ours": lambda: moved}, 3, 1, radius=0.4), ground, running._silent)
    assert row["rows"]["ours"]["success"] == 0 and row["rows"]["ours"]["robust_accuracy"] == 1


def test_a_library_that_is_not_installed_is_left_out_with_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "LIBRARIES", {"no_such_module": "no-such-library"})
    found, missing = peers.installed()
    assert not found and "not installed (pip install no-such-library)" in missing["no-such-library"]


def test_without_peers_every_contest_still_has_ours_and_knows_its_attack(ground: Field) -> None:
    for contest in contests.contests({}):
        assert next(iter(contest.contenders(ground))) == "ours"


def test_foolbox_is_called_as_it_wants(ground: Field) -> None:
    pytest.importorskip("foolbox")
    wide = Field(ground.net, ground.images, ground.labels)
    found = peers.foolbox(wide, "LinfPGD", radius=0.5, steps=5, abs_stepsize=0.2)()
    assert found.shape == wide.images.shape and (wide.net(found).argmax(1) != wide.labels).all()


def test_a_peer_is_asked_image_by_image(ground: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def peer(net: nn.Module, norm: str, x: torch.Tensor, y: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
        asked.append((x.tolist(), y.tolist()))
        return starts

    monkeypatch.setattr(queries, "foolbox", peer)
    starts = torch.rand(4, 2)
    assert torch.equal(queries.one_by_one(ground.net, "l2", ground.images, ground.labels, starts), starts)
    pairs = zip(ground.images.tolist(), ground.labels.tolist(), strict=True)
    assert asked == [([image], [label]) for image, label in pairs]


@pytest.mark.full
def test_the_whole_run_is_one_record(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(running, "installed", lambda: ({}, {"x": "x is left out: it is not installed."}))
    with caplog.at_level(logging.WARNING):
        record = running.run(3)
    assert "x is left out" in caplog.text and record["missing"]
    assert [held["attack"] for held in record["contests"]] == [c.name for c in contests.contests({})]
    json.dumps(record, allow_nan=False)


def test_the_newest_run_becomes_a_table(ground: Field, tmp_path: Path) -> None:
    assert contests_table(tmp_path) == "No run is on record."
    held = hold(Contest("x", {}, lambda _: {"ours": lambda: ground.images[:3]}, 3, 1), ground, running._silent)
    record = {"model": "m", "contests": [held], "missing": ["y is left out."], "host": {"cores": 2}}
    append(tmp_path / running.FOLDER / "attacks.jsonl", record | {"load": {"start": 0.5, "end": 1.0}})
    text = contests_table(tmp_path)
    assert "`m`, 2 cores" in text and "| x | ours | 3 |" in text and "| 0.0 % (0.0-56." in text and "y is left" in text
