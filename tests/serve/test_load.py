"""The load run against a real server: nothing lost, nothing wrong, and wrong answers would be seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tenseal")
pytest.importorskip("uvicorn")

from secure_infer.bench import load
from secure_infer.bench.service import Ask, Workload
from secure_infer.errors import DecryptionError
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
def test_a_small_load_is_answered_without_loss() -> None:
    record = load.run(16, clients=4, keys=2)
    assert (record["n"], record["lost"], record["wrong"], record["errors"]) == (16, 0, 0, [])
    assert record["throughput_ratio"] > 0.3 and record["memory"]["max_bytes"] > 1 << 26
    assert record["light"]["overhead_s"]["p50"] > 0
