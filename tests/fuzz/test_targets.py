"""The fuzz targets work without a fuzzer: their seeds are good, some thousand inputs pass, and they notice a defect."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from secure_infer import bundle
from secure_infer.backends.clear import unpack_integers
from secure_infer.serve.party_files import PartyHalf
from secure_infer.wire import frame
from tests.fuzz import seeds
from tests.fuzz.targets import TARGETS, bent

RUNS = {"frame": 3000, "messages": 500, "bundle": 200}


def test_seeds_are_good(tmp_path: Path) -> None:
    graph, interface, _ = bundle.load(seeds.save(tmp_path / "good"))
    assert interface.input == graph.input
    assert bundle.unpack_client_half(seeds.client_half())[0].protocol == "clear"
    assert PartyHalf.unpack(seeds.party_half()).parties == 2
    assert unpack_integers(seeds.array()).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert set(seeds.seeds()) == set(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_readers_keep_their_promise(name: str) -> None:
    target, rng = TARGETS[name](), random.Random(name)
    for data in seeds.seeds()[name].values():
        target(data)
        for _ in range(RUNS[name] // 10):
            changed = bytearray(data[:2000] + rng.randbytes(rng.randrange(9)))
            changed[rng.randrange(len(changed))] = rng.randrange(256)
            target(bytes(changed))
    for _ in range(RUNS[name]):
        target(rng.randbytes(rng.randrange(30)))


def test_a_defect_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(data: bytes, kind: str) -> frame.Frame:
        raise KeyError("kind")

    target = TARGETS["frame"]()
    monkeypatch.setattr(frame, "unpack", careless)
    with pytest.raises(KeyError):
        target(b"\0anything")


def test_documents_are_bent() -> None:
    text = b'{"a": [1, 2], "b": {"c": "d"}}'
    rng = random.Random(1)
    found = {repr(bent(text, rng.randbytes(3))) for _ in range(500)}
    assert len(found) > 100
    assert repr(bent(text, b"")) == repr({"a": [1, 2], "b": {"c": "d"}})
