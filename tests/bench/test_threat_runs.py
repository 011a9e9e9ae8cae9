"""The runs `transfer` and `extraction`: rank correlation, and small runs whose records are whole."""

import json

import numpy as np
import pytest
from scipy.stats import spearmanr

from secure_infer.bench import append, extraction, queries, transfer
from secure_infer.report.blind import blind


def test_rank_correlation_is_scipy_s_ties_included():
    random = np.random.default_rng(0)
    a, b = random.integers(6, size=(5, 5)).astype(float), random.normal(size=(5, 5))
    assert transfer.spearman(a, b) == pytest.approx(spearmanr(a.ravel(), b.ravel()).statistic)
    assert transfer.spearman(b, b) == pytest.approx(1) and transfer.spearman(b, -b) == pytest.approx(-1)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:scipy.optimize:DeprecationWarning")  # scikit-learn 1.5 gives scipy old options
def test_transfer_on_digits_has_every_cell():
    record = transfer.measure("digits", 100, 2, 500, lambda name, done, total: None)
    assert json.loads(json.dumps(record)) == record
    cross = np.array(record["cross"]["misclassified"])
    assert cross.shape == (5, 5) and cross[2, 2] > 0.9 and cross[0, 0] > 0.5
    low, high = np.moveaxis(np.array(record["cross"]["interval"]), 2, 0)
    assert (low <= cross).all() and (cross <= high).all()
    assert record["intra"]["SVM"]["same"] >= record["intra"]["DT"]["disjoint"]


@pytest.mark.full
def test_extraction_record_is_whole():
    chosen = [extraction.Thief(thief.name, thief.access, 200) for thief in extraction.thieves()[-3:]]
    assert [thief.name for thief in chosen] == ["jacobian", "knockoff", "knockoff-strangers"]
    rows = extraction.measure(100, chosen, lambda name, done, total: None)["rows"]
    assert [row["radius"] for row in rows] == [radius for thief in chosen for radius in extraction.RADII[thief.model]]
    for row in rows:
        assert row["queries"] == 200 and row["n"] == 100
        assert row["fidelity"]["interval"][0] <= row["fidelity"]["share"] <= row["fidelity"]["interval"][1]


@pytest.mark.full
def test_label_queries_record_is_whole(monkeypatch):
    monkeypatch.setattr(queries.ladder, "MODELS", queries.ladder.MODELS[:1])
    record = queries.run(5)
    assert json.loads(json.dumps(record)) == record
    assert all(len(curve["medians"]) == len(queries.AT) for curve in record["curves"])
    for held in record["ladders"]:
        medians = {row["means"]: row["median"] for row in held["rows"]}
        assert medians["white box"] < medians["surfree 1000"] < medians["surfree 50"]
        times = {row["means"]: row["times_white_box"] for row in held["rows"]}
        assert times["white box"] == 1 and times["surfree 50"] == medians["surfree 50"] / medians["white box"]


def test_newest_runs_become_tables(tmp_path):
    assert blind(tmp_path) == ""
    step = {"means": "surfree 100", "median": 1.5, "interval": [1, 2], "times_white_box": 7.5}
    held = {"model": "m", "n": 9, "rows": [step, {**step, "means": "jpeg", "median": None, "times_white_box": None}]}
    known = {**held, "model": "k", "accuracy": {"share": 0.925, "interval": [0.8, 0.97], "n": 80}}
    duel = {"peer": "p", "norm": "l2", "queries": 1207, "median": {"ours": 0.8, "peer": None}}
    duel |= {"seconds": {"ours": 1.0, "peer": 2.0}}
    place = {"host": {"cores": 2}, "load": 1.25}
    common = {"case": "label-queries", "model": "m", "n": 9, "time": "2026-01-02", "peers": [duel], **place}
    append(tmp_path / "attacks" / "label-queries.jsonl", {**common, "ladders": [held, known]})
    part = {"share": 0.5, "interval": [0.4, 0.6]}
    row = {"attack": "jacobian", "model": "m", "access": "LABEL", "queries": 4800, "radius": 0.2}
    row |= dict.fromkeys(("fidelity", "accuracy", "transfer", "random"), part)
    append(tmp_path / "attacks" / "extraction.jsonl", {"at": "2026-01-03", "rows": [row], **place})
    text = blind(tmp_path)
    assert "2026-01-03, 2 cores, load average 1.2" in text
    assert "| surfree 100 | 1.50 (7.5) | 1.50 (7.5) |" in text and "| jpeg | most images not fooled |" in text
    assert "| accuracy, held-out images | - | 92.5 % (80.0-97.0) |" in text, "older records lack it"
    assert "| p | l2 | 1,207 | 0.800 | - | 1 s | 2 s |" in text
    # Records that were made before examples of ten steps have none.
    assert "| jacobian | `m` | label | 4,800 | 0.2 | 50.0 % (40.0-60.0) |" in text and " | - | " in text
