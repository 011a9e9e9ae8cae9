"""The client over HTTP: what it does about lost connections, busy servers, lost keys and lies."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import secure_infer as si
from secure_infer.backends.mpc.messages import QUERY, REPLY, Share, unpack
from secure_infer.client import Prediction
from secure_infer.compiler import Compiled
from secure_infer.errors import (
    AccessDenied,
    BundleError,
    InvalidInput,
    KeyMismatch,
    LimitExceeded,
    ProtocolError,
    SecureInferError,
    UsageError,
)
from secure_infer.graph.interpret import interpret
from secure_infer.serve.base import Job
from secure_infer.wire import api, frame
from secure_infer.wire.talk import Call, Flow, Lost, Pause, Reply, Talk
from tests.serve.service import Service, inputs, make_bundle, serving

PHASES = ["encrypt", "upload", "queue", "load", "run", "transfer", "decrypt"]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("served")
    for protocol in ("clear", "ckks"):
        make_bundle(folder, protocol)
    with serving(folder) as found:
        yield found


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch, service: Service) -> None:
    monkeypatch.delenv("SECURE_INFER_TOKEN", raising=False)
    service.runner.hook = None
    service.runner.jobs.clear()


def _expected(service: Service, name: str) -> tuple[np.ndarray, float]:
    compiled = si.load(service.folder / f"{name}.bundle")
    return compiled.predict(inputs(), "clear"), compiled.guarantee.error_bound or 0


@pytest.mark.parametrize("name", ["clear", "ckks"])
def test_a_client_predicts(name: str, service: Service, tmp_path: Path) -> None:
    expected, error = _expected(service, name)
    told: list[tuple[int, int]] = []
    with si.Client.connect(
        service.url, model=name, token=service.token, key_cache=tmp_path, progress=lambda a, b: told.append((a, b))
    ) as client:
        found = client.infer(inputs())
    np.testing.assert_allclose(found.outputs, expected, atol=error + 1e-12)
    assert list(found.wall_s) == PHASES
    assert all(seconds >= 0 for seconds in found.wall_s.values())
    assert (found.wall_s["queue"], found.wall_s["load"]) == (0.001, 0.002)
    assert found.statistics == {"rounds": 3}
    assert (told[-1][0] == told[-1][1] > 0) if name == "ckks" else not told
    told.clear()
    with si.Client.connect(
        service.url, model=name, token=service.token, key_cache=tmp_path, progress=lambda a, b: told.append((a, b))
    ) as again:
        np.testing.assert_allclose(again.predict(inputs()), expected, atol=error + 1e-12)
    assert not told


@pytest.mark.parametrize("name", ["clear", "ckks"])
def test_the_async_client_is_the_same(name: str, service: Service, tmp_path: Path) -> None:
    expected, error = _expected(service, name)

    async def ask() -> list[Prediction]:
        async with await si.AsyncClient.connect(service.url, model=name, token=service.token) as client:
            await client.predict(inputs())
            return await asyncio.gather(*(client.infer(inputs()) for _ in range(4)))

    for found in asyncio.run(ask()):
        np.testing.assert_allclose(found.outputs, expected, atol=error + 1e-12)
        assert list(found.wall_s) == PHASES


def test_tasks_do_not_wait_for_one_another(service: Service) -> None:
    together, most = 0, 0

    async def slow(_: Job) -> None:
        nonlocal together, most
        together += 1
        most = max(most, together)
        await asyncio.sleep(0.2)
        together -= 1

    async def ask() -> None:
        async with await si.AsyncClient.connect(service.url, model="clear", token=service.token) as client:
            await asyncio.gather(*(client.predict(inputs()) for _ in range(5)))

    service.runner.hook = slow
    asyncio.run(ask())
    assert most > 1


def test_the_token_may_come_from_the_environment(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AccessDenied, match="denied"):
        si.Client.connect(service.url, model="clear")
    monkeypatch.setenv("SECURE_INFER_TOKEN", service.token)
    with si.Client.connect(service.url, model="clear") as client:
        assert len(client.predict(inputs())) == 2
    with pytest.raises(AccessDenied, match="denied"):
        si.Client.connect(service.url, model="clear", token="")


def test_a_token_never_travels_in_the_clear() -> None:
    for url in (
        "http://example.com",
        "http://10.0.0.1:8443",
        "http://127.0.0.1.example.com",
        "http://localhost.evil.com",
    ):
        with pytest.raises(AccessDenied, match="in the clear"):
            si.Client.connect(url, model="m", token="si_secret")


def test_proxies_of_the_environment_do_not_see_loopback(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    with si.Client.connect(service.url, model="clear", token=service.token, retries=0) as client:
        assert len(client.predict(inputs())) == 2


@pytest.mark.parametrize(
    "url", ["ftp://host", "http://", "https://user:pass@host", "http://[::1", "nonsense://", "://"]
)
def test_addresses_that_are_none_are_usage_errors(url: str) -> None:
    with pytest.raises(UsageError, match="address"):
        si.Client.connect(url)
    with pytest.raises(UsageError, match="address"):
        asyncio.run(si.AsyncClient.connect(url))


def test_unknown_models_and_arguments_are_usage_errors(service: Service) -> None:
    with pytest.raises(UsageError, match="does not have this model"):
        si.Client.connect(service.url, model="nothing", token=service.token)
    with pytest.raises(UsageError, match="ckks"):
        si.Client.connect(service.url, token=service.token)
    with pytest.raises(UsageError, match="no such argument"):
        si.Client.connect(service.url, tokens=service.token)
    with pytest.raises(UsageError, match="for servers"):
        si.Client.connect(service.folder / "clear.bundle", token="x")


def test_tokens_with_line_breaks_are_usage_errors(service: Service) -> None:
    with pytest.raises(UsageError, match="token"):
        si.Client.connect(service.url, model="clear", token="a\r\nX-Evil: 1")


def test_input_is_checked_before_anything_is_sent(service: Service) -> None:
    with si.Client.connect(service.url, model="ckks", token=service.token) as client:
        with pytest.raises(InvalidInput):
            client.predict(np.full((1, 6), np.nan))
        assert client._keys is None


def test_nobody_there_is_a_protocol_error() -> None:
    start = time.monotonic()
    with pytest.raises(ProtocolError, match="can't be reached"):
        si.Client.connect("http://127.0.0.1:9", model="m", retries=2)
    assert time.monotonic() - start < 10


def test_after_close_a_client_says_so(service: Service) -> None:
    client = si.Client.connect(service.url, model="clear", token=service.token)
    client.close()
    client.close()
    with pytest.raises(ProtocolError, match="closed"):
        client.predict(inputs())


def test_lost_keys_are_uploaded_again_once(service: Service) -> None:
    with si.Client.connect(service.url, model="ckks", token=service.token) as client:
        expected = client.infer(inputs())
        assert expected.wall_s["upload"] == 0
        name = client._key_name
        assert service.state.keys.delete("alice", name)
        found = client.infer(inputs())
        assert found.wall_s["upload"] > 0
        np.testing.assert_allclose(found.outputs, expected.outputs, atol=0.1)


def test_failing_workers_are_asked_again_with_the_same_request(service: Service) -> None:
    failures = iter([ProtocolError("The worker died."), LimitExceeded("The queue is full.", retry_after=0.1)])

    async def fail(_: Job) -> None:
        error = next(failures, None)
        if error is not None:
            raise error

    before = service.state.budgets.spent("alice")["day"].requests
    service.runner.hook = fail
    with si.Client.connect(service.url, model="clear", token=service.token) as client:
        assert len(client.predict(inputs())) == 2
    assert len(service.runner.jobs) == 3
    assert service.state.budgets.spent("alice")["day"].requests - before == 1


class Parties:
    """Plays both parties of the two-party protocol, without any protocol: what the client sees is the same."""

    def __init__(self, compiled: Compiled) -> None:
        self._compiled, self._both = compiled, threading.Barrier(2)
        self._shares: dict[int, Share] = {}

    def run(self, message: bytes, evaluation: bytes) -> bytes:
        meta = frame.unpack(message, QUERY).meta
        party = meta["party"]
        self._shares[party] = unpack(message, QUERY, meta["model"], party, self._compiled.graph.input.shape)
        self._both.wait(20)
        x = self._shares[0].values + self._shares[1].values
        mine = interpret(self._compiled.graph, x) - 5 if party else np.full((len(x), 3), 5)
        return replace(self._shares[party], values=mine).pack(REPLY)


def test_parties_are_asked_at_once_and_must_be_in_order(tmp_path: Path) -> None:
    make_bundle(tmp_path, "mpc")
    compiled = si.load(tmp_path / "mpc.bundle")
    with serving(tmp_path, party=0) as zero, serving(tmp_path, party=1) as one:
        zero.runner._roles["mpc"] = one.runner._roles["mpc"] = Parties(compiled)
        tokens, urls = f"{zero.token},{one.token}", [zero.url, one.url]
        with si.Client.connect(urls, token=tokens) as client:
            np.testing.assert_array_equal(client.predict(inputs()), compiled.predict(inputs(), "clear"))
        assert [len(service.runner.jobs) for service in (zero, one)] == [1, 1]
        with pytest.raises(UsageError, match="in order"):
            si.Client.connect(urls[::-1], model="mpc", token=f"{one.token},{zero.token}")
        with pytest.raises(UsageError, match="in order"):
            si.Client.connect(zero.url, model="mpc", token=zero.token)
        with pytest.raises(AccessDenied, match="denied"):
            si.Client.connect(urls, model="mpc", token=f"{one.token},{zero.token}")


class Script:
    """Plays a server to a conversation: replies, or losses, one for each call."""

    def __init__(self, *replies: Reply | Lost) -> None:
        self._replies, self.calls, self.pauses = list(replies), list[Call](), list[float]()

    def play(self, flow: Flow[Any]) -> Any:
        try:
            step = next(flow)
            while True:
                if isinstance(step, Pause):
                    self.pauses.append(step.seconds)
                    step = next(flow)
                    continue
                self.calls.append(step)
                reply = self._replies.pop(0)
                step = flow.throw(reply) if isinstance(reply, Lost) else flow.send(reply)
        except StopIteration as done:
            return done.value


def _problem(error: SecureInferError, status: int, **headers: str) -> Reply:
    return Reply(status, headers, json.dumps(api.problem(error, status)).encode())


def _lost() -> Lost:
    return Lost(ProtocolError("gone"))


def _busy(after: str = "") -> Reply:
    headers = {"retry-after": after} if after else {}
    return _problem(LimitExceeded("busy", retry_after=float(after or 1)), 429, **headers)


OK = Reply(200, {}, b"reply")


def test_every_try_of_a_request_has_the_same_name() -> None:
    script = Script(_lost(), _problem(ProtocolError("died"), 503), _busy(), OK)
    answered = script.play(Talk("m").infer(b"message", "k", b"keys", "ab" * 16))
    assert answered.reply == b"reply"
    assert {call.headers[api.IDEMPOTENCY_KEY] for call in script.calls} == {"ab" * 16}
    assert {call.body for call in script.calls} == {b"message"}
    assert len(script.pauses) == 3
    assert all(0.05 <= pause <= 5 for pause in script.pauses)


def test_pauses_grow_and_tries_are_bounded() -> None:
    script = Script(*[_lost()] * 9)
    with pytest.raises(ProtocolError, match="gone"):
        script.play(Talk("m", retries=6).ask(Call("GET", "/")))
    assert len(script.calls) == 7
    assert script.pauses[-1] > 4 * script.pauses[0]


@pytest.mark.parametrize(
    ("after", "calls", "pause"), [("7", 2, 7.0), ("0", 2, None), ("3599", 1, None), ("soon", 2, None)]
)
def test_a_client_waits_as_long_as_it_is_told_but_not_for_ever(after: str, calls: int, pause: float | None) -> None:
    script = Script(Reply(429, {"retry-after": after}, _busy().body), OK)
    flow = Talk("m", patience=60).ask(Call("GET", "/"))
    if calls == 1:
        with pytest.raises(LimitExceeded) as refused:
            script.play(flow)
        assert refused.value.retry_after == 1
    else:
        assert script.play(flow) == OK
        assert pause is None or script.pauses == [pause]
    assert len(script.calls) == calls


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidInput("bad"), 422),
        (BundleError("bad"), 400),
        (AccessDenied("no"), 403),
        (LimitExceeded("too large"), 413),
        (UsageError("none"), 404),
    ],
)
def test_what_would_fail_again_is_not_tried_again(error: SecureInferError, status: int) -> None:
    script = Script(_problem(error, status))
    with pytest.raises(type(error), match=error.summary):
        script.play(Talk("m").ask(Call("GET", "/")))
    assert len(script.calls) == 1


def test_a_certificate_that_is_refused_is_not_tried_again() -> None:
    script = Script(Lost(AccessDenied("distrust"), final=True))
    with pytest.raises(AccessDenied):
        script.play(Talk("m").ask(Call("GET", "/")))


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b"null", b"{}", b'{"type": 5}', b"[" * 100_000, b'{"type": "urn:secure-infer:error:X"}'],
)
@pytest.mark.parametrize(
    ("status", "kind"), [(401, AccessDenied), (404, UsageError), (418, ProtocolError), (500, ProtocolError)]
)
def test_errors_that_nobody_can_read_are_errors_all_the_same(body: bytes, status: int, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=f"status {status}"):
        Script(Reply(status, {}, body)).play(Talk("m").ask(Call("GET", "/")))


def _held(status: int, offset: int | str) -> Reply:
    return Reply(status, {api.UPLOAD_OFFSET.lower(): str(offset)}, b"")


CHUNK = Talk("m").chunk
NO_KEYS = Reply(404, {}, b"")


def test_an_upload_goes_on_where_it_stopped() -> None:
    keys, told = bytes(2 * CHUNK + 5), list[int]()
    script = Script(_held(200, CHUNK - 1), _lost(), _held(409, 2 * CHUNK - 1), _held(201, len(keys)))
    script.play(Talk("m", progress=lambda sent, _: told.append(sent)).upload(keys, "name"))
    ranges = [call.headers.get("Content-Range") for call in script.calls]
    assert ranges == [
        None,
        f"bytes {CHUNK - 1}-{2 * CHUNK - 2}/{len(keys)}",
        f"bytes {CHUNK - 1}-{2 * CHUNK - 2}/{len(keys)}",
        f"bytes {2 * CHUNK - 1}-{len(keys) - 1}/{len(keys)}",
    ]
    assert [len(call.body) for call in script.calls] == [0, CHUNK, CHUNK, 6]
    assert told == [2 * CHUNK - 1, len(keys)]


def test_keys_that_are_there_are_not_sent() -> None:
    script = Script(_held(200, 10))
    script.play(Talk("m").upload(bytes(10), "name"))
    assert [call.method for call in script.calls] == ["HEAD"]


def test_an_upload_that_makes_no_progress_ends() -> None:
    script = Script(NO_KEYS, *[_held(409, 0)] * 50)
    with pytest.raises(ProtocolError, match="keep to the protocol"):
        script.play(Talk("m", retries=3).upload(bytes(10), "name"))
    assert len(script.calls) == 5


@pytest.mark.parametrize("offset", ["", "-1", "x", "9" * 30, "\u0661"])
def test_an_offset_that_is_none_is_a_protocol_error(offset: str) -> None:
    with pytest.raises(ProtocolError, match="keep to the protocol"):
        Script(NO_KEYS, _held(202, offset)).play(Talk("m").upload(bytes(10), "name"))


def test_keys_of_another_model_are_an_error_and_not_a_loop() -> None:
    mismatch = _problem(KeyMismatch("other model"), 409)
    script = Script(mismatch, _held(200, 4), mismatch)
    with pytest.raises(KeyMismatch, match="other model"):
        script.play(Talk("m").infer(b"message", "k", b"keys", "ab" * 16))
    assert [call.method for call in script.calls] == ["POST", "HEAD", "POST"]


def test_an_altered_client_half_is_refused() -> None:
    digest = hashlib.sha256(b"half").hexdigest()
    assert Script(Reply(200, {"etag": f'"{digest}"'}, b"half")).play(Talk("m").client_half()) == (b"half", "0/1")
    for headers, body in (({"etag": f'"{digest}"'}, b"HALF"), ({}, b"half")):
        with pytest.raises(BundleError, match="altered"):
            Script(Reply(200, headers, body)).play(Talk("m").client_half())


@pytest.mark.parametrize(
    "timing", ["", "nonsense", "run;dur=x", "run;dur=-5", "run;dur=inf", "run;dur=nan", ";;;,,,=", "other;dur=1"]
)
def test_timings_that_make_no_sense_are_left_out(timing: str) -> None:
    headers = {api.SERVER_TIMING.lower(): timing, api.STATISTICS.lower(): timing}
    answered = Script(Reply(200, headers, b"reply")).play(Talk("m").infer(b"", "", b"", "ab" * 16))
    assert dict(answered.server_s) == {"queue": 0, "load": 0, "run": 0, "cpu": 0}
    assert not answered.statistics


def test_names_of_models_do_not_change_the_path() -> None:
    script = Script(OK)
    script.play(Talk("../../keys?x=#")._post(b"", "", ""))
    assert script.calls[0].path == "/v1/models/..%2F..%2Fkeys%3Fx%3D%23/infer"


def test_a_reply_without_end_is_cut_off(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secure_infer.wire.talk._HALF", 100)
    with pytest.raises(ProtocolError, match="too long"):
        si.Client.connect(service.url, model="clear", token=service.token)
