"""Requests that nobody has thought of: whatever comes, the answer is one of those that the interface describes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_infer.wire import api, frame
from tests.serve.service import Service, make_bundle, problem, serving

KNOWN = [api.MODELS, "/v1/models/clear/client-half", "/v1/models/clear/infer", "/v1/models/ckks/infer"]
KNOWN += [f"/v1/keys/{'0' * 64}", "/healthz", "/readyz", "/metrics", "/openapi.json"]
HEADERS = [
    "Content-Range",
    "Content-Type",
    api.EVALUATION_KEYS,
    api.IDEMPOTENCY_KEY,
    "If-None-Match",
    "Accept",
    "Range",
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("served")
    for protocol in ("clear", "ckks"):
        make_bundle(folder, protocol)
    with serving(folder) as found:
        yield found


@pytest.fixture(scope="module")
def http(service: Service) -> Iterator[httpx2.Client]:
    with service.client() as client:
        yield client


_text = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=40)
_range = st.builds("bytes {}-{}/{}".format, *[st.integers(-1, 2**70)] * 3)
_paths = st.one_of(st.sampled_from(KNOWN), _text.map(lambda text: f"/v1/{text}"), _text.map(lambda text: f"/{text}"))
_values = st.one_of(_text, _range, st.sampled_from(["0" * 64, "0" * 32, api.OCTETS, "*"]))
_bodies = st.one_of(
    st.binary(max_size=200),
    st.builds(
        frame.pack,
        st.sampled_from(["integers", "ckks-input", "ckks-evaluation"]),
        st.lists(st.binary(max_size=50), max_size=4),
        st.dictionaries(st.sampled_from(["shape", "model", "key", "count"]), st.integers() | st.lists(st.integers())),
    ),
)


@settings(max_examples=80, deadline=None)
@given(
    method=st.sampled_from(["GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "OPTIONS", "TRACE"]),
    path=_paths,
    headers=st.dictionaries(st.sampled_from(HEADERS), _values, max_size=4),
    body=_bodies,
)
def test_whatever_is_asked_is_answered_or_refused(
    http: httpx2.Client, method: str, path: str, headers: dict[str, str], body: bytes
) -> None:
    try:
        reply = http.request(method, path, headers=headers, content=body)
    except httpx2.InvalidURL:
        return
    assert reply.status_code < 500
    if reply.status_code >= 400 and method != "HEAD":
        problem(reply)
    assert http.get("/healthz").status_code == 200


@pytest.mark.full
def test_the_interface_is_what_its_description_says(service: Service, tmp_path: Path) -> None:
    """Schemathesis, but for its belief that any octets are a message."""
    command = [Path(sys.executable).with_name("schemathesis"), "run", f"{service.url}/openapi.json"]
    options = ["--url", service.url, "-H", f"Authorization: Bearer {service.token}", "--max-examples", "40"]
    options += ["--exclude-checks", "positive_data_acceptance", "--generation-database", "none", "--no-color"]
    words = list(map(str, [*command, *options]))
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "9 selected" in done.stdout
