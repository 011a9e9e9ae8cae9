"""Data sets: strict parsing, checksums, the order of places, and an error that lists them all."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import os
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_infer.errors import DataError, UsageError
from secure_infer.nn import data
from secure_infer.nn.data import load_dataset, read_idx
from secure_infer.nn.fetch import fetch

IDX = b"\x00\x00\x08\x02" + (2).to_bytes(4, "big") + (3).to_bytes(4, "big") + bytes(range(6))


@pytest.fixture(autouse=True)
def _nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No data of this machine is seen, unless a test puts it there."""
    monkeypatch.delenv("SECURE_INFER_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(data, "_DEBIAN", tmp_path / "debian")


@pytest.fixture
def arrays(monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """A tiny data set that takes the place of MNIST."""
    random = np.random.default_rng(0)
    shapes = {"x_train": (5, 4, 4), "y_train": (5,), "x_test": (2, 4, 4), "y_test": (2,)}
    made = {part: random.integers(0, 10, shape, dtype=np.uint8) for part, shape in shapes.items()}
    source = replace(
        data.SOURCES["mnist"],
        urls=(),
        sha256={part: hashlib.sha256(array.tobytes()).hexdigest() for part, array in made.items()},
        md5={part: hashlib.md5(_idx_gz(array)).hexdigest() for part, array in made.items()},
    )
    monkeypatch.setattr(data, "SOURCES", {**data.SOURCES, "mnist": source})
    return made


def _idx_gz(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes(), mtime=0)


def _write_idx(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    folder.mkdir(parents=True)
    for part, file in data._IDX_FILES.items():
        (folder / file).write_bytes(_idx_gz(arrays[part]))


def test_digits_are_split_by_class_and_stay_split() -> None:
    digits = load_dataset("digits")
    assert digits.x_train.shape == (1352, 1, 8, 8)
    assert digits.x_test.shape == (445, 1, 8, 8)
    assert digits.x_train.dtype == np.float32 and digits.y_train.dtype == np.int64
    assert digits.x_train.min() == 0 and digits.x_train.max() == 1
    assert (np.bincount(digits.y_test) == np.bincount(np.concatenate([digits.y_train, digits.y_test])) // 4).all()
    images = [np.unique(part.reshape(len(part), -1), axis=0) for part in (digits.x_train, digits.x_test)]
    assert len(np.unique(np.concatenate(images), axis=0)) == 1797
    assert digits.y_test[:8].tolist() == [1, 5, 9, 2, 4, 5, 6, 7]


def test_an_idx_file_is_read() -> None:
    assert read_idx(IDX).tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        IDX[:3],
        IDX[:7],
        IDX[:11],
        IDX[:-1],
        IDX + b"\x00",
        b"\x00\x00\x0d" + IDX[3:],
        b"\x01" + IDX[1:],
        IDX[:3] + b"\x00" + IDX[4:],
        IDX[:3] + b"\x05" + IDX[4:],
        IDX[:4] + b"\xff" * 8 + IDX[12:],
    ],
)
def test_a_damaged_idx_file_is_refused(damaged: bytes) -> None:
    with pytest.raises(DataError, match="idx"):
        read_idx(damaged)


@settings(deadline=None)
@given(st.binary(max_size=64))
def test_any_bytes_are_an_idx_file_or_a_data_error(noise: bytes) -> None:
    try:
        parsed = read_idx(noise)
    except DataError:
        return
    assert parsed.size == len(noise) - 4 - 4 * noise[3]


@pytest.mark.parametrize("place", ["npz", "given", "debian", "cache"])
def test_each_place_is_searched(
    place: str, arrays: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place in ("npz", "given"):
        monkeypatch.setenv("SECURE_INFER_DATA", str(tmp_path))
    folders = {
        "given": tmp_path / "mnist",
        "debian": tmp_path / "debian/mnist",
        "cache": tmp_path / "cache/secure_infer/datasets/mnist",
    }
    if place == "npz":
        np.savez(tmp_path / "mnist.npz", **arrays)
    else:
        _write_idx(folders[place], arrays)
    found = load_dataset("mnist", download=False)
    np.testing.assert_array_equal(found.x_test[:, 0], arrays["x_test"].astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(found.y_train, arrays["y_train"])


def test_altered_data_is_passed_over_for_a_sound_copy(
    arrays: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECURE_INFER_DATA", str(tmp_path))
    np.savez(tmp_path / "mnist.npz", **{**arrays, "y_test": arrays["y_test"] + 1})
    with pytest.raises(DataError, match=r"mnist\.npz: The SHA-256 of y_test is not that of the data set"):
        load_dataset("mnist", download=False)
    _write_idx(tmp_path / "debian/mnist", arrays)
    np.testing.assert_array_equal(load_dataset("mnist", download=False).y_test, arrays["y_test"])


def test_pickles_and_rubbish_in_an_npz_are_refused(
    arrays: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECURE_INFER_DATA", str(tmp_path))
    for content in (dict(arrays, x_train=np.array([{}], dtype=object)), {"x_train": arrays["x_train"]}):
        np.savez(tmp_path / "mnist.npz", **content)
        with pytest.raises(DataError, match="Not such an npz file"):
            load_dataset("mnist", download=False)
    (tmp_path / "mnist.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(DataError, match="Not such an npz file"):
        load_dataset("mnist", download=False)


def test_a_truncated_gzip_file_is_refused(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    folder = tmp_path / "debian/mnist"
    _write_idx(folder, arrays)
    file = folder / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(DataError, match="not a whole gzip file"):
        load_dataset("mnist", download=False)


def test_the_error_lists_every_place_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError) as caught:
        load_dataset("fashion-mnist", download=False)
    text = str(caught.value)
    for place in ("$SECURE_INFER_DATA", str(tmp_path / "debian"), str(tmp_path / "cache")):
        assert place in text
    assert all(problem.fix for problem in caught.value.problems)
    assert caught.value.exit_code == 11


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="digits, mnist, fashion-mnist, cifar10, cifar10-jpeg"):
        load_dataset("imagenet")


def test_cifar_is_read_from_the_binary_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    records = random.integers(0, 10, (6, 2, 3073), dtype=np.uint8)
    blob = io.BytesIO()
    with tarfile.open(fileobj=blob, mode="w:gz") as archive:
        for i, name in enumerate([*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]):
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = records[i].nbytes
            archive.addfile(member, io.BytesIO(records[i].tobytes()))
    folder = tmp_path / "debian/cifar10"
    folder.mkdir(parents=True)
    (folder / data.CIFAR_FILE).write_bytes(blob.getvalue())
    with pytest.raises(DataError, match="SHA-256"):
        load_dataset("cifar10", download=False)
    digest = hashlib.sha256(blob.getvalue()).hexdigest()
    source = replace(data.SOURCES["cifar10"], sha256={data.CIFAR_FILE: digest})
    monkeypatch.setattr(data, "SOURCES", {"cifar10": source})
    found = load_dataset("cifar10", download=False)
    assert found.x_train.shape == (10, 3, 32, 32) and found.y_test.tolist() == records[5, :, 0].tolist()
    assert found.x_test[1, 2, 31, 31] == np.float32(records[5, 1, 3072]) / np.float32(255)


def test_faces_are_split_by_person_and_a_file_that_is_not_theirs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECURE_INFER_DATA", str(tmp_path))
    random, file = np.random.default_rng(2), tmp_path / "orl-faces.npz"
    x, y = random.integers(0, 256, (30, 6, 5), dtype=np.uint8), np.repeat(np.arange(3, dtype=np.uint8), 10)
    with pytest.raises(DataError, match=r"orl-faces\.npz"):
        load_dataset("orl")
    for damaged, why in (({"x": x}, "npz"), ({"x": x, "y": y[1:]}, "do not fit"), ({"x": x, "y": y}, "SHA-256")):
        np.savez(file, **damaged)
        with pytest.raises(DataError, match=why):
            load_dataset("orl")
    parts = data._split(x, y, 0.2)
    digests = {part: hashlib.sha256(array.tobytes()).hexdigest() for part, array in parts.items()}
    monkeypatch.setattr(data, "SOURCES", {"orl": replace(data.SOURCES["orl"], sha256=digests)})
    faces = load_dataset("orl")
    assert faces.x_train.shape == (24, 1, 6, 5) and faces.x_test.shape == (6, 1, 6, 5)
    assert faces.y_test.tolist() == [0, 0, 1, 1, 2, 2] and faces.x_test.max() <= 1
    images = np.concatenate([faces.x_train, faces.x_test]).reshape(30, -1)
    assert len(np.unique(images, axis=0)) == 30, "no image is in both parts"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder that a web server on this machine serves, and its address."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(folder))  # type: ignore[arg-type]

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as web:
        thread = threading.Thread(target=web.serve_forever, daemon=True)
        thread.start()
        yield folder, f"http://127.0.0.1:{web.server_address[1]}/"
        web.shutdown()
        thread.join()


def test_a_data_set_is_downloaded_once(
    arrays: dict[str, np.ndarray], server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = server
    for part, file in data._IDX_FILES.items():
        (folder / file).write_bytes(_idx_gz(arrays[part]))
    # The first mirror lacks the files.
    source = replace(data.SOURCES["mnist"], urls=(f"{address}nothing/", address))
    monkeypatch.setattr(data, "SOURCES", {"mnist": source})
    np.testing.assert_array_equal(load_dataset("mnist").y_train, arrays["y_train"])
    for file in data._IDX_FILES.values():
        (folder / file).unlink()
    np.testing.assert_array_equal(load_dataset("mnist").y_train, arrays["y_train"])


def test_a_download_that_fails_its_checksum_leaves_nothing(server: tuple[Path, str], tmp_path: Path) -> None:
    folder, address = server
    (folder / "a.gz").write_bytes(b"altered")
    target = tmp_path / "new/a.gz"
    with pytest.raises(DataError, match=r"the MD5 is \w+, expected 0") as caught:
        fetch([f"{address}a.gz", f"{address}b.gz"], target, "0" * 32)
    assert len(caught.value.problems) == 2 and "404" in str(caught.value)
    assert os.listdir(target.parent) == []


def test_a_download_that_is_too_large_is_cut_off(server: tuple[Path, str], tmp_path: Path) -> None:
    folder, address = server
    (folder / "a.gz").write_bytes(bytes(1000))
    with pytest.raises(DataError, match="larger than 999 bytes"):
        fetch([f"{address}a.gz"], tmp_path / "a.gz", hashlib.md5(bytes(1000)).hexdigest(), limit=999)
    fetch([f"{address}a.gz"], tmp_path / "a.gz", hashlib.md5(bytes(1000)).hexdigest(), limit=1000)
    assert (tmp_path / "a.gz").read_bytes() == bytes(1000)
