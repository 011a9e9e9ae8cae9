"""The server as a process of its own, with real workers and real ciphertexts, through the command line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import secure_infer as si
from secure_infer.errors import ProtocolError
from tests.cli.command import call
from tests.serve.service import inputs, make_bundle

CRYPTO = re.compile(r"tenseal|concrete|crypten|libtorch|torch/lib", re.IGNORECASE)


class Process:
    """`secure-infer serve` on the bundles of a folder."""

    def __init__(self, folder: Path, *options: object) -> None:
        command = [sys.executable, "-m", "secure_infer.cli", "serve", folder, "--store", folder / "store"]
        words = [*command, "--open", "--workers", "1", "--json", *options]
        self._running = subprocess.Popen(
            list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self._running.stdout is not None
        line = self._running.stdout.readline()
        assert line, self._running.communicate()[1]
        self.ready: dict[str, Any] = json.loads(line)
        self.url: str = self.ready["url"]
        self.pid = self._running.pid

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal and wait: exit code, and what it said on standard error."""
        if self._running.poll() is None:
            os.kill(self.pid, number)
        _, said = self._running.communicate(timeout=60)
        return self._running.returncode, said


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    make_bundle(folder, "ckks")
    return folder


@pytest.fixture
def process(folder: Path) -> Iterator[Process]:
    found = Process(folder, "--port", "0")
    try:
        yield found
    finally:
        found.end(signal.SIGKILL)


def test_the_front_loads_no_crypto_library_and_ends_when_asked(
    process: Process, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert process.ready["models"] == {"ckks": "ckks"}
    assert process.ready["requires"] == {"token": False, "client_certificate": False}
    keys, x = tmp_path / "keys", tmp_path / "x.npy"
    np.save(x, inputs())
    code, out, err = call(capsys, "keygen", "--url", process.url, "--key-cache", keys, "--json")
    assert code == 0, out + err
    assert json.loads(out)["evaluation_bytes"] > 1 << 20
    remote = ("predict", "--url", process.url, "--model", "ckks", "--key-cache", keys, "--input", x, "--json")
    code, out, err = call(capsys, *remote)
    assert code == 0, out + err
    found, compiled = json.loads(out), si.load(folder / "ckks.bundle")
    np.testing.assert_allclose(
        found["outputs"], compiled.predict(inputs(), "clear"), atol=compiled.guarantee.error_bound or 0
    )
    assert found["wall_s"]["run"] > 0
    code, out, err = call(capsys, "serve", folder, "--store", folder / "store", "--port", 0)
    assert (code, out) == (2, "")
    assert "Another server uses this store" in err
    mapped = {pid: Path(f"/proc/{pid}/maps").read_text() for pid in (process.pid, *_below(process.pid))}
    assert not CRYPTO.search(mapped.pop(process.pid))
    assert any(CRYPTO.search(text) for text in mapped.values()), "the workers must show what is looked for"
    assert process.end() == (0, "")
    deadline = time.monotonic() + 10
    while any(map(_runs, mapped)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_runs, mapped))


def _runs(pid: int) -> bool:
    """Whether a process is there and not dead already, with nobody having asked how it ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _below(pid: int) -> list[int]:
    """All processes that descend from one."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [below for child in map(int, children) for below in (child, *_below(child))]


def test_a_client_gets_over_a_server_that_is_killed_and_comes_back(process: Process, folder: Path) -> None:
    with si.Client.connect(process.url, retries=12) as client:
        expected = client.predict(inputs())
        process.end(signal.SIGKILL)
        found: list[np.ndarray] = []
        asking = threading.Thread(target=lambda: found.append(client.predict(inputs())))
        asking.start()
        time.sleep(0.3)
        again = Process(folder, "--port", process.url.rpartition(":")[2])
        try:
            asking.join(60)
            assert np.abs(found[0] - expected).max() < 0.1
        finally:
            again.end()
        with pytest.raises(ProtocolError, match="can't be reached"):
            si.Client.connect(process.url, retries=0)


def test_what_can_not_be_served_is_one_clear_error(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "damaged.bundle").write_bytes(b"x")
    store = ("--store", tmp_path / "store")
    for words, code, says in (
        ((tmp_path / "absent.bundle", *store), 2, "No such file"),
        ((tmp_path / "damaged.bundle", *store), 6, "can't be used"),
        ((folder, f"{folder / 'ckks.bundle'}", *store), 2, "Two bundles"),
        ((f"a/b={folder / 'ckks.bundle'}", *store), 2, "can't be a model's name"),
        ((folder, *store, "--host", "0.0.0.0"), 2, "in the clear"),
        ((folder, *store, "--open", "--host", "0.0.0.0", "--insecure"), 2, "Anybody"),
        ((folder, *store, "--tls-cert", "x"), 2, "go together"),
        ((folder, "--store", folder / "ckks.bundle"), 2, "Can't use"),
    ):
        found, out, err = call(capsys, "serve", *words)
        assert (found, out) == (code, ""), err
        assert says in err.replace("\n", " ")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("predict", "--input", "x.npy"), "MODEL"),
        (("predict", "m", "--input", "x.npy", "--url", "http://127.0.0.1:9"), "--MODEL"),
        (("predict", "--input", "x.npy", "--url", "http://127.0.0.1:9", "--mode", "clear"), "--mode"),
        (("predict", "m", "--input", "x.npy", "--model", "y"), "--model"),
        (("predict", "--input", "x.npy", "--url", "http://example.com"), "in the clear"),
        (("keygen", "--url", "http://127.0.0.1:9"), "--key-cache"),
        (("keygen", "--url", "http://127.0.0.1:9", "--out-secret", "s"), "--out-secret"),
        (("keygen", "b", "--url", "http://127.0.0.1:9", "--key-cache", "k"), "don't go together"),
        (("keygen", "b"), "--out-secret"),
        (("keygen", "--url", "nonsense", "--key-cache", "k"), "address"),
        (("keygen", "--url", "http://127.0.0.1:9", "--key-cache", "k", "--cert", "c"), "go together"),
    ],
)
def test_options_that_make_no_sense_together_are_usage_errors(
    words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECURE_INFER_TOKEN", "si_secret")
    code, out, err = call(capsys, *words)
    assert code in (2, 12), out + err
    assert says in err.replace("\n", " ")
    assert "si_secret" not in out + err


@pytest.mark.full
def test_tfhe_is_served_by_the_same_code(tmp_path: Path) -> None:
    compiled = make_bundle(tmp_path, "tfhe")
    process = Process(tmp_path, "--port", "0")
    try:
        with si.Client.connect(process.url) as client:
            found = client.infer(inputs())
        np.testing.assert_array_equal(found.outputs, compiled.predict(inputs(), "clear"))
        assert found.wall_s["load"] > 0
    finally:
        assert process.end()[0] == 0
