"""Evaluation keys are whole or absent, resumed where they stopped, and evicted only when nobody uses them."""

from __future__ import annotations

import errno
import os
import random
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from secure_infer.errors import InvalidInput, KeyMismatch, LimitExceeded, ProtocolError, UsageError
from secure_infer.serve import keystore
from secure_infer.serve.keyfiles import Quotas
from secure_infer.serve.keystore import KeyStore
from tests.serve.stores import sha256

SMALL = Quotas(client_bytes=1000, total_bytes=1500)


def key(size: int = 400, seed: int = 0) -> tuple[bytes, str]:
    data = random.Random(seed).randbytes(size)
    return data, sha256(data)


def put(keys: KeyStore, client: str, seed: int, size: int = 400) -> str:
    data, name = key(size, seed)
    assert keys.append(client, name, 0, size, [data]) == size
    return name


def held(keys: KeyStore, client: str, names: list[str]) -> list[bool]:
    return [keys.offset(client, name) is not None for name in names]


def test_a_key_in_parts_over_restarts(tmp_path: Path) -> None:
    data, name = key(1000)
    assert KeyStore(tmp_path).offset("ann", name) is None
    for start in range(0, 1000, 250):
        keys = KeyStore(tmp_path)  # a server of its own for each part
        part = data[start : start + 250]
        assert keys.append("ann", name, start, 1000, [part[:100], b"", part[100:]]) == start + 250
        assert keys.offset("ann", name) == (start + 250, 1000)
    with KeyStore(tmp_path).hold("ann", name) as path:
        assert path.read_bytes() == data
        assert path.stat().st_mode & 0o077 == 0
    assert keys.begin("ann", name, 0, 1000) is None
    assert keys.append("ann", name, 1000 - 1, 1000, [b"ignored"]) == 1000


def test_a_part_that_does_not_join_is_refused(tmp_path: Path) -> None:
    data, name = key(1000)
    keys = KeyStore(tmp_path)
    for start, total in ((1, 1000), (999, 1000)):
        with pytest.raises(KeyMismatch, match="does not go on"):
            keys.begin("ann", name, start, total)
    keys.append("ann", name, 0, 1000, [data[:300]])
    for start, total in ((299, 1000), (301, 1000), (300, 1001)):
        with pytest.raises(KeyMismatch, match="300 of 1000 bytes are held"):
            keys.begin("ann", name, start, total)
    assert keys.append("ann", name, 0, 1000, [data[:200]]) == 200  # a start of 0 begins anew
    assert keys.append("ann", name, 200, 1000, [data[200:]]) == 1000


@pytest.mark.parametrize(
    ("client", "name", "start", "total"),
    [
        ("../ann", "ab" * 32, 0, 10),
        ("ann", "../../etc/passwd", 0, 10),
        ("ann", "AB" * 32, 0, 10),
        ("ann", "ab" * 32 + "\n", 0, 10),
        ("ann", "ab" * 32, -1, 10),
        ("ann", "ab" * 32, 11, 10),
        ("ann", "ab" * 32, 0, 0),
        ("ann", "ab" * 32, 0, 10**15),
    ],
)
def test_what_is_no_upload(tmp_path: Path, client: str, name: str, start: int, total: int) -> None:
    with pytest.raises(InvalidInput):
        KeyStore(tmp_path / "keys").begin(client, name, start, total)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["keys"]


def test_another_hash_is_discarded(tmp_path: Path) -> None:
    data, name = key()
    keys = KeyStore(tmp_path)
    with pytest.raises(InvalidInput, match="another SHA-256"):
        keys.append("ann", name, 0, 400, [data[:-1] + b"x"])
    assert keys.offset("ann", name) is None
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert keys.append("ann", name, 0, 400, [data]) == 400


def test_a_partial_that_the_disk_altered_is_discarded(tmp_path: Path) -> None:
    data, name = key()
    KeyStore(tmp_path).append("ann", name, 0, 400, [data[:200]])
    (part,) = tmp_path.rglob("*.part")
    part.write_bytes(bytes(200))  # as after a power failure
    with pytest.raises(InvalidInput, match="another SHA-256"):
        KeyStore(tmp_path).append("ann", name, 200, 400, [data[200:]])
    assert KeyStore(tmp_path).offset("ann", name) is None


