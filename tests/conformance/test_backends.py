"""Every installed backend, on real ciphertexts, equals the interpreter: exactly, or within its stated bound."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import secure_infer as si
from secure_infer import backends, bundle
from secure_infer.backends.base import Keys
from secure_infer.client import Client, read_keys, write_keys
from secure_infer.compiler import Compiled
from secure_infer.errors import BundleError, DecryptionError, InvalidInput, KeyMismatch, SecureInferError, UsageError
from secure_infer.graph import Graph, interpret, interpret_real
from secure_infer.graph.types import Integers
from tests.networks import all_corners, small_graph
from tests.strategies import EXACT_OPS, REAL_OPS, graphs, inputs_for

DRAWN = {"clear": 50, "tfhe": 3, "ckks": 4, "mpc": 3}
"""How many networks are drawn here; each backend's own tests draw many more where that is cheap."""

PROTOCOLS = backends.protocols()
"""A new backend joins by its entry point alone."""
OPTIONAL = {"mpc-spu": "spu"}
"""Libraries that not every machine that runs the tests has."""


def _require(protocol: str) -> None:
    if protocol in OPTIONAL:
        pytest.importorskip(OPTIONAL[protocol])


def _expected(compiled: Compiled, x: Integers) -> npt.NDArray[np.float64]:
    evaluate = interpret if backends.load(compiled.protocol).exact else interpret_real
    return compiled.graph.dequantize(evaluate(compiled.graph, x))


def _assert_close(compiled: Compiled, outputs: npt.NDArray[np.float64], expected: npt.NDArray[np.float64]) -> None:
    bound = compiled.guarantee.error_bound
    assert (bound is None) == backends.load(compiled.protocol).exact
    assert np.abs(outputs - expected).max() <= (bound or 0.0)


@pytest.fixture(scope="module", params=PROTOCOLS)
def compiled(request: pytest.FixtureRequest) -> Iterator[Compiled]:
    _require(request.param)
    graph = small_graph(backends.load(request.param).exact)
    model = si.compile(graph, all_corners(graph), protocol=request.param)
    yield model
    model.close()


@pytest.fixture(scope="module")
def x(compiled: Compiled) -> npt.NDArray[np.float64]:
    return all_corners(compiled.graph, 1, seed=1)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_drawn_networks(protocol: str) -> None:
    _require(protocol)
    ops = EXACT_OPS if backends.load(protocol).exact else REAL_OPS

    @settings(
        deadline=None,
        max_examples=DRAWN.get(protocol, 3),
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
        derandomize=True,
    )
    @given(graphs(ops, max_layers=3, max_bits=2), st.integers(0, 2**16))
    def equals_the_interpreter(graph: Graph, seed: int) -> None:
        model = si.compile(graph, all_corners(graph), protocol=protocol)
        units = inputs_for(graph, 2, seed)
        try:
            outputs = model.predict(units * graph.input.scale_array())
        finally:
            model.close()
        _assert_close(model, outputs, _expected(model, units))

    equals_the_interpreter()


@pytest.mark.parametrize("mode", ["encrypted", "simulate", "clear"])
def test_a_batch_in_every_mode(compiled: Compiled, x: npt.NDArray[np.float64], mode: str) -> None:
    expected = _expected(compiled, compiled.graph.quantize(x))
    outputs = compiled.predict(x, mode)  # type: ignore[arg-type]
    assert outputs.shape == (3, 3)
    if mode == "clear":
        assert np.array_equal(outputs, expected)
    else:
        _assert_close(compiled, outputs, expected)


def test_a_prediction_says_what_it_took(compiled: Compiled, x: npt.NDArray[np.float64]) -> None:
    prediction = compiled.client().infer(x)
    assert set(prediction.wall_s) == set(prediction.cpu_s) == {"encrypt", "run", "decrypt"}
    assert all(seconds >= 0 for seconds in (*prediction.wall_s.values(), *prediction.cpu_s.values()))
    assert prediction.bytes["input"] > 0
    assert prediction.bytes["output"] > 0


def test_a_saved_bundle_predicts_the_same_with_cached_keys(
    compiled: Compiled, x: npt.NDArray[np.float64], tmp_path: Path
) -> None:
    path = compiled.save(tmp_path / "model.bundle")
    again = si.load(path)
    assert again.guarantee == compiled.guarantee
    assert again.report() == compiled.report()
    made = []
    for _ in range(2):
        with Client.connect(path, key_cache=tmp_path / "keys") as client:
            made.append(client.keys().secret)
            _assert_close(compiled, client.predict(x), _expected(compiled, compiled.graph.quantize(x)))
    assert made[0] == made[1]
    (secret,) = tmp_path.glob("keys/*/secret-key")
    assert secret.stat().st_mode & 0o077 == 0


