"""Cells of the matrix are measured: keys of the real CKKS client, overflow, the view of a server; and the page."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import secure_infer as si
from secure_infer.attacks import Access
from secure_infer.bench.threats.cells import Cell, Deployment, Settings, deployments
from secure_infer.bench.threats.ckks_key import RELEASES, Request
from secure_infer.bench.threats.ckks_range import overflow
from secure_infer.bench.threats.run import measure
from secure_infer.cli import app
from secure_infer.errors import UsageError
from secure_infer.report import matrix, page
from secure_infer.targets import subject
from tests.bench.networks import polynomial_cnn
from tests.bench.synthetic import record

pytestmark = pytest.mark.filterwarnings("ignore")
SMALL = Settings(n=12, n_queries=2, queries=40, stolen=200, executed=4, messages=100, timed=16, keys=1)


@pytest.mark.parametrize(("rounding", "lost"), [(2, [True, True, False]), (0, [True, True, True])])
def test_the_ckks_key_is_lost_with_a_raw_decryption_and_kept_by_rounding(rounding: int, lost: list[bool]) -> None:
    x = np.random.default_rng(0).random((20, 1, 6, 6))
    request = Request.make(si.compile(polynomial_cnn(), x, "ckks", rounding_bits=rounding), x[:1])
    leaks = [request.leak(release) for release in RELEASES]
    assert [leak.key for leak in leaks] == lost
    # With the key, the client's input is read from its message.
    assert all((leak.input_error is not None and leak.input_error < 1e-3) == leak.key for leak in leaks)


@pytest.fixture(scope="module")
def poly() -> Deployment:
    return Deployment("digits", "ckks", "polynomial", subject("digits-cnn-poly"))


def test_overflow_is_refused_by_both_checks_of_the_client(poly: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secure_infer.bench.threats.ckks_range.FACTORS", (1, 8, 1024))
    found = overflow(poly, Settings(keys=1)).as_dict()
    by_factor = found["details"]["by_factor"]
    assert by_factor["1"] == {"refused": 0, "wrong": 0, "right": 1}
    assert by_factor["1024"]["right"] == 0 and found["details"]["honest_client_refuses"]
    assert found["n"] == len(by_factor) - 1 and 0 <= found["rate"] <= 1


def test_columns_say_why_they_can_not_be_deployed() -> None:
    found = {(c.protocol, c.form): c for c in deployments("digits")}
    assert len(found) == 16
    assert all(not found["clear", form].why_not for form in ("float", "quantized", "binarized", "polynomial"))
    assert "adds and multiplies" in found["ckks", "binarized"].why_not
    assert "integers" in found["mpc", "float"].why_not
    with pytest.raises(UsageError, match="no models"):
        deployments("imagenet")


def test_whoever_attacks_a_noisy_protocol_asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    column = Deployment("digits", "clear", "binarized", subject("digits-mlp-bnn"))
    assert column.repeats == 1
    x = column.weights.images[:5]
    mean = column.deployed(Access.LOGITS, times=3)
    torch.testing.assert_close(mean.query(x).scores, column.own_copy().query(x).scores)
    assert mean.meter.queries == 5


@pytest.mark.parametrize("protocol", ["ckks", "mpc"])
def test_attacks_may_ask_real_ciphertexts(protocol: str) -> None:
    chosen = Settings(n=12, n_queries=2, queries=20, stolen=200, executed=0)
    # A request of CKKS takes seconds, whatever it holds.
    threats = ("evasion-white-box", *(["evasion-labels", "extraction"] if protocol == "mpc" else []))
    given = {"protocols": ("clear", protocol), "forms": ("polynomial",), "threats": threats}
    found = [matrix.cells(measure("digits", chosen, **given, on_ciphertexts=real)) for real in (False, True)]
    simulated, executed = ({key: cell for key, cell in cells.items() if key[1] == protocol} for cells in found)
    assert [cell["mode"] for cell in executed.values()] == ["executed"] * len(threats)
    assert {cell["mode"] for cell in simulated.values()} == {"simulated"}
    # Both protocols come so near to the clear network that attacks do as well on ciphertexts.
    assert all(abs(cell["successes"] - executed[key]["successes"]) <= 1 for key, cell in simulated.items())
    assert {key for key, cell in found[1].items() if cell["mode"] == "clear"} == {
        (name, "clear", "polynomial") for name in threats
    }


def test_a_share_comes_with_its_interval() -> None:
    found = Cell("m", 3, 4, access="LABEL").as_dict()
    assert found["rate"] == found["gain"] == 0.75 and found["interval"][0] < 0.75 < found["interval"][1]
    assert Cell(why_not="no").as_dict() == {"not_applicable": "no"}
    with pytest.raises(UsageError, match="messages"):
        Settings(messages=3, n=0)


@pytest.fixture(scope="module")
def document() -> dict:
    return measure("digits", SMALL, protocols=("clear", "mpc"), forms=("float", "binarized"))


def test_every_cell_is_measured_or_says_why_not(document: dict) -> None:
    cells = matrix.cells(document)
    assert len(cells) == len(document["rows"]) * 4
    for cell in cells.values():
        if "not_applicable" in cell:
            assert cell["not_applicable"].endswith(".")
        else:
            assert cell["interval"][0] <= cell["rate"] <= cell["interval"][1] and cell["n"] > 0 and cell["access"]
    json.dumps(document, allow_nan=False)


def test_stolen_weights_meet_several_attacks_in_turn(document: dict) -> None:
    cell = matrix.cells(document)["evasion-white-box", "clear", "binarized"]
    by = cell["details"]["fooled_copy"]
    # In the clear the deployed model is the copy: what fooled the one, by whichever attack, fools the other.
    assert next(iter(by)) == "pgd on the margin" and len(by) == 5 and sum(by.values()) == cell["successes"]
    assert cell["details"]["median_l2"] <= 1 + 1e-6


def test_encryption_hides_inputs_and_attacks_but_stops_none(document: dict) -> None:
    cells = matrix.cells(document)
    clear, shared = (
        {key: cells[key, protocol, "binarized"] for key in ("input-view", "query-defense", "evasion-white-box")}
        for protocol in ("clear", "mpc")
    )
    assert clear["input-view"]["rate"] == 1 and shared["input-view"]["rate"] < 0.75
    assert shared["input-view"]["details"]["control_one_bit_leaked"]["caught"]
    assert clear["query-defense"]["rate"] < 0.2 and shared["query-defense"]["rate"] > 0.8
    assert shared["evasion-white-box"]["rate"] > 0.6
    agreed = [column["agreement"] for column in document["columns"] if column.get("agreement")]
    assert len(agreed) == 1 and agreed[0]["same"] == agreed[0]["n"] == 4 and agreed[0]["largest"] < 1e-6


def test_the_page_needs_nothing_else(document: dict, tmp_path: Path) -> None:
    known = record("mpc", model="digits-mlp-bnn")
    written = page.write([document], [known], tmp_path)
    assert [path.name for path in written] == ["index.html", "digits.json", "matrix.md"]
    text = written[0].read_text()
    assert not re.search(r"<(script|link|img|iframe)|(src|href)=[\"']http|url\(http", text)
    assert (
        text.count("<svg")
        == len(list((tmp_path / "plots").glob("*.svg")))
        == len(list((tmp_path / "plots").glob("*.png")))
    )
    assert "record made-up" in text and "not applicable" in text
    for column in matrix.deployed(document):
        assert column[1] in text
    assert "Evasion by labels" in written[2].read_text()
    assert matrix.read(written[1]) == document


def test_the_price_is_that_of_the_record_where_there_is_one(document: dict) -> None:
    known = record("mpc", model="digits-mlp-bnn")
    cost = matrix.prices([known], document)
    wall = known["wall_s"]
    assert cost["mpc", "binarized"].seconds == pytest.approx(wall["encrypt"] + wall["run"] + wall["decrypt"])
    assert "this run" in matrix.prices([], document)["mpc", "binarized"].source
    assert set(cost) == {("mpc", "binarized")}
    # The reader of the README's table sees which cells were not attacked on ciphertexts.
    labels, view = (
        next(line for line in matrix.summary(document, cost).splitlines() if title in line)
        for title in ("Evasion by labels", "Server tells inputs apart")
    )
    assert labels.count("simulated") == 1 and "simulated" not in view


def test_a_page_is_made_again_from_its_record(
    document: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some = [cell for cell in document["cells"] if cell["threat"] == "input-view"]
    document = {**document, "rows": {"input-view": document["rows"]["input-view"]}, "cells": some}
    (tmp_path / "a.json").write_text(json.dumps(document))
    words = ["report", "--records", str(tmp_path / "a.json"), "--out", str(tmp_path / "out"), "--json"]
    assert app.run(words) == 0
    assert json.loads(capsys.readouterr().out)["matrices"] == [document]
    assert (tmp_path / "out" / "index.html").is_file()


def test_columns_measured_apart_are_put_together(document: dict) -> None:
    parts = [
        {**document, **{key: [row for row in document[key] if row["protocol"] == name] for key in ("columns", "cells")}}
        for name in ("mpc", "clear")
    ]
    (whole,) = matrix.merged(parts)
    assert matrix.columns(whole) == matrix.columns(document) and matrix.cells(whole) == matrix.cells(document)
    # A row measured again, with nothing executed, replaces its cells and keeps what the column says of execution.
    later = {**parts[0], "settings": {**document["settings"], "executed": 0}}
    later |= {"at": "2999-01-01T00:00", "commit": "later"}
    later["columns"] = [{**column, "agreement": None} for column in later["columns"] if "agreement" in column]
    later["cells"] = [{**cell, "n": 7} for cell in later["cells"] if cell["threat"] == "extraction"]
    (renewed,) = matrix.merged([document, later])
    assert renewed["columns"] == document["columns"] and len(renewed["cells"]) == len(document["cells"])
    assert matrix.cells(renewed)["extraction", "mpc", "binarized"]["n"] == 7
    assert renewed["settings"] == document["settings"] and renewed["commit"] == "later"
    with pytest.raises(UsageError, match="do not fit"):
        matrix.merged([parts[0], {**parts[1], "settings": {}}])


def test_columns_that_were_executed_and_timed_apart_say_the_range(document: dict) -> None:
    said = "\n".join([*matrix.controls(document), *matrix.circumstances(document)])
    assert "executed 4, " in said and "timed 16, " in said and "in 0 of 1 columns, judged on 8 requests each" in said
    other = copy.deepcopy(document)
    (column,) = (column for column in other["columns"] if column["protocol"] == "mpc" and "model" in column)
    (view,) = (cell for key, cell in matrix.cells(other).items() if key == ("input-view", "mpc", "binarized"))
    column["form"] = view["form"] = "polynomial"
    column["agreement"]["n"] = 10
    view["details"]["times"] |= {"requests": 200, "n": 100, "right": 70, "interval": [0.6, 0.78], "caught": True}
    (whole,) = matrix.merged([document, other])
    said = "\n".join([*matrix.controls(whole), *matrix.circumstances(whole)])
    assert "executed 4 to 10, " in said and "timed 16 to 200, " in said
    assert "in 1 of 2 columns (MPC polynomial), judged on 8 to 100 requests each; most in MPC polynomial: 70" in said
    assert "by times 70 of 100" in matrix.as_markdown(whole, {})
    view["details"]["times"] = None
    assert "timed 0 to 16" in "\n".join(matrix.circumstances(matrix.merged([document, other])[0]))


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"schema": 99, "dataset": "d", "rows": {}, "columns": [], "cells": []}']
)
def test_what_is_no_record_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UsageError, match="no record"):
        matrix.read(tmp_path / "a.json")
