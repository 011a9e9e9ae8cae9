"""The frame refuses everything that is not a whole, unaltered frame of the expected kind."""

from __future__ import annotations

import hashlib
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_infer.errors import BundleError
from secure_infer.wire import frame


def _forged(header: object, body: bytes = b"") -> bytes:
    """A frame with a valid SHA-256 over a header of our choice."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    rest = struct.pack("<I", len(text)) + text + body
    return frame.MAGIC + hashlib.sha256(rest).digest() + rest


@given(st.lists(st.binary(max_size=50)), st.dictionaries(st.text(max_size=5), st.integers()))
def test_round_trip(parts: list[bytes], meta: dict[str, int]) -> None:
    received = frame.unpack(frame.pack("thing", parts, meta), "thing")
    assert list(received.parts) == parts
    assert received.meta == meta


def test_the_layout_is_the_documented_one() -> None:
    data = frame.pack("k", [b"ab", b"c"], {"n": 1})
    header = b'{"kind": "k", "parts": [2, 1], "meta": {"n": 1}}'
    body = struct.pack("<I", len(header)) + header + b"abc"
    assert data == b"SIF1" + hashlib.sha256(body).digest() + body


@given(st.data())
def test_any_altered_or_missing_byte_is_noticed(data: st.DataObject) -> None:
    whole = frame.pack("thing", [b"some", b"parts"], {"n": 3})
    at = data.draw(st.integers(0, len(whole) - 1))
    altered = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    for bad in (altered, whole[:at], whole + b"x"):
        with pytest.raises(BundleError):
            frame.unpack(bad, "thing")


@given(st.binary(max_size=200))
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises(BundleError):
        frame.unpack(noise, "thing")


@pytest.mark.parametrize(
    "bad",
    [
        frame.pack("other", []),
        _forged(b"not json"),
        _forged([]),
        _forged({"kind": "thing", "parts": [-1], "meta": {}}),
        _forged({"kind": "thing", "parts": [1 << 62], "meta": {}}),
        _forged({"kind": "thing", "parts": ["1"], "meta": {}}, b"1"),
        _forged({"kind": "thing", "parts": 3, "meta": {}}),
        _forged({"kind": "thing", "parts": [True], "meta": {}}, b"1"),
        _forged({"kind": "thing", "parts": [], "meta": 3}),
        _forged({"kind": "thing", "meta": {}}),
        frame.MAGIC + bytes(32) + struct.pack("<I", 1 << 31),
    ],
)
def test_forged_headers_are_refused(bad: bytes) -> None:
    with pytest.raises(BundleError):
        frame.unpack(bad, "thing")


def test_a_header_nested_too_deeply_is_refused() -> None:
    with pytest.raises(BundleError, match="header is not readable"):
        frame.unpack(
            _forged(b'{"kind":"thing","parts":[],"meta":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}"), "thing"
        )
