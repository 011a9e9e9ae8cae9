from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from secure_infer import backends
from secure_infer.bench import append
from secure_infer.bench.records import latest
from secure_infer.errors import MissingExtra, UsageError
from secure_infer.graph import OPS
from secure_infer.report import catalogue, markdown, tables, write_report
from secure_infer.report.regions import region, replace_regions
from secure_infer.report.select import best, duels, headline, name_of
from secure_infer.report.service import service
from tests.bench.synthetic import record

README = Path(__file__).parents[2] / "README.md"


def folder(tmp_path: Path) -> Path:
    results = tmp_path / "benchmarks" / "results"
    for protocol in ("clear", "tfhe", "ckks", "mpc"):
        append(results / "made-up.jsonl", record(protocol))
    append(results / "made-up.jsonl", record("tfhe", peer="concrete-ml", slower=7))
    return results


def test_newest_record_of_each_row_wins(tmp_path: Path) -> None:
    for day, accuracy in (("02", 0.2), ("03", 0.3), ("01", 0.1)):
        append(tmp_path / "a.jsonl", record("tfhe", at=f"2026-01-{day}T00:00:00+00:00", accuracy=accuracy))
    append(tmp_path / "a.jsonl", record("tfhe", batch=10, accuracy=0.9))
    append(tmp_path / "a.jsonl", record("tfhe", options={"p_error": 0.1}, accuracy=0.8))
    assert [found["accuracy"] for found in latest(tmp_path)] == [0.3, 0.9, 0.8]


def test_records_of_earlier_weights_are_left_out(tmp_path: Path) -> None:
    old = record("mpc", at="2026-01-01T00:00:00+00:00", fingerprint="1" * 64)
    new = record("clear", at="2026-01-02T00:00:00+00:00")
    other = record("clear", model="other", at="2025-01-01T00:00:00+00:00", fingerprint="2" * 64)
    for each in (new, old, other):
        append(tmp_path / "case.jsonl", each)
    assert latest(tmp_path) == [new, other]


def test_report_from_records(tmp_path: Path) -> None:
    written = write_report(folder(tmp_path))
    assert [path.name for path in written] == ["latency.svg", "traffic.svg", "peers.svg", "RESULTS.md"]
    for path in written[:-1]:
        assert ElementTree.parse(path).getroot().tag.endswith("svg")
    page = written[-1].read_text()
    for phrase in (
        "## made-up",
        "concrete-ml",
        "96.2 % of 449",
        "95.0 % (76.0-99.0)",
        "64 look ups",
        "Some CPU",
        "0123456789",
    ):
        assert phrase in page
    assert all(f"plots/{name}.svg" in page for name in ("latency", "traffic", "peers"))


def test_report_is_the_same_twice(tmp_path: Path) -> None:
    results = folder(tmp_path)
    first = {path.name: path.read_bytes() for path in write_report(results)}
    assert first == {path.name: path.read_bytes() for path in write_report(results)}


