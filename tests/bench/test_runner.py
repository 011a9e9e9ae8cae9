from __future__ import annotations

import json
import math
import threading
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from secure_infer.bench import append, records, run_case, runner
from secure_infer.bench.cases import Case, Entry, parse_case
from secure_infer.bench.contender import Sample, Setup, Subject
from secure_infer.bench.subjects import fingerprint
from secure_infer.errors import MissingExtra, UnsupportedNetwork, UsageError
from secure_infer.graph import store
from tests.bench.networks import binary_mlp, subject

NUMBER = (int, float)
SCHEMA: dict[str, Any] = {
    "case": str,
    "protocol": str,
    "model": str,
    "fingerprint": str,
    "peer": (str, type(None)),
    "mode": str,
    "network": str,
    "batch": int,
    "options": dict,
    "n": int,
    "n_encrypted": int,
    "accuracy": float,
    "accuracy_interval": list,
    "accuracy_clear": float,
    "accuracy_clear_full": float,
    "n_clear_full": int,
    "agreement": float,
    "max_error": float,
    "wall_s": dict,
    "cpu_s": dict,
    "dealer_cpu_s": (float, type(None)),
    "run_s_all": list,
    "bytes": dict,
    "counts": dict,
    "floor_s": (*NUMBER, type(None)),
    "floor_ratio": (*NUMBER, type(None)),
    "floor": (dict, type(None)),
    "parameters": dict,
    "host": dict,
    "load": dict,
    "peak_memory": (int, type(None)),
    "versions": dict,
    "ratios": (dict, type(None)),
    "commit": (str, type(None)),
    "at": str,
}
PHASES = {"compile", "keygen", "encrypt", "run", "decrypt"}


def check_record(record: dict[str, Any]) -> None:
    assert record.keys() == SCHEMA.keys()
    for key, kind in SCHEMA.items():
        assert isinstance(record[key], kind), key
    for key in ("wall_s", "cpu_s"):
        assert record[key].keys() == PHASES
        assert all(value is None or value >= 0 for value in record[key].values())
    assert record["bytes"].keys() == {"evaluation_keys", "evaluation_keys_sent", "input", "output"}
    assert len(bytes.fromhex(record["fingerprint"])) == 32
    assert record["load"].keys() == {"start", "end"}
    assert record["host"].keys() == {"cpu", "cores", "memory_gib", "os", "python"}
    low, high = record["accuracy_interval"]
    assert 0 <= low <= record["accuracy"] <= high <= 1
    assert datetime.fromisoformat(record["at"]).tzinfo is not None


def load(name: str) -> Subject:
    return subject(binary_mlp())


def case(**changes: Any) -> Case:
    return parse_case(
        "tiny", {"title": "t", "entries": [{"protocol": "clear", "model": "tiny", "n_encrypted": 6} | changes]}
    )


def test_a_record_of_the_clear_protocol() -> None:
    (record,) = run_case(case(), load=load)
    check_record(record)
    json.dumps(record, allow_nan=False)
    assert record["n"] == 6 and record["n_encrypted"] == 0, "nothing is encrypted in the clear"
    assert record["agreement"] == 1 and record["max_error"] == 0
    assert record["accuracy"] == record["accuracy_clear"]
    assert record["floor_s"] is None and record["bytes"]["evaluation_keys"] == 0
    assert len(record["run_s_all"]) == 6
    assert record["wall_s"]["run"] == pytest.approx(np.median(record["run_s_all"]))


def test_a_record_names_the_weights() -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    net, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    found = fingerprint(net)
    assert found != fingerprint(other)
    other.load_state_dict(net.state_dict())
    assert found == fingerprint(other)
    with torch.no_grad():
        other.bias[0] += 1e-6
    assert found != fingerprint(other)
    (record,) = run_case(case(), load=load)
    assert record["fingerprint"] == store.fingerprint(binary_mlp())


def test_simulated_figures_are_marked_and_count_no_ciphertexts() -> None:
    (record,) = run_case(case(mode="simulate"), load=load)
    check_record(record)
    assert record["mode"] == "simulate" and record["n_encrypted"] == 0
    assert record["bytes"] == dict.fromkeys(record["bytes"]) and record["wall_s"]["encrypt"] is None


