"""What a client says to a server, without a connection: tries, pauses, resumed uploads, and replies that lie."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

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
from secure_infer.wire import api
from secure_infer.wire.talk import Call, Flow, Lost, Pause, Reply, Talk


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