@pytest.mark.parametrize("genuine", [True, False])
def test_an_upload_that_was_killed_after_its_last_byte(tmp_path: Path, genuine: bool) -> None:
    data, name = key()
    KeyStore(tmp_path).append("ann", name, 0, 400, [data[:200]])
    (part,) = tmp_path.rglob("*.part")
    part.write_bytes(data if genuine else bytes(400))
    keys = KeyStore(tmp_path)
    assert keys.offset("ann", name) == ((400, 400) if genuine else None)
    assert keys.status()["key_bytes"] == (400 if genuine else 0)
    assert keys.append("ann", name, 0, 400, [data]) == 400
    with keys.hold("ann", name) as path:
        assert path.read_bytes() == data


def test_more_bytes_than_announced_are_refused(tmp_path: Path) -> None:
    data, name = key()
    keys = KeyStore(tmp_path)
    with pytest.raises(InvalidInput, match="More came"):
        keys.append("ann", name, 0, 400, [data[:300], data[300:] + b"x"])
    assert keys.offset("ann", name) == (300, 400)
    assert keys.append("ann", name, 300, 400, [data[300:]]) == 400


def test_a_key_is_its_clients_own(tmp_path: Path) -> None:
    keys = KeyStore(tmp_path)
    name = put(keys, "ann", 0)
    assert keys.offset("bob", name) is None
    with pytest.raises(KeyMismatch, match="upload them first"), keys.hold("bob", name):
        pass
    put(keys, "bob", 0)
    assert keys.delete("bob", name)
    assert keys.offset("ann", name) == (400, 400)


def test_a_partial_can_not_be_held(tmp_path: Path) -> None:
    data, name = key()
    keys = KeyStore(tmp_path)
    keys.append("ann", name, 0, 400, [data[:399]])
    with pytest.raises(KeyMismatch), keys.hold("ann", name):
        pass


def test_the_key_that_was_not_used_for_longest_makes_room(tmp_path: Path) -> None:
    keys, gone = KeyStore(tmp_path, SMALL), list[str]()
    keys.on_evict = gone.append
    names = [put(keys, "ann", seed) for seed in range(2)]
    with keys.hold("ann", names[0]):
        pass
    names.append(put(keys, "ann", 2))
    assert held(keys, "ann", names) == [True, False, True]
    assert gone == [names[1]]
    again = KeyStore(tmp_path, SMALL)  # the order outlives the server
    names.append(put(again, "ann", 3))
    assert held(again, "ann", names) == [False, False, True, True]
    assert again.status()["key_bytes"] == 800


def test_other_clients_keys_go_only_for_the_quota_of_all(tmp_path: Path) -> None:
    keys = KeyStore(tmp_path, SMALL)
    ann = [put(keys, "ann", seed) for seed in range(2)]
    bob = [put(keys, "bob", 2)]
    assert held(keys, "ann", ann) == [True, True]
    bob.append(put(keys, "bob", 3))
    assert (held(keys, "ann", ann), held(keys, "bob", bob)) == ([False, True], [True, True])


def test_a_key_in_use_is_never_evicted(tmp_path: Path) -> None:
    keys = KeyStore(tmp_path, SMALL)
    data, name = key(seed=9)
    names = [put(keys, "ann", seed) for seed in range(2)]
    with keys.hold("ann", names[0]), keys.hold("ann", names[0]), keys.hold("ann", names[1]) as path:
        with pytest.raises(LimitExceeded, match="in use") as caught:
            keys.append("ann", name, 0, 400, [data[:200], data[200:]])
        assert caught.value.retry_after
        assert path.exists()
        assert keys.status()["held_keys"] == 2
    assert keys.offset("ann", name) == (200, 400)
    assert keys.append("ann", name, 200, 400, [data[200:]]) == 400
    assert held(keys, "ann", names) == [False, True]


def test_a_key_larger_than_the_quota_evicts_nothing(tmp_path: Path) -> None:
    keys = KeyStore(tmp_path, SMALL)
    name = put(keys, "ann", 0)
    with pytest.raises(LimitExceeded, match="1000 are allowed") as caught:
        keys.begin("ann", "ab" * 32, 0, 1001)
    assert caught.value.retry_after is None
    assert held(keys, "ann", [name]) == [True]


def test_unfinished_uploads_expire_and_whole_keys_do_not(tmp_path: Path) -> None:
    keys = KeyStore(tmp_path, Quotas(partial_s=60.0))
    whole, (data, part) = put(keys, "ann", 0), key(seed=1)
    keys.append("ann", part, 0, 400, [data[:10]])
    keys.sweep()
    assert held(keys, "ann", [whole, part]) == [True, True]
    for path in tmp_path.rglob("*.*"):
        os.utime(path, (time.time() - 61,) * 2)
    later = KeyStore(tmp_path, Quotas(partial_s=60.0))
    assert held(later, "ann", [whole, part]) == [True, False]
    assert not list(tmp_path.rglob("*.part"))