@pytest.mark.parametrize(("asked", "batch", "n"), [(1, 1, 1), (7, 3, 6), (2, 3, 3), (999, 1, 30), (999, 7, 28)])
def test_whole_batches_of_the_images_there_are(asked: int, batch: int, n: int) -> None:
    (record,) = run_case(case(batch=batch), n=asked, load=load)
    assert (record["n"], len(record["run_s_all"])) == (n, n // batch)


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(UsageError, match="at most 30"):
        list(run_case(case(batch=31), load=load))


def test_unknown_options_are_refused() -> None:
    with pytest.raises(UsageError, match="no option"):
        list(run_case(case(options={"nonsense": 1}), load=load))


class Fake:
    """A contender that notes when it is asked, takes a known time, and errs on every third image."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log, self.asked, self.closed = name, log, 0, False
        self.setup = Setup({"compile": 1.0}, {"compile": 2.0}, 100, 10, counts={"look_ups": 4, "adds": 9})

    def clear(self, x: np.ndarray) -> np.ndarray:
        return np.tile([1.0, 0.0, 0.0, 0.0], (len(x), 1))

    def infer(self, x: np.ndarray) -> Sample:
        self.log.append(self.name)
        self.asked += 1
        outputs = self.clear(x) if self.asked % 3 else 1 - self.clear(x)
        times = {"encrypt": 0.1, "run": float(self.asked), "decrypt": 0.2}
        return Sample(outputs, times, times, {"input": 8, "output": 4}, {"rounds": 5})

    def primitives(self) -> dict[str, float]:
        return {"look_ups": 0.5, "unused": 3.0}

    def close(self) -> None:
        self.closed = True


def test_ours_and_a_peer_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    fakes = {None: Fake("ours", log), "tenseal": Fake("peer", log)}
    monkeypatch.setattr(runner, "Ours", lambda subject, entry: fakes[None])
    monkeypatch.setattr(runner, "load_peer", lambda name: lambda subject, entry: fakes[name])
    monkeypatch.setattr(runner, "usable_cores", lambda: 2)
    entries = (Entry("ckks", "tiny", 3), Entry("ckks", "tiny", 2, peer="tenseal"))
    ours, peer = run_case(Case("both", "t", entries), load=load)
    assert log == ["ours", "peer", "ours", "peer", "ours"]
    assert ours["at"] == peer["at"] and (ours["peer"], peer["peer"]) == (None, "tenseal")
    assert ours["agreement"] == pytest.approx(2 / 3) and peer["agreement"] == 1
    assert ours["wall_s"] == {"compile": 1.0, "keygen": None, "encrypt": 0.1, "run": 2.0, "decrypt": 0.2}
    assert ours["floor_s"] == pytest.approx(4 * 0.5 / 2) and ours["floor_ratio"] == pytest.approx(2.0)
    assert ours["floor"]["skipped"] == ("adds",)
    assert ours["counts"] == {"look_ups": 4, "adds": 9, "rounds": 5}
    assert all(fake.closed for fake in fakes.values())
    check_record(ours)


def test_servers_are_closed_when_a_request_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake("ours", [])
    monkeypatch.setattr(fake, "infer", lambda x: math.sqrt(-1))
    monkeypatch.setattr(runner, "Ours", lambda subject, entry: fake)
    with pytest.raises(ValueError):
        list(run_case(case(), load=load))
    assert fake.closed


@pytest.mark.parametrize("error", [MissingExtra("tenseal is not there."), UnsupportedNetwork("It can't.")])
def test_a_peer_that_can_not_run_is_one_line_and_no_failure(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def refuse(subject: Subject, entry: Entry) -> None:
        raise error

    monkeypatch.setattr(runner, "load_peer", lambda name: refuse)
    entries = (Entry("clear", "tiny", 2), Entry("clear", "tiny", 2, peer="tenseal"))
    (record,) = run_case(Case("both", "t", entries), load=load)
    assert record["peer"] is None
    assert [message for message in caplog.messages if "left out" in message] == [caplog.messages[0]]


def test_no_protocol_at_all_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(subject: Subject, entry: Entry) -> None:
        raise MissingExtra("not there.")

    monkeypatch.setattr(runner, "Ours", refuse)
    with pytest.raises(MissingExtra, match="No entry"):
        list(run_case(case(), load=load))


def test_writers_at_the_same_time_never_mix_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "new" / "case.jsonl"

    def write(writer: int) -> None:
        for line in range(50):
            append(path, {"writer": writer, "line": line, "filler": "x" * 5000})

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = records.read(path)
    assert len(found) == 200
    for writer in range(4):
        assert [record["line"] for record in found if record["writer"] == writer] == list(range(50))


def test_a_damaged_line_is_left_out_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "case.jsonl"
    append(path, {"a": 1})
    path.write_text(path.read_text() + '{"b": \n[1]\n' + '{"c": 3}\n')
    assert records.read(path) == [{"a": 1}, {"c": 3}]
    assert len(caplog.messages) == 2


def test_a_record_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="can't be added"):
        append(tmp_path / "file" / "case.jsonl", {})
    with pytest.raises(ValueError):
        append(tmp_path / "case.jsonl", {"nan": float("nan")})
