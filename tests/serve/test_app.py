"""The interface over real connections: what is answered, and how everything else is refused."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from secure_infer import bundle
from secure_infer.backends.clear import pack_integers, unpack_integers
from secure_infer.errors import LimitExceeded, ProtocolError
from secure_infer.serve.accounts import Limits
from secure_infer.serve.base import Job
from secure_infer.wire import api, frame
from tests.serve.service import Service, inputs, make_bundle, problem, request_id, serving

INFER = "/v1/models/clear/infer"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("served")
    for protocol in ("clear", "ckks"):
        make_bundle(folder, protocol)
    with serving(folder, linger_s=0.5) as found:
        yield found


@pytest.fixture
def http(service: Service) -> Iterator[httpx2.Client]:
    service.runner.hook = None
    service.runner.jobs.clear()
    service.runner.ended.clear()
    with service.client() as client:
        yield client


@pytest.fixture(scope="module")
def message(service: Service) -> bytes:
    _, half = bundle.unpack_client_half(service.front.catalog.get("clear").half)
    interface = service.front.catalog.get("clear").interface
    assert half == b""
    return pack_integers(interface.quantize(inputs()))


def test_models_and_client_halves_are_told(http: httpx2.Client, service: Service) -> None:
    entries = {entry["name"]: entry for entry in http.get(api.MODELS).json()["models"]}
    assert set(entries) == {"clear", "ckks"}
    assert (entries["ckks"]["protocol"], entries["ckks"]["party"], entries["ckks"]["parties"]) == ("ckks", 0, 1)
    half = http.get("/v1/models/ckks/client-half")
    digest = hashlib.sha256(half.content).hexdigest()
    assert half.headers["etag"] == f'"{digest}"' == f'"{entries["ckks"]["client_half"]["sha256"]}"'
    assert half.headers[api.PARTY] == "0/1"
    again = http.get("/v1/models/ckks/client-half", headers={"If-None-Match": f'"{digest}"'})
    assert (again.status_code, again.content) == (304, b"")


def test_a_request_is_answered_timed_counted_and_recorded(
    http: httpx2.Client, service: Service, message: bytes
) -> None:
    name = request_id()
    reply = http.post(INFER, content=message, headers={api.IDEMPOTENCY_KEY: name})
    assert reply.status_code == 200
    assert unpack_integers(reply.content).shape == (2, 3)
    assert reply.headers[api.IDEMPOTENCY_KEY] == name
    assert reply.headers[api.SERVER_TIMING].startswith("queue;dur=1.000, load;dur=2.000, run;dur=")
    assert json.loads(reply.headers[api.STATISTICS]) == {"rounds": 3}
    record = [r for r in service.state.audit.records() if r.event.request_id == name]
    assert [(r.event.client, r.event.action, r.event.model, r.event.outcome) for r in record] == [
        ("alice", "infer", "clear", "ok")
    ]
    text = http.get("/metrics").text
    assert 'secure_infer_inferences_total{model="clear"}' in text
    assert "secure_infer_workers_workers 1.0" in text
    assert "secure_infer_keys_whole_keys" in text


ROUTES = [
    ("GET", api.MODELS, "models"),
    ("GET", "/v1/models/clear/client-half", "models"),
    ("HEAD", f"/v1/keys/{'0' * 64}", "keys"),
    ("PUT", f"/v1/keys/{'0' * 64}", "keys"),
    ("DELETE", f"/v1/keys/{'0' * 64}", "keys"),
    ("POST", INFER, "infer"),
    ("GET", "/metrics", "metrics"),
]


@pytest.mark.parametrize(("method", "path", "scope"), ROUTES)
def test_every_route_wants_a_token_of_its_scope(method: str, path: str, scope: str, service: Service) -> None:
    others = tuple(other for other in api.SCOPES if other != scope)
    wrong, right = service.add("bob", others), service.add("bob", (scope,))
    short = service.add("bob", expires=time.time() + 0.2)
    time.sleep(0.25)
    with httpx2.Client(base_url=service.url) as http:
        for token in ("", "nonsense", "Bearer", "Basic YTpi", f"Bearer {right}x", f"Bearer {short}"):
            headers = {"Authorization": token} if token else {}
            reply = http.request(method, path, headers=headers)
            assert reply.status_code == 401
            assert reply.headers["www-authenticate"].startswith("Bearer")
        assert http.request(method, path, headers={"Authorization": f"Bearer {wrong}"}).status_code == 403
        assert http.request(method, path, headers={"Authorization": f"Bearer {right}"}).status_code not in (401, 403)
        if method != "HEAD":
            expired = problem(http.request(method, path, headers={"Authorization": f"Bearer {short}"}))
            assert "expired" in expired["problems"][0]["what"]
    assert ("", "models", "AccessDenied") in service.actions() or scope != "models"


def test_a_revoked_token_ends_at_once(service: Service, message: bytes) -> None:
    token = service.add("carol")
    with httpx2.Client(base_url=service.url, headers={"Authorization": f"Bearer {token}"}) as http:
        assert http.post(INFER, content=message).status_code == 200
        service.state.accounts.revoke("carol")
        assert http.post(INFER, content=message).status_code == 401


def test_open_routes_need_no_token(service: Service) -> None:
    with httpx2.Client(base_url=service.url) as http:
        assert http.get("/healthz").json() == {"status": "ok"}
        assert http.get("/readyz").json() == {"status": "ready"}
        document = http.get("/openapi.json").json()
    assert {path: set(methods) for path, methods in document["paths"].items()} == {
        "/v1/models": {"get"},
        "/v1/models/{model}/client-half": {"get"},
        "/v1/keys/{sha256}": {"head", "put", "delete"},
        "/v1/models/{model}/infer": {"post"},
        "/healthz": {"get"},
        "/readyz": {"get"},
        "/metrics": {"get"},
    }
    for methods in document["paths"].values():
        for operation in methods.values():
            assert operation["summary"]


def test_an_open_server_lets_strangers_in_as_one_client_but_no_false_token(tmp_path: Path, message: bytes) -> None:
    make_bundle(tmp_path, "clear")
    with serving(tmp_path, open=True) as found, httpx2.Client(base_url=found.url) as http:
        assert http.post(INFER, content=message).status_code == 200
        assert found.actions()[-1] == ("anonymous", "infer", "ok")
        assert http.post(INFER, content=message, headers={"Authorization": "Bearer x"}).status_code == 401
        for host in ("rebound.example.com", "127.0.0.1.example.com", "10.0.0.1:80"):
            assert http.post(INFER, content=message, headers={"Host": host}).status_code == 403
        for host in ("localhost:1", "[::1]"):
            assert http.post(INFER, content=message, headers={"Host": host}).status_code == 200


def _altered(message: bytes) -> bytes:
    return message[:-1] + bytes([message[-1] ^ 1])


def _many() -> bytes:
    return pack_integers(np.zeros((100, 6), dtype="int64"))


BAD = {
    "empty": (b"", {}, 400, "BundleError"),
    "no frame": (b"GARBAGE" * 10, {}, 400, "BundleError"),
    "truncated": (lambda m: m[:-1], {}, 400, "BundleError"),
    "altered": (_altered, {}, 400, "BundleError"),
    "another kind": (frame.pack("ckks-input", [b"x"]), {}, 400, "BundleError"),
    "a frame that lies": (frame.MAGIC + bytes(32) + b"\xff\xff\xff\x7f", {}, 400, "BundleError"),
    "out of range": (pack_integers(np.full((1, 6), 99)), {}, 400, "BundleError"),
    "oversized": (bytes(1 << 20), {}, 413, "LimitExceeded"),
    "a form": (lambda m: m, {"Content-Type": "application/x-www-form-urlencoded"}, 415, "InvalidInput"),
    "a strange request id": (lambda m: m, {api.IDEMPOTENCY_KEY: "XYZ"}, 422, "InvalidInput"),
    "a strange key name": (lambda m: m, {api.EVALUATION_KEYS: "../../etc/passwd"}, 422, "InvalidInput"),
    "keys that are not held": (lambda m: m, {api.EVALUATION_KEYS: "0" * 64}, 409, "KeyMismatch"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_messages_are_refused_and_the_connection_stays_usable(
    case: str, http: httpx2.Client, service: Service, message: bytes
) -> None:
    body, headers, status, kind = BAD[case]
    reply = http.post(INFER, content=body(message) if callable(body) else body, headers=headers)
    assert problem(reply)["type"] == api.URN + kind
    assert reply.status_code == status
    assert service.actions()[-1][:2] == ("alice", "infer")
    assert service.actions()[-1][2] != "ok"
    assert http.post(INFER, content=message).status_code == 200


def test_a_body_that_does_not_say_its_length_is_counted(http: httpx2.Client, message: bytes) -> None:
    assert http.post(INFER, content=iter([message[:50], message[50:]])).status_code == 200
    reply = http.post(INFER, content=(bytes(1 << 16) for _ in range(20)))
    assert (reply.status_code, problem(reply)["type"]) == (413, api.URN + "LimitExceeded")


def test_the_number_of_inputs_is_bounded(http: httpx2.Client, service: Service) -> None:
    most = service.front.options.samples
    fits = service.front.catalog.get("ckks").sizes
    parts = [b""] * (most * fits.sample_parts + 1)
    reply = http.post(
        "/v1/models/ckks/infer", content=frame.pack("ckks-input", parts), headers={api.EVALUATION_KEYS: "0" * 64}
    )
    assert reply.status_code == 413
    assert not service.runner.jobs


def test_models_that_need_keys_say_so(http: httpx2.Client) -> None:
    reply = http.post("/v1/models/ckks/infer", content=frame.pack("ckks-input", [b""]))
    assert (reply.status_code, problem(reply)["type"]) == (409, api.URN + "KeyMismatch")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1/models/nothing/client-half", 404),
        ("POST", "/v1/models/nothing/infer", 404),
        ("POST", f"/v1/models/{'x' * 200}/infer", 422),
        ("POST", "/v1/models/..%2f..%2fetc/infer", 404),
        ("GET", INFER, 405),
        ("PATCH", api.MODELS, 405),
        ("POST", f"/v1/keys/{'0' * 64}", 405),
        ("PUT", "/v1/keys/ABC", 422),
        ("DELETE", f"/v1/keys/{'0' * 64}", 404),
        ("GET", "/docs", 404),
    ],
)
def test_errors_of_the_framework_are_problem_documents(
    method: str, path: str, status: int, http: httpx2.Client
) -> None:
    reply = http.request(method, path)
    assert reply.status_code == status
    assert problem(reply)["problems"]
    if status == 405:
        assert reply.headers["allow"] in ("GET", "POST", "GET, HEAD", "DELETE, HEAD, PUT")


def test_the_same_request_is_run_once(http: httpx2.Client, service: Service, message: bytes) -> None:
    headers = {api.IDEMPOTENCY_KEY: request_id()}
    first, second = (http.post(INFER, content=message, headers=headers) for _ in range(2))
    assert first.content == second.content
    assert (api.REPLAYED in first.headers, second.headers[api.REPLAYED]) == (False, "true")
    other = http.post(INFER, content=pack_integers(unpack_integers(message)[:1]), headers=headers)
    assert problem(other)["type"] == api.URN + "InvalidInput"
    assert len(service.runner.jobs) == 1


def test_two_connections_with_the_same_request_share_one_run(
    http: httpx2.Client, service: Service, message: bytes
) -> None:
    async def slow(_: Job) -> None:
        await asyncio.sleep(0.3)

    service.runner.hook = slow
    headers = {api.IDEMPOTENCY_KEY: request_id()}
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda _: http.post(INFER, content=message, headers=headers), range(4)))
    assert {reply.status_code for reply in replies} == {200}
    assert len({reply.content for reply in replies}) == 1
    assert len(service.runner.jobs) == 1


def test_a_spent_budget_is_429_with_its_time(service: Service, message: bytes) -> None:
    token = service.add("dave", limits=Limits(per_hour=2))
    with httpx2.Client(base_url=service.url, headers={"Authorization": f"Bearer {token}"}) as http:
        replies = [http.post(INFER, content=message) for _ in range(3)]
    assert [reply.status_code for reply in replies] == [200, 200, 429]
    found = problem(replies[-1])
    assert found["type"] == api.URN + "LimitExceeded"
    assert 0 < found["retry_after"] <= 3600
    assert 0 <= int(replies[-1].headers["retry-after"]) - found["retry_after"] < 1
    assert "ask again in" in found["problems"][0]["fix"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (LimitExceeded("The queue is full.", retry_after=3), 429),
        (ProtocolError("The worker died."), 503),
        (RuntimeError("a defect"), 503),
    ],
)
def test_failures_of_workers_are_told_and_charged_once(
    error: Exception, status: int, http: httpx2.Client, service: Service, message: bytes
) -> None:
    async def fail(_: Job) -> None:
        raise error

    before = service.state.budgets.spent("alice")["day"].requests
    headers = {api.IDEMPOTENCY_KEY: request_id()}
    service.runner.hook = fail
    replies = [http.post(INFER, content=message, headers=headers) for _ in range(2)]
    assert [reply.status_code for reply in replies] == [status, status]
    assert "a defect" not in replies[0].text
    assert ("retry-after" in replies[0].headers) == (status == 429)
    service.runner.hook = None
    assert http.post(INFER, content=message, headers=headers).status_code == 200
    assert service.state.budgets.spent("alice")["day"].requests - before == 1


def test_a_request_is_canceled_when_its_client_has_gone_for_long(
    http: httpx2.Client, service: Service, message: bytes
) -> None:
    canceled = []

    async def endless(_: Job) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            canceled.append(time.monotonic())
            raise

    service.runner.hook = endless
    headers = {api.IDEMPOTENCY_KEY: request_id()}
    start = time.monotonic()
    with pytest.raises(httpx2.ReadTimeout):
        http.post(INFER, content=message, headers=headers, timeout=0.2)
    while not canceled and time.monotonic() - start < 10:
        time.sleep(0.02)
    assert canceled[0] - start >= 0.2 + service.front.options.linger_s
    service.runner.hook = None
    time.sleep(0.1)
    assert http.post(INFER, content=message, headers=headers).status_code == 200


def test_a_client_that_comes_back_finds_its_request_going_on(
    http: httpx2.Client, service: Service, message: bytes
) -> None:
    async def slow(_: Job) -> None:
        await asyncio.sleep(0.6)

    service.runner.hook = slow
    headers = {api.IDEMPOTENCY_KEY: request_id()}
    with pytest.raises(httpx2.ReadTimeout):
        http.post(INFER, content=message, headers=headers, timeout=0.2)
    assert http.post(INFER, content=message, headers=headers).status_code == 200
    assert len(service.runner.jobs) == len(service.runner.ended) == 1


def test_a_removed_model_is_no_longer_offered(tmp_path: Path, message: bytes) -> None:
    for name in ("one", "two"):
        make_bundle(tmp_path, "clear", name)
    with serving(tmp_path) as found, found.client() as http:
        assert http.post("/v1/models/one/infer", content=message).status_code == 200
        (tmp_path / "one.bundle").unlink()
        for reply in (http.post("/v1/models/one/infer", content=message), http.get("/v1/models/one/client-half")):
            assert reply.status_code == 404
            assert "removed" in problem(reply)["problems"][0]["what"]
        assert [entry["name"] for entry in http.get(api.MODELS).json()["models"]] == ["two"]
        assert http.post("/v1/models/two/infer", content=message).status_code == 200


def test_a_server_that_stops_answers_what_is_under_way(tmp_path: Path, message: bytes) -> None:
    make_bundle(tmp_path, "clear")

    with serving(tmp_path) as found, found.client() as http, ThreadPoolExecutor(1) as pool:

        async def slow(_: Job) -> None:
            found.server.stop()
            await asyncio.sleep(0.5)

        found.runner.hook = slow
        reply = pool.submit(http.post, INFER, content=message).result()
        assert reply.status_code == 200
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(found.url + "/healthz")


def test_every_refusal_names_the_request(http: httpx2.Client) -> None:
    found: dict[str, Any] = problem(http.get("/v1/models/nothing/client-half"))
    assert found["instance"] == "/v1/models/nothing/client-half"
