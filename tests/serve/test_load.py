"""The load run against a real server: nothing lost, nothing wrong, and wrong answers would be seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tenseal")
pytest.importorskip("uvicorn")

from secure_infer.bench import append, load
from secure_infer.bench.service import Ask, Workload
from secure_infer.errors import DecryptionError
from secure_infer.report.service import service
from secure_infer.serve.base import Job


class Echo:
    """A client role whose replies are numbers in the clear."""

    def decrypt(self, replies: list[bytes], keys: object) -> np.ndarray:
        if replies == [b"damaged"]:
            raise DecryptionError("damaged")
        return np.frombuffer(replies[0], dtype=np.float64)[None]


class Keyless:
    evaluation = b""


@pytest.mark.parametrize(("reply", "wrong"), [((1.0, 2.05), False), ((1.0, 2.2), True), (None, True)])
def test_a_reply_beyond_the_bound_is_wrong(reply: tuple[float, ...] | None, wrong: bool) -> None:
    ask = Ask(Job("model", "client", b""), np.array([[1.0, 2.0]]))
    work = Workload("model", "ckks", Path(), Echo(), lambda values: values, {"": Keyless()}, [ask], 0.1)
    assert work.wrong(ask, b"damaged" if reply is None else np.array(reply).tobytes()) is wrong
    assert work.wrong(replace(ask, expected=ask.expected + 1), np.array([1.0, 2.0]).tobytes())


@pytest.mark.full
def test_a_small_load_is_answered_without_loss(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    record = load.run(16, lambda *step: told.append(step), clients=4, keys=2)
    assert (record["n"], record["lost"], record["wrong"], record["errors"]) == (16, 0, 0, [])
    assert record["throughput_ratio"] > 0.3 and record["memory"]["max_bytes"] > 1 << 26
    assert record["light"]["overhead_s"]["p50"] > record["light"]["exchange_s"]["p50"] > 0
    assert 0.5 < record["evaluation_share"] < 1
    for label in {label for label, _, _ in told}:
        done = [(done, total) for name, done, total in told if name == label]
        assert done[0][0] == 0 and done[-1][0] == done[-1][1] and done == sorted(done), label
    append(tmp_path / "service" / "serve.jsonl", record)
    assert "16 requests of 4 clients" in service(tmp_path)
