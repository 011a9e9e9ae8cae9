"""Graphs on disk: what is written comes back; what is damaged or newer is refused in one way."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings

from secure_infer.errors import BundleError, SecureInferError
from secure_infer.graph import format_graph, interpret, store
from tests.networks import small_graph
from tests.strategies import EXACT_OPS, graphs, inputs_for


@settings(deadline=None)
@given(graphs(EXACT_OPS | {"Polynomial"}))
def test_round_trip(graph) -> None:
    again = store.from_bytes(*store.to_bytes(graph))
    assert format_graph(again) == format_graph(graph)
    assert np.array_equal(interpret(again, inputs_for(graph, 3)), interpret(graph, inputs_for(graph, 3)))
    assert store.fingerprint(again) == store.fingerprint(graph)


def test_the_fingerprint_follows_the_weights() -> None:
    assert store.fingerprint(small_graph(True, 0)) != store.fingerprint(small_graph(True, 1))


def test_a_newer_schema_is_refused() -> None:
    head, weights = store.to_bytes(small_graph(exact=True))
    newer = json.dumps({**json.loads(head), "schema": store.SCHEMA + 1}).encode()
    with pytest.raises(BundleError, match="newer version"):
        store.from_bytes(newer, weights)


def _without(key: str) -> bytes:
    head = json.loads(store.to_bytes(small_graph(exact=True))[0])
    del head[key]
    return json.dumps(head).encode()


@pytest.mark.parametrize("head", [b"", b"{}", b"[]", b"\xff", _without("nodes"), _without("input"), b'{"schema": "x"}'])
def test_malformed_heads_are_refused(head: bytes) -> None:
    with pytest.raises(BundleError, match="can't be read"):
        store.from_bytes(head, store.to_bytes(small_graph(exact=True))[1])


@pytest.mark.parametrize("cut", [0, 3, 20, -1])
def test_truncated_weights_are_refused(cut: int) -> None:
    head, weights = store.to_bytes(small_graph(exact=True))
    with pytest.raises(SecureInferError):
        store.from_bytes(head, weights[:cut])
