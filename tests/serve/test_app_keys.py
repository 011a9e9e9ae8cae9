"""Evaluation keys over HTTP: whole or absent, in parts, within quotas, and never read by a crypto library here."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from secure_infer.serve.keyfiles import Quotas
from secure_infer.serve.server import Listen
from secure_infer.wire import api, frame
from tests.serve.service import Service, make_bundle, problem, serving

PART = 1 << 16


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("served")
    make_bundle(folder, "ckks")
    with serving(folder) as found:
        yield found


@pytest.fixture
def http(service: Service) -> Iterator[httpx2.Client]:
    with service.client() as client:
        yield client


def _keys(size: int = 3 * PART, kind: str = "ckks-evaluation") -> tuple[bytes, str]:
    keys = frame.pack(kind, [os.urandom(size)])
    return keys, f"/v1/keys/{hashlib.sha256(keys).hexdigest()}"


def _put(http: httpx2.Client, path: str, keys: bytes, start: int, end: int) -> httpx2.Response:
    headers = {"Content-Range": f"bytes {start}-{end - 1}/{len(keys)}"}
    return http.put(path, content=keys[start:end], headers=headers)


def _held(reply: httpx2.Response) -> tuple[int, int]:
    return int(reply.headers[api.UPLOAD_OFFSET]), int(reply.headers[api.UPLOAD_LENGTH])


def test_keys_come_in_parts_and_are_whole_at_the_end(http: httpx2.Client, service: Service) -> None:
    keys, path = _keys()
    assert http.head(path).status_code == 404
    for start in range(0, len(keys), PART):
        end = min(start + PART, len(keys))
        reply = _put(http, path, keys, start, end)
        assert (reply.status_code, _held(reply)) == (201 if end == len(keys) else 202, (end, len(keys)))
        assert _held(http.head(path)) == (end, len(keys))
    name = path.rpartition("/")[2]
    with service.state.keys.hold("alice", name) as file:
        assert file.read_bytes() == keys
    assert _put(http, path, keys, 0, len(keys)).status_code == 201
    assert ("alice", "upload", "ok") in service.actions()


def test_keys_without_a_range_are_the_whole(http: httpx2.Client) -> None:
    keys, path = _keys()
    assert http.put(path, content=keys).status_code == 201


def test_keys_of_one_client_are_not_those_of_another(http: httpx2.Client, service: Service) -> None:
    keys, path = _keys()
    assert http.put(path, content=keys).status_code == 201
    with httpx2.Client(base_url=service.url, headers={"Authorization": f"Bearer {service.add('eve')}"}) as other:
        assert other.head(path).status_code == 404
        assert other.delete(path).status_code == 404
    assert http.head(path).status_code == 200


def test_deleted_keys_are_gone_from_disk_and_workers(http: httpx2.Client, service: Service) -> None:
    keys, path = _keys()
    http.put(path, content=keys)
    assert http.delete(path).status_code == 204
    assert service.runner.forgotten[-1] == path.rpartition("/")[2]
    assert http.head(path).status_code == 404
    assert http.delete(path).status_code == 404


def test_a_part_that_does_not_fit_says_where_to_go_on(http: httpx2.Client) -> None:
    keys, path = _keys()
    _put(http, path, keys, 0, PART)
    for start in (PART + 1, PART - 1):
        reply = _put(http, path, keys, start, 2 * PART)
        assert (reply.status_code, problem(reply)["type"]) == (409, api.URN + "KeyMismatch")
        assert _held(reply) == (PART, len(keys))
    assert _put(http, path, keys, PART, len(keys)).status_code == 201


def test_a_lost_connection_leaves_what_had_come(http: httpx2.Client, service: Service) -> None:
    keys, path = _keys(4 << 20)
    with service.connection() as bare:
        head = f"PUT {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {service.token}\r\n"
        bare.sendall(f"{head}Content-Length: {len(keys)}\r\n\r\n".encode() + keys[: 3 << 20])
    held = 0
    for _ in range(100):
        reply = http.head(path)
        held = _held(reply)[0] if reply.status_code == 200 else 0
        if held:
            break
    assert 1 << 20 <= held <= 3 << 20
    for _ in range(100):
        if (reply := _put(http, path, keys, held, len(keys))).status_code != 409:
            break
        held = _held(reply)[0]
    assert reply.status_code in (201, 429)


BAD = {
    "no frame": (b"GARBAGE" * 1000, {}, 400),
    "messages are no keys": (frame.pack("ckks-input", [bytes(100)]), {}, 400),
    "secret keys": (frame.pack("ckks-secret", [bytes(100)]), {}, 400),
    "parts that lie": (frame.pack("ckks-evaluation", [bytes(100)]) + b"more", {}, 400),
    "another name": (frame.pack("ckks-evaluation", [bytes(100)]), {}, 422),
    "empty": (b"", {}, 422),
    "a range that ends before it begins": (b"x", {"Content-Range": "bytes 5-4/10"}, 422),
    "a range beyond the whole": (b"x" * 11, {"Content-Range": "bytes 0-10/10"}, 422),
    "a range of another length": (b"x" * 5, {"Content-Range": "bytes 0-9/10"}, 422),
    "a range in words": (b"x", {"Content-Range": "all of it"}, 422),
    "a whole that is too long": (b"x", {"Content-Range": f"bytes 0-0/{1 << 40}"}, 413),
    "a form": (b"x", {"Content-Type": "multipart/form-data"}, 415),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_uploads_are_refused_and_leave_nothing(case: str, http: httpx2.Client, service: Service) -> None:
    body, headers, status = BAD[case]
    path = f"/v1/keys/{hashlib.sha256(case.encode()).hexdigest()}"
    reply = http.put(path, content=body, headers=headers)
    assert (reply.status_code, problem(reply)["status"]) == (status, status)
    assert http.head(path).status_code == 404


def test_more_than_the_range_says_is_refused(http: httpx2.Client) -> None:
    keys, path = _keys()
    headers = {"Content-Range": f"bytes 0-{PART - 1}/{len(keys)}"}
    reply = http.put(path, content=iter([keys[:PART], keys[PART:]]), headers=headers)
    assert reply.status_code == 400
    assert problem(reply)["title"]


def test_quotas_and_full_disks_are_507(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_bundle(tmp_path, "ckks")
    with serving(tmp_path, quotas=Quotas(client_bytes=1 << 20), listen=Listen()) as found, found.client() as http:
        keys, path = _keys(2 << 20)
        reply = http.put(path, content=keys)
        assert (reply.status_code, problem(reply)["type"]) == (507, api.URN + "LimitExceeded")

        def full(*_: object) -> int:
            raise OSError(28, "No space left on device")

        keys, path = _keys(1 << 10)
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", full)
            refused = http.put(path, content=keys)
        assert (refused.status_code, problem(refused)["type"]) == (507, api.URN + "LimitExceeded")
        assert http.head(path).status_code == 404 or _held(http.head(path))[0] < len(keys)
        assert http.put(path, content=keys).status_code in (201, 409)
