"""Clients that are slow, greedy or rude: each is answered or cut off in time, and the next one is served."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from secure_infer.backends.clear import pack_integers
from secure_infer.errors import LimitExceeded
from secure_infer.serve.base import Done, Job
from secure_infer.serve.guards import Guards, Memory
from secure_infer.wire import api
from tests.serve.service import Service, inputs, make_bundle, problem, request_id, serving

GUARDS = Guards(connections=8, head_bytes=4096, head_s=0.4, idle_s=0.4, rate=1000, write_s=0.5, body_bytes=1 << 20)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("served")
    make_bundle(folder, "clear")
    with serving(folder, guards=GUARDS) as found:
        yield found


def _until_closed(bare: socket.socket) -> bytes:
    found = b""
    while chunk := bare.recv(1 << 16):
        found += chunk
    return found


def _answer(data: bytes) -> tuple[int, dict[str, str], dict[str, object]]:
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    assert len(body) == int(headers["content-length"])
    assert headers["content-type"] == "application/problem+json"
    return int(first.split()[1]), headers, json.loads(body)


def _head(service: Service, length: int, extra: str = "") -> bytes:
    lines = ["POST /v1/models/clear/infer HTTP/1.1", "Host: x", f"Authorization: Bearer {service.token}"]
    return "\r\n".join([*lines, f"Content-Length: {length}{extra}", "", ""]).encode()


def _still_serves(service: Service) -> None:
    with service.client() as http:
        message = pack_integers(service.front.catalog.get("clear").interface.quantize(inputs()))
        assert http.post("/v1/models/clear/infer", content=message).status_code == 200


@pytest.mark.parametrize("drip", [b"", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nX-Slow: "])
def test_a_slow_head_is_cut_off_in_time(drip: bytes, service: Service) -> None:
    start = time.monotonic()
    with service.connection() as bare:
        bare.settimeout(0.05)
        bare.sendall(drip)
        data = b""
        while True:  # a byte now and then does not buy time
            try:
                chunk = bare.recv(1 << 16)
            except TimeoutError:
                if drip:
                    bare.sendall(b"x")
                continue
            if not chunk:
                break
            data += chunk
    assert time.monotonic() - start < 5
    assert _answer(data)[0] == 408
    _still_serves(service)


def test_a_slow_second_head_is_cut_off_too(service: Service) -> None:
    with service.connection() as bare:
        bare.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in bare.recv(1 << 16)
        bare.sendall(b"GET /heal")
        assert _answer(_until_closed(bare))[0] == 408


@pytest.mark.parametrize("drip", [False, True])
def test_a_body_that_stops_or_drips_is_408(drip: bool, service: Service) -> None:
    with service.connection() as bare:
        bare.sendall(_head(service, 2000))
        start, data = time.monotonic(), b""
        bare.settimeout(0.1)
        while time.monotonic() - start < 8:
            try:
                chunk = bare.recv(1 << 16)
            except TimeoutError:
                if drip:
                    bare.sendall(b"x")
                continue
            if not chunk:
                break
            data += chunk
    status, headers, _ = _answer(data)
    assert (status, headers["connection"]) == (408, "close")
    _still_serves(service)


def test_a_long_head_is_refused(service: Service) -> None:
    with service.connection() as bare:
        bare.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 8000 + b"\r\n\r\n")
        status, _, document = _answer(_until_closed(bare))
    assert status == 431
    assert "4096 bytes" in str(document)


def test_an_endless_head_is_refused(service: Service) -> None:
    with service.connection() as bare:
        bare.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: ")
        bare.sendall(b"x" * 4096)
        assert _answer(_until_closed(bare))[0] == 400


@pytest.mark.parametrize(
    "words",
    [
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost x\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused(words: bytes, service: Service) -> None:
    with service.connection() as bare:
        bare.sendall(words)
        assert _answer(_until_closed(bare))[0] in (400, 408)


@pytest.mark.parametrize(
    "extra", ["\r\nContent-Length: 5", "\r\nTransfer-Encoding: chunked", "\r\nTransfer-Encoding: gzip", "x"]
)
def test_lengths_that_contradict_one_another_are_refused(extra: str, service: Service) -> None:
    """Else a proxy in front of the server may see other requests in the same bytes ("request smuggling")."""
    with service.connection() as bare:
        bare.sendall(_head(service, 4, extra) + b"0\r\n\r\nGET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        data = _until_closed(bare)
    assert data.count(b"HTTP/1.1 ") == 1
    assert _answer(data)[0] in (400, 408, 501)


def test_too_many_connections_are_refused_and_then_served_again(service: Service) -> None:
    held = [service.connection() for _ in range(GUARDS.connections)]
    try:
        time.sleep(0.1)
        with service.connection() as bare:
            status, headers, _ = _answer(_until_closed(bare))
        assert (status, headers["retry-after"]) == (503, "1")
    finally:
        for connection in held:
            connection.close()
    time.sleep(0.1)
    _still_serves(service)


def test_a_client_that_does_not_read_is_cut_off(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    async def large(job: Job) -> Done:
        return Done(bytes(32 << 20), 0, 0, 0, 0)

    message = pack_integers(service.front.catalog.get("clear").interface.quantize(inputs()))
    monkeypatch.setattr(service.runner, "run", large)
    with service.connection() as bare:
        bare.sendall(_head(service, len(message)) + message)
        time.sleep(2)
        data = b""
        with pytest.raises(ConnectionResetError):
            data = _until_closed(bare)
            raise ConnectionResetError if len(data) < 32 << 20 else AssertionError


def test_a_refused_body_is_not_read_as_the_next_request(service: Service) -> None:
    body = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    with service.connection() as bare:
        head = f"POST /v1/models/clear/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        bare.sendall(head + body + b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        data = _until_closed(bare)
    assert re.findall(rb"HTTP/1.1 (\d+)", data) == [b"401", b"200"]
    assert data.endswith(b'{"status":"ready"}')


def test_a_refused_upload_that_goes_on_and_on_is_closed(service: Service) -> None:
    with service.connection() as bare:
        bare.sendall(b"POST /v1/models/clear/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000000\r\n\r\n")
        start = time.monotonic()
        try:
            while time.monotonic() - start < 10:
                bare.sendall(bytes(1 << 16))
        except (BrokenPipeError, ConnectionResetError):
            pass
    assert time.monotonic() - start < 5
    _still_serves(service)


def test_who_waits_for_leave_to_send_is_told_no_at_once(service: Service) -> None:
    with service.connection() as bare:
        bare.sendall(_head(service, 1 << 30, "\r\nExpect: 100-continue"))
        status, headers, _ = _answer(_until_closed(bare))
    assert (status, headers["connection"]) == (413, "close")


def test_requests_in_memory_are_bounded_together(service: Service, tmp_path: Path) -> None:
    memory = Memory(100)
    with memory.reserve(60):
        with pytest.raises(LimitExceeded) as refused, memory.reserve(60):
            pass
        assert refused.value.retry_after == 1
        with memory.reserve(40):
            assert memory.used == 100
    assert memory.used == 0


def test_a_busy_server_says_try_again(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.front, "memory", Memory(10))
    with service.client() as http:
        reply = http.post("/v1/models/clear/infer", content=bytes(100))
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "1")


def test_nothing_is_left_behind(service: Service) -> None:
    assert service.front.memory.used == 0
    assert not service.front.inferences._pending
    with httpx2.Client(base_url=service.url) as http:
        assert http.get("/healthz").status_code == 200


def test_a_disk_that_is_full_at_a_request_is_507_and_the_request_may_come_again(tmp_path: Path) -> None:
    compiled = make_bundle(tmp_path, "clear")
    message = pack_integers(compiled.interface.quantize(inputs()))

    def most_pages(count: int) -> None:
        with found.state._database.transaction() as transaction:
            transaction.one(f"PRAGMA max_page_count = {count}")

    with serving(tmp_path) as found, found.client() as http:
        most_pages(1)  # not below what there is
        for _ in range(100):
            headers = {api.IDEMPOTENCY_KEY: request_id()}
            reply = http.post("/v1/models/clear/infer", content=message, headers=headers)
            if reply.status_code != 200:
                break
        assert (reply.status_code, problem(reply)["type"]) == (507, api.URN + "LimitExceeded")
        assert int(reply.headers["retry-after"]) > 0
        most_pages(1 << 20)
        assert http.post("/v1/models/clear/infer", content=message, headers=headers).status_code == 200