def test_keys_neither_print_nor_pickle(compiled: Compiled) -> None:
    keys = compiled.client().keys()
    shown = Keys(b"very secret bytes", keys.evaluation)
    assert "secret bytes" not in repr(shown) + str(shown)
    with pytest.raises(TypeError, match="refuse to be pickled"):
        pickle.dumps(keys)


def test_no_server_half_and_no_evaluation_key_holds_the_secret(compiled: Compiled) -> None:
    keys = compiled.client().keys()
    if not keys.secret:
        pytest.skip("this protocol has no keys")
    sample = keys.secret[len(keys.secret) // 2 :][:64]
    for part in (*compiled.program.servers, compiled.program.client, keys.evaluation):
        assert sample not in part


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (np.zeros((1, 7)), "wrong shape"),
        (np.zeros(6), "wrong shape"),
        (np.full((1, 6), np.nan), "NaN"),
        (np.full((1, 6), np.inf), "infinite"),
        (np.full((1, 6), 1e6), "outside the calibrated range"),
        (np.array([["a"] * 6]), "not numeric"),
        (np.zeros((1, 6), dtype=complex), "not numeric"),
    ],
)
def test_bad_inputs_are_refused(compiled: Compiled, bad: npt.NDArray[np.float64], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        compiled.predict(bad)


def test_keys_of_another_model_are_refused(compiled: Compiled, tmp_path: Path) -> None:
    keys = compiled.client().keys()
    half = compiled.program.client
    write_keys(keys, tmp_path / "s", tmp_path / "e", half)
    assert read_keys(tmp_path / "s", tmp_path / "e", half).secret == keys.secret
    with pytest.raises(KeyMismatch):
        read_keys(tmp_path / "s", None, half + b"another")
    with pytest.raises(BundleError, match=r"of the kind .secret-key"):
        read_keys(None, tmp_path / "s", half)


def test_replies_that_are_no_replies_are_refused(compiled: Compiled) -> None:
    role = backends.load(compiled.protocol).client(compiled.program.client)
    keys = compiled.client().keys()
    replies = [b"garbage"] * len(compiled.program.servers)
    with pytest.raises((DecryptionError, BundleError)):
        role.decrypt(replies, keys)


def test_messages_that_are_no_messages_are_refused(compiled: Compiled) -> None:
    client = compiled.client()
    client.keys()
    messages = [b"garbage"] * len(compiled.program.servers)
    with pytest.raises(SecureInferError):
        client._transport.infer(messages, client._key_name)
    x = all_corners(compiled.graph, 1)
    _assert_close(compiled, client.predict(x), _expected(compiled, compiled.graph.quantize(x)))


def test_a_damaged_server_half_is_refused(compiled: Compiled) -> None:
    backend = backends.load(compiled.protocol)
    halves = [half[:-1] + bytes([half[-1] ^ 1]) for half in compiled.program.servers]
    with pytest.raises(BundleError):
        backend.servers(halves)


def test_the_client_half_knows_no_weights(compiled: Compiled) -> None:
    data = bundle.pack_client_half(compiled.interface, compiled.program.client)
    for node in compiled.graph:
        weight = getattr(node.op, "weight", None)
        if weight is not None:
            assert weight.tobytes() not in data
    interface, half = bundle.unpack_client_half(data)
    assert half == compiled.program.client
    assert interface.as_dict() == compiled.interface.as_dict()


def test_the_guarantee_says_everything(compiled: Compiled) -> None:
    guarantee = compiled.guarantee
    assert guarantee.scheme
    assert guarantee.adversary
    assert guarantee.leaks
    assert (guarantee.security_bits is None) == (compiled.protocol == "clear")
    assert str(guarantee.adversary) in compiled.report()


def test_unknown_options_are_refused(compiled: Compiled) -> None:
    graph = compiled.graph
    with pytest.raises(UsageError, match="no option"):
        si.compile(graph, all_corners(graph), protocol=compiled.protocol, no_such_option=1)


def test_unknown_protocols_are_refused() -> None:
    graph = small_graph(exact=True)
    with pytest.raises(UsageError, match="There is no protocol 'rot13'"):
        si.compile(graph, all_corners(graph), protocol="rot13")
