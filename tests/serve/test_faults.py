"""Kills of front, workers and clients: nobody gets a wrong answer or none, and the store stays whole."""

from __future__ import annotations

import pytest

pytest.importorskip("tenseal")
pytest.importorskip("uvicorn")

from secure_infer.bench import faults


@pytest.mark.parametrize("kills", [3, pytest.param(12, marks=pytest.mark.full)])
def test_kills_leave_no_wrong_answer_and_a_whole_store(kills: int) -> None:
    record = faults.run(kills)
    assert record["kills"] == kills and record["by"] == dict.fromkeys(faults.ROLES, kills // 3)
    assert record["store_problems"] == []
    assert (record["wrong"], record["without_an_end"], record["unclear_ends"], record["clients_miscounted"]) == (0,) * 4
    assert record["requests"]["answer"] > 0


def test_a_request_without_an_end_is_seen() -> None:
    ends, left = faults._ends(["begin", "upload", "sent", "answer", "killed", "begin", "error X: y", "begin", "sent"])
    assert left == 1 and dict(ends) == {"begin": 3, "answer": 1, "error": 1}