def test_report_without_records(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no records"):
        write_report(tmp_path / "nothing")


def test_report_of_the_clear_protocol_alone_draws_what_there_is(tmp_path: Path) -> None:
    append(tmp_path / "results" / "a.jsonl", record("clear"))
    assert [path.name for path in write_report(tmp_path / "results")] == ["latency.svg", "RESULTS.md"]


def test_only_regions_of_the_readme_change(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- begin:results -->\nold\n<!-- end:results -->\nafter \\1 `x`\n")
    write_report(folder(tmp_path), readme)
    text = readme.read_text()
    assert text.startswith("before\n<!-- begin:results -->\n|") and text.endswith(
        "<!-- end:results -->\nafter \\1 `x`\n"
    )
    assert "old" not in text
    assert [message for message in caplog.messages if "skipped" in message] == [
        "There is no region service; skipped.",
        "There is no region threats; skipped.",
        "There is no region zoo; skipped.",
        "There is no region ops; skipped.",
    ]


def test_regions() -> None:
    text = "<!-- begin:a --><!-- end:a -->\n<!-- begin:b -->\nB\n<!-- end:b -->"
    bodies = {"a": lambda: r"\1 \g<0>", "b": lambda: "new\nlines", "c": lambda: 1 / 0}
    once = replace_regions(text, bodies)
    assert region(once, "a") == r"\1 \g<0>" and region(once, "b") == "new\nlines" and region(once, "c") is None
    assert replace_regions(once, bodies) == once


def test_newest_run_of_the_service_is_told(tmp_path: Path) -> None:
    assert service(tmp_path) == "No run is on record."
    run = {"load": 1.0, "kills": 9, "by": {"front": 4, "worker": 5}, "requests": {"answer": 7, "error": 2}}
    ended = {"wrong": 0, "without_an_end": 0, "clients_miscounted": 0, "store_problems": ["one"]}
    append(tmp_path / "service" / "serve-faults.jsonl", {**run, **ended, "kills": 5})
    append(tmp_path / "service" / "serve-faults.jsonl", {**run, **ended})
    (line,) = service(tmp_path).splitlines()
    assert "9 kills (SIGKILL; 4 of a front, 5 of a worker)" in line
    assert "7 answers, 2 clear errors, 0 requests of clients" in line and "1 problems in the store" in line


def test_peers_are_compared_only_with_ours_of_the_same_run() -> None:
    ours, peer = record("tfhe"), record("tfhe", peer="concrete-ml", slower=7)
    (duel,) = duels([ours, peer])
    assert duel.low < duel.ratio < duel.high and 6 < duel.ratio < 8
    assert list(duels([record("tfhe", at="2026-05-05T00:00:00+00:00"), peer])) == []
    assert list(duels([record("ckks"), peer])) == []
    assert tables.versus([ours]) == ""


def test_options_are_part_of_a_name() -> None:
    rounding = {"rounding_threshold_bits": {"n_bits": 4, "method": "APPROXIMATE"}}
    assert name_of(record("tfhe", peer="concrete-ml", options=rounding)) == (
        "concrete-ml, rounding_threshold_bits 4 APPROXIMATE"
    )
    assert headline([record("tfhe", options={"p_error": 0.1})]) == []


def test_headline_holds_no_peer_no_batch_no_simulation() -> None:
    wanted = record("mpc", n=50)
    others = [record("mpc", peer="crypten"), record("mpc", batch=10, n=99), record("mpc", mode="simulate", n=99)]
    assert headline([*others, record("mpc"), wanted]) == [wanted]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (markdown.seconds(3.14e-4), "314 µs"),
        (markdown.seconds(0.0123), "12 ms"),
        (markdown.seconds(0.9999), "1 s"),
        (markdown.seconds(61.2), "61 s"),
        (markdown.seconds(5000), "83 min"),
        (markdown.seconds(16_000), "4.4 h"),
        (markdown.seconds(None), "-"),
        (markdown.size(999), "999 B"),
        (markdown.size(25_400_000), "25 MB"),
        (markdown.size(1.2e9), "1.2 GB"),
        (markdown.size(0), "-"),
        (markdown.share(0.9667, (0.83, 0.994)), "96.7 % (83.0-99.4)"),
        (markdown.ratio(171.3), "171"),
    ],
)
def test_numbers_for_people(text: str, expected: str) -> None:
    assert text == expected


def generated(name: str) -> str:
    try:
        return {"ops": catalogue.operations, "zoo": catalogue.models}[name]()
    except MissingExtra as error:
        pytest.skip(error.summary)


def test_operations_are_those_of_every_backend() -> None:
    rows = generated("ops").splitlines()[2:]
    assert len(rows) == len(OPS)
    ckks = backends.load("ckks").ops
    column = 3 + backends.protocols().index("ckks")
    assert {row.split("|")[1].strip(" `") for row in rows if row.split("|")[column].strip() == "yes"} == ckks


@pytest.mark.parametrize("name", ["ops", "zoo"])
def test_readme_holds_what_the_code_generates(name: str) -> None:
    found = region(README.read_text(encoding="utf-8"), name)
    if found is None:
        pytest.skip("README has no such region")
    assert found == generated(name), "run `secure-infer bench --report`"


def test_shipped_records_are_json_lines() -> None:
    for path in (README.parent / "benchmarks" / "results").glob("*.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            assert json.loads(line)["case"] == path.stem


def test_the_readme_has_each_peer_beside_our_fastest_that_agrees_as_often() -> None:
    rows = [
        record("tfhe", options={"way": name}, agreement=agreement, run_s_all=[run] * 3)
        for name, run, agreement in (("exact", 3.0, 1.0), ("rounded", 2.0, 1.0), ("coarse", 1.0, 0.9))
    ]
    peer = record("tfhe", peer="other", agreement=1.0, run_s_all=[6.0] * 3)
    assert len(list(duels([*rows, peer]))) == 3
    (chosen,) = best(duels([*rows, peer]))
    assert chosen.ours["options"] == {"way": "rounded"} and chosen.ratio == 3
    (chosen,) = best(duels([*rows, peer | {"agreement": 0.8}]))
    assert chosen.ours["options"] == {"way": "coarse"}
