"""TLS: required off loopback, checked by clients, and by the server where it asks for certificates."""

from __future__ import annotations

import socket
import ssl
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import secure_infer as si
from secure_infer.errors import AccessDenied, ProtocolError, UsageError
from secure_infer.serve.guards import Guards
from secure_infer.serve.server import Listen
from tests.serve.certificates import Authority
from tests.serve.service import Service, inputs, make_bundle, serving


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("ca"), "ours")


@pytest.fixture(scope="module")
def service(ours: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("served")
    make_bundle(folder, "clear")
    with serving(folder, listen=Listen("127.0.0.1", 0, *ours.sign("server")), guards=Guards(head_s=1)) as found:
        yield found


@pytest.fixture(scope="module")
def mutual(ours: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("mutual")
    make_bundle(folder, "clear")
    with serving(folder, listen=Listen("127.0.0.1", 0, *ours.sign("server2"), client_ca=ours.file)) as found:
        yield found


def _predict(service: Service, **access: Any) -> np.ndarray:
    with si.Client.connect(service.url, token=service.token, retries=0, **access) as client:
        return client.predict(inputs())


def test_a_client_predicts_over_tls(service: Service, ours: Authority) -> None:
    assert service.url.startswith("https://")
    np.testing.assert_array_equal(
        _predict(service, ca=ours.file), si.load(service.folder / "clear.bundle").predict(inputs())
    )


def test_a_client_distrusts_an_unknown_authority_at_once(service: Service, tmp_path: Path) -> None:
    jobs = len(service.runner.jobs)
    for ca in (None, Authority.make(tmp_path, "theirs").file):
        with pytest.raises(AccessDenied, match="can't be reached"):
            _predict(service, ca=ca)
    assert len(service.runner.jobs) == jobs


def test_plain_http_and_old_tls_are_not_spoken(service: Service, ours: Authority) -> None:
    host, port = service.url.removeprefix("https://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as bare:
        bare.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200" not in bare.recv(1000)
    context = ssl.create_default_context(cafile=ours.file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection((host, int(port)), timeout=10) as bare, pytest.raises((ssl.SSLError, OSError)):
        context.wrap_socket(bare, server_hostname="127.0.0.1")


def test_a_handshake_that_does_not_go_on_is_cut_off(service: Service) -> None:
    host, port = service.url.removeprefix("https://").split(":")
    with socket.create_connection((host, int(port)), timeout=15) as bare:
        bare.sendall(b"\x16\x03\x01")
        assert bare.recv(1000) == b""


def test_a_server_may_ask_for_certificates(mutual: Service, ours: Authority, tmp_path: Path) -> None:
    assert len(_predict(mutual, ca=ours.file, certificate=ours.sign("client"))) == 2
    jobs = len(mutual.runner.jobs)
    for certificate in (None, Authority.make(tmp_path, "theirs").sign("stranger")):
        with pytest.raises(ProtocolError):
            _predict(mutual, ca=ours.file, certificate=certificate)
    assert len(mutual.runner.jobs) == jobs


def test_a_certificate_is_no_token(mutual: Service, ours: Authority) -> None:
    with pytest.raises(AccessDenied, match="denied"):
        si.Client.connect(mutual.url, token="", ca=ours.file, certificate=ours.sign("client"))


BAD = {
    "plain HTTP to other machines": (Listen("0.0.0.0"), False, "in the clear"),
    "strangers from other machines": (Listen("0.0.0.0", insecure=True), True, "Anybody"),
    "a certificate without a key": (Listen(certificate=Path("a")), False, "go together"),
    "client certificates without TLS": (Listen(client_ca=Path("a")), False, "no TLS"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_would_let_strangers_in_is_refused(case: str) -> None:
    listen, anonymous, says = BAD[case]
    with pytest.raises(UsageError, match=says):
        listen.check(anonymous)


def test_what_is_safe_may_listen() -> None:
    for listen in (Listen(), Listen("::1"), Listen("localhost"), Listen("0.0.0.0", insecure=True)):
        listen.check(anonymous=False)
    Listen().check(anonymous=True)


def test_certificates_that_do_not_belong_together_are_usage_errors(ours: Authority, tmp_path: Path) -> None:
    first, second = ours.sign("first"), ours.sign("second")
    for certificate, key in ((first[0], second[1]), (tmp_path / "absent", first[1]), (first[1], first[1])):
        with pytest.raises(UsageError, match="certificate or key"):
            Listen(certificate=certificate, key=key).context()


def test_an_address_that_is_taken_is_a_usage_error() -> None:
    with Listen().bind() as held, pytest.raises(UsageError, match="can't listen there"):
        Listen(port=held.getsockname()[1]).bind()
    with pytest.raises(UsageError, match="can't listen there"):
        Listen("no.such.host.invalid").bind()
