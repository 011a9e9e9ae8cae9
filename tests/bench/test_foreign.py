"""Peers in environments of their own, by a stand-in library: this very interpreter and numpy."""

from __future__ import annotations

import io
import mmap
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from secure_infer.bench import memory, run_case
from secure_infer.bench.cases import Case, Entry
from secure_infer.bench.peers import foreign, helayers, load_peer, pipe
from secure_infer.errors import DataError, MissingExtra, ProtocolError, UnsupportedNetwork
from secure_infer.graph import interpret_real
from tests.bench.networks import binary_mlp, polynomial_cnn, subject
from tests.bench.test_runner import check_record

ADAPTER = """
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

class Session:
    def __init__(self, meta, arrays):
        print("a library that prints")
        self.layers, self.arrays = meta["layers"], arrays
        setup = {"wall_s": {"keygen": 0.5}, "cpu_s": {"keygen": 0.25}, "evaluation_keys_sent": 7}
        self.setup = {**setup, "parameters": meta["options"]}

    def infer(self, x):
        for index, layer in enumerate(self.layers):
            x = x**2 if index else x
            weight, bias = self.arrays[f"w{index}"], self.arrays[f"b{index}"]
            if layer["kind"] == "conv":
                pad, stride = layer["padding"], layer["stride"]
                x = np.pad(x, [(0, 0), (0, 0), (pad, pad), (pad, pad)])
                view = sliding_window_view(x, weight.shape[2:], axis=(2, 3))[:, :, ::stride, ::stride]
                x = np.einsum("nchwij,ocij->nohw", view, weight) + bias[:, None, None]
            else:
                x = x.reshape(len(x), -1) @ weight.T + bias
        seconds = {"encrypt": 0.1, "run": 0.2, "decrypt": 0.3}
        return x[0], {"wall_s": seconds, "cpu_s": seconds, "bytes": {"input": 3, "output": 2}}
"""
ENTRY = Entry("ckks", "tiny", 3, peer="orion")


@pytest.fixture
def peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a peer of an adapter's source."""
    monkeypatch.setenv("SECURE_INFER_STANDIN_PYTHON", sys.executable)

    def make(source: str) -> type[foreign.Foreign]:
        path = tmp_path / "adapter.py"
        path.write_text(source)
        return type("StandIn", (foreign.Foreign,), {"name": "standin", "packages": "numpy", "adapter": str(path)})

    return make


def test_the_layers_are_the_same_function_on_the_other_side(peer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secure_infer.bench.runner.load_peer", lambda name: peer(ADAPTER))
    entry = Entry("ckks", "tiny", 3, peer="orion", options={"ring_type": "standard"})
    (record,) = run_case(Case("one", "t", (entry,)), load=lambda name: subject(polynomial_cnn()))
    check_record(record)
    assert record["agreement"] == 1 and record["max_error"] < 1e-9
    assert (record["wall_s"]["run"], record["cpu_s"]["keygen"], record["wall_s"]["compile"]) == (0.2, 0.25, None)
    assert record["bytes"]["input"] == 3 and record["bytes"]["evaluation_keys_sent"] == 7
    assert record["parameters"] == {"ring_type": "standard"}
    assert record["peak_memory"] > 1e7


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("import no_such_library", MissingExtra, "no_such_library"),
        ("raise SystemExit(1)", ProtocolError, "ended"),
        (ADAPTER.replace("self.setup =", "self.unset ="), ProtocolError, "ended"),
    ],
)
def test_a_peer_that_does_not_start_is_an_error_of_ours(
    peer: Any, source: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        peer(source)(subject(polynomial_cnn()), ENTRY)


def test_what_a_foreign_peer_can_not_do_is_refused(peer: Any) -> None:
    with pytest.raises(UnsupportedNetwork, match="neither affine nor a quadratic"):
        foreign.layers_of(binary_mlp())
    standin = peer(ADAPTER)(subject(polynomial_cnn()), ENTRY)
    with pytest.raises(UnsupportedNetwork, match="one image"):
        standin.infer(subject(polynomial_cnn()).x[:2])
    standin.close()
    with pytest.raises(ProtocolError):
        standin.infer(subject(polynomial_cnn()).x[:1])


def test_an_absent_environment_says_how_to_make_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SECURE_INFER_ORION_PYTHON", raising=False)
    with pytest.raises(MissingExtra) as caught:
        load_peer("orion")(subject(polynomial_cnn()), ENTRY)
    (problem,) = caught.value.problems
    assert "pip install orion-v2-compiler" in problem.fix and "SECURE_INFER_ORION_PYTHON" in problem.fix
    monkeypatch.setenv("SECURE_INFER_ORION_PYTHON", "/nowhere/python")
    with pytest.raises(MissingExtra, match="can't be run"):
        load_peer("orion")(subject(polynomial_cnn()), ENTRY)


def test_a_licence_is_accepted_by_the_user_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECURE_INFER_HELAYERS_PYTHON", sys.executable)
    for answer in (None, "no", "1"):
        monkeypatch.delenv(helayers.ACCEPTED, raising=False)
        if answer:
            monkeypatch.setenv(helayers.ACCEPTED, answer)
        with pytest.raises(MissingExtra, match="licence"):
            load_peer("helayers")(subject(polynomial_cnn()), ENTRY)


def test_messages_hold_plain_arrays_only() -> None:
    stream = io.BytesIO()
    pipe.write(stream, {"a": [1, "b"]}, {"x": np.arange(3.0)})
    stream.seek(0)
    meta, arrays = pipe.read(stream) or ({}, {})
    assert meta == {"a": [1, "b"]} and arrays["x"].tolist() == [0, 1, 2]
    assert pipe.read(stream) is None
    body = io.BytesIO()
    np.savez(body, meta=np.array([print], dtype=object))
    stream = io.BytesIO(len(body.getvalue()).to_bytes(8, "little") + body.getvalue())
    with pytest.raises(ValueError, match="allow_pickle"):
        pipe.read(stream)
    with pytest.raises(ValueError, match="bytes"):
        pipe.read(io.BytesIO(b"\xff" * 8))


def test_peak_memory_counts_what_was_used_since_the_reset() -> None:
    memory.reset()
    before = memory.peak()
    with mmap.mmap(-1, 64 << 20) as block:  # an array might get memory that others have left resident
        np.copyto(np.frombuffer(block, np.uint8), 1)
        after = memory.peak()
        assert before is not None and after is not None and after - before > 0.9 * len(block)
    assert memory.peak() == pytest.approx(after, rel=0.2)


@pytest.mark.full
@pytest.mark.parametrize("name", ["orion", "helayers"])
def test_the_libraries_themselves(name: str) -> None:
    entry = Entry("ckks", "mnist-cnn-poly", 2, peer=name)
    try:
        (record,) = run_case(Case("one", "t", (entry,)))
    except (MissingExtra, DataError) as error:
        pytest.skip(str(error))
    check_record(record)
    assert record["agreement"] == 1 and record["max_error"] < 0.1


def test_the_stand_in_agrees_with_the_interpreter_on_the_layers() -> None:
    graph = polynomial_cnn()
    meta, arrays = foreign.layers_of(graph)
    assert [layer["kind"] for layer in meta["layers"]] == ["conv", "linear", "linear"]
    scope: dict[str, Any] = {}
    exec(ADAPTER, scope)
    session = scope["Session"](meta | {"options": {}}, arrays)
    x = subject(graph).x[:1]
    found = session.infer(graph.quantize(x) * graph.input.scale_array())[0]
    np.testing.assert_allclose(found, graph.dequantize(interpret_real(graph, graph.quantize(x)))[0], rtol=1e-9)