def test_a_deleted_key_can_still_be_read_by_who_has_it_open(tmp_path: Path) -> None:
    keys = KeyStore(tmp_path)
    name = put(keys, "ann", 0)
    with keys.hold("ann", name) as path, path.open("rb") as file:
        assert keys.delete("ann", name)
        assert len(file.read()) == 400
    assert not keys.delete("ann", name)
    assert (keys.offset("ann", name), keys.status()["key_bytes"]) == (None, 0)
    assert put(keys, "ann", 0) == name


def test_deleting_ends_an_upload(tmp_path: Path) -> None:
    data, name = key()
    keys = KeyStore(tmp_path)
    upload = keys.begin("ann", name, 0, 400)
    assert upload is not None
    upload.write(data[:100])
    assert keys.delete("ann", name)
    with pytest.raises(ProtocolError, match="ended"):
        upload.write(data[100:])
    assert keys.offset("ann", name) is None


def test_two_connections_do_not_write_one_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, name = key()
    keys = KeyStore(tmp_path)
    first = keys.begin("ann", name, 0, 400)
    assert first is not None
    first.write(data[:100])
    with pytest.raises(LimitExceeded, match="being uploaded") as caught:
        keys.begin("ann", name, 100, 400)
    assert caught.value.retry_after
    monkeypatch.setattr(keystore, "STALE_S", 0.0)  # as if its connection had said nothing for long
    second = keys.begin("ann", name, 100, 400)
    assert second is not None
    with pytest.raises(ProtocolError, match="taken over"):
        first.write(data[100:])
    first.close()
    assert second.write(data[100:]) == 400
    assert keys.offset("ann", name) == (400, 400)


def test_many_threads_upload_the_same_and_other_keys(tmp_path: Path) -> None:
    keys = KeyStore(tmp_path)
    failures: list[BaseException] = []

    def send(seed: int) -> None:
        data, name = key(20_000, seed)
        offset, until = 0, time.monotonic() + 30
        while offset < len(data) and time.monotonic() < until:
            offset, _ = keys.offset("ann", name) or (0, 0)
            parts = (data[at : at + 999] for at in range(offset, len(data), 999))
            try:
                offset = keys.append("ann", name, offset, len(data), parts)
            except (LimitExceeded, KeyMismatch, ProtocolError):
                time.sleep(0.002)  # another thread is at it
            except BaseException as error:
                failures.append(error)
                return

    threads = [threading.Thread(target=send, args=(n % 3,), daemon=True) for n in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
    assert not failures
    for seed in range(3):
        data, name = key(20_000, seed)
        with keys.hold("ann", name) as path:
            assert path.read_bytes() == data
    assert keys.status() == {
        "key_bytes": 60_000,
        "whole_keys": 3,
        "partial_keys": 0,
        "held_keys": 0,
        "evicted_keys": 0,
    }


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of this process may grow past 64 kB: the kernel refuses as a full disk does, in the midst of a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_in_the_midst_of_a_write(tmp_path: Path, small_files: None) -> None:
    data, name = key(100_000)
    keys = KeyStore(tmp_path)
    keys.append("ann", name, 0, 100_000, [data[:60_000]])
    with pytest.raises(LimitExceeded, match="disk is full") as caught:
        keys.append("ann", name, 60_000, 100_000, [data[60_000:]])
    assert caught.value.retry_after
    assert keys.offset("ann", name) is None
    assert keys.status()["key_bytes"] == 0
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    put(keys, "ann", 1)  # what fits is still taken


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_is_full_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    keys = KeyStore(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(LimitExceeded, match="disk is full"):
            put(keys, "ann", 0)
    assert keys.status()["key_bytes"] == 0
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    put(keys, "ann", 0)


def test_a_broken_disk_is_not_called_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    keys = KeyStore(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", broken)
        with pytest.raises(ProtocolError, match="Input/output error"):
            put(keys, "ann", 0)
    assert keys.offset("ann", key()[1]) is None


def test_a_folder_that_can_not_be_used(tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes(b"")
    with pytest.raises(UsageError, match="Can't use this store"):
        KeyStore(tmp_path / "keys")
