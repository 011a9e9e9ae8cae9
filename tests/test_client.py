"""One client, many users: threads, processes that share a key cache, and what happens after `close`."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import secure_infer as si
from secure_infer import bundle, files
from secure_infer.backends import clear
from secure_infer.backends.base import Keys
from secure_infer.client import EVALUATION, SECRET, Client, read_keys
from secure_infer.errors import BundleError, DecryptionError, ProtocolError, UsageError
from secure_infer.wire.transport import InProcess
from tests.networks import all_corners, small_graph


@pytest.mark.parametrize("protocol", ["clear", "ckks", "mpc"])
def test_threads_may_share_a_client_and_clients_a_transport(protocol: str) -> None:
    graph = small_graph(exact=protocol != "ckks")
    x = all_corners(graph)[:8]
    compiled = si.compile(graph, all_corners(graph), protocol=protocol)
    expected = compiled.predict(x, "clear")
    first = compiled.client()
    clients = [first, Client(first._transport)]
    try:
        with ThreadPoolExecutor(6) as pool:
            running = [pool.submit(clients[i % 2].predict, x[i : i + 1]) for i in range(8)]
            found = np.concatenate([future.result(timeout=60) for future in running])
    finally:
        compiled.close()
    np.testing.assert_allclose(found, expected, atol=compiled.guarantee.error_bound or 1e-9)


@pytest.mark.parametrize("protocol", ["clear", "mpc"])
def test_after_close_a_client_says_so(protocol: str) -> None:
    graph = small_graph(exact=True)
    x = all_corners(graph)
    compiled = si.compile(graph, x, protocol=protocol)
    client = compiled.client()
    client.close()
    client.close()
    with pytest.raises(ProtocolError, match="closed"):
        client.predict(x[:1])
    compiled.close()
    assert len(compiled.predict(x[:1])) == 1
    compiled.close()


class _Counting:
    """A role whose every key set is another one, and which makes them slowly enough to be overtaken."""

    def __init__(self) -> None:
        self.made = 0
        self._barrier = threading.Barrier(2)

    def keygen(self) -> Keys:
        self.made += 1
        with contextlib.suppress(threading.BrokenBarrierError):
            self._barrier.wait(0.3)
        name = os.urandom(8)
        return Keys(b"secret" + name, b"evaluation" + name)


def _race(act: Callable[[Client], Keys], clients: Sequence[Client]) -> list[Keys]:
    with ThreadPoolExecutor(len(clients)) as pool:
        return list(pool.map(act, clients))


def test_users_of_one_key_cache_get_one_pair(tmp_path: Path) -> None:
    graph = small_graph(exact=True)
    compiled = si.compile(graph, all_corners(graph), protocol="clear")
    half = bundle.pack_client_half(compiled.interface, compiled.program.client)
    role, clients = _Counting(), [Client(InProcess(half, [_Idle()]), tmp_path / "keys") for _ in range(2)]
    for client in clients:
        client._role = role  # type: ignore[assignment]  # makes keys only
    mask = os.umask(0)
    try:
        pairs = _race(Client.keys, clients)
    finally:
        os.umask(mask)
    assert role.made == 1
    assert pairs[0].secret == pairs[1].secret
    (folder,) = (tmp_path / "keys").iterdir()
    stored = read_keys(folder / SECRET, folder / EVALUATION, compiled.program.client)
    assert stored.secret[-8:] == stored.evaluation[-8:]
    assert folder.stat().st_mode & 0o077 == 0
    assert (folder / SECRET).stat().st_mode & 0o777 == files.PRIVATE


class _Idle:
    def run(self, message: bytes, evaluation: bytes) -> bytes:
        return message

    def close(self) -> None:
        pass


def test_a_cache_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="Can't use"), files.locked(tmp_path / "file" / "keys"):
        pass


def test_an_interrupt_leaves_no_half_written_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.write(tmp_path / "key", b"secret", mode=files.PRIVATE)
    assert not list(tmp_path.iterdir())


def test_outputs_of_another_number_or_shape_are_refused() -> None:
    graph = small_graph(exact=True)
    x = all_corners(graph)[:2]
    compiled = si.compile(graph, all_corners(graph), protocol="clear")
    half = bundle.pack_client_half(compiled.interface, compiled.program.client)
    with pytest.raises(DecryptionError, match="does not hold this model's outputs"):
        Client(InProcess(half, [_Idle()])).predict(x)
    with pytest.raises(DecryptionError, match="3 outputs for 2 inputs"):
        Client(InProcess(half, [_Answering(np.zeros((3, 3), dtype=np.int64))])).predict(x)


@pytest.mark.parametrize("x", [np.zeros((2, 3)), np.zeros(6), np.zeros(()), np.full((1, 6), 2), np.full((1, 6), -1)])
def test_the_clear_server_refuses_what_is_no_input(x: np.ndarray) -> None:
    graph = small_graph(exact=True)
    (server,) = clear.ClearBackend().servers(si.compile(graph, all_corners(graph), protocol="clear").program.servers)
    with pytest.raises(BundleError, match="no inputs of this model"):
        server.run(clear.pack_integers(x.astype(np.int64)), b"")


class _Answering(_Idle):
    def __init__(self, values: np.ndarray) -> None:
        self._values = values

    def run(self, message: bytes, evaluation: bytes) -> bytes:
        return clear.pack_integers(self._values)
