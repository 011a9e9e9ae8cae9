"""The client over HTTP: what it predicts, what it refuses, and what it does about servers that are not there."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import secure_infer as si
from secure_infer.backends.parties.messages import QUERY, REPLY, Share, unpack
from secure_infer.client import Prediction
from secure_infer.compiler import Compiled
from secure_infer.errors import (
    AccessDenied,
    InvalidInput,
    LimitExceeded,
    ProtocolError,
    UsageError,
)
from secure_infer.graph.interpret import interpret
from secure_infer.serve.base import Job
from secure_infer.wire import frame
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


def test_a_reply_without_end_is_cut_off(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secure_infer.wire.talk._HALF", 100)
    with pytest.raises(ProtocolError, match="too long"):
        si.Client.connect(service.url, model="clear", token=service.token)
