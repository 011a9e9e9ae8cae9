from __future__ import annotations

import json
from pathlib import Path

import pytest

from secure_infer.bench import case_names, records
from secure_infer.cli import app
from tests.bench.test_runner import check_record


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = app.run(["bench", *words])
    return code, capsys.readouterr().out


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = run(capsys, "--list", "--json")
    assert code == 0 and [case["name"] for case in json.loads(out)["cases"]] == case_names()
    code, out = run(capsys, "--list")
    assert code == 0 and all(name in out for name in case_names())


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["digit"],
        ["digits", "digit"],
        ["digits", "--n", "0"],
        ["digits", "--protocol", "bgv"],
        ["digits", "--network", "moon"],
        ["--report", "--results", "nowhere"],
    ],
)
def test_misuse_is_one_error_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out = run(capsys, *words, "--json")
    assert code == 2 and json.loads(out)["error"]["problems"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore")
def test_records_on_standard_output_are_those_in_the_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out = run(capsys, "digits", "--protocol", "clear", "--n", "3", "--results", str(tmp_path), "--json")
    assert code == 0
    printed = [json.loads(line) for line in out.splitlines()]
    assert printed == records.read(tmp_path / "digits.jsonl")
    assert {record["protocol"] for record in printed} == {"clear"} and len(printed) == 3
    for record in printed:
        check_record(record | {"floor": record["floor"] and dict(record["floor"])})
        assert record["agreement"] == 1 and record["n_clear_full"] == 445


@pytest.mark.filterwarnings("ignore")
def test_report(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    results = tmp_path / "results"
    run(capsys, "digits", "--protocol", "clear", "--n", "1", "--results", str(results))
    code, out = run(capsys, "--report", "--results", str(results), "--json")
    assert code == 0
    assert json.loads(out)["written"] == [str(tmp_path / "plots" / "latency.svg"), str(tmp_path / "RESULTS.md")]
