"""Bundles: whole or refused."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest

import secure_infer as si
from secure_infer import bundle, files
from secure_infer.client import Client
from secure_infer.errors import BundleError, UsageError
from tests.networks import all_corners, small_graph


@pytest.fixture
def path(tmp_path: Path) -> Path:
    graph = small_graph(exact=True)
    return si.compile(graph, all_corners(graph), protocol="clear").save(tmp_path / "model.bundle")


def _rewrite(path: Path, **changed: bytes) -> None:
    """The same zip with some parts replaced, so that only the manifest can tell."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, part in (parts | {key.replace("__", "."): value for key, value in changed.items()}).items():
            archive.writestr(name, part)
    path.write_bytes(buffer.getvalue())


def _manifest(path: Path) -> dict[str, object]:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("manifest.json"))


def test_equal_models_make_equal_files(path: Path) -> None:
    before = path.read_bytes()
    assert si.load(path).save(path).read_bytes() == before


def test_an_altered_part_is_named(path: Path) -> None:
    _rewrite(path, **{"graph__json": b"{}"})
    with pytest.raises(BundleError, match=r"SHA-256 of graph\.json"):
        si.load(path)


def test_an_extra_part_is_refused(path: Path) -> None:
    _rewrite(path, **{"evil__py": b"print()"})
    with pytest.raises(BundleError, match=r"evil\.py"):
        si.load(path)


def test_a_newer_schema_is_refused(path: Path) -> None:
    _rewrite(path, **{"manifest__json": json.dumps({**_manifest(path), "schema": bundle.SCHEMA + 1}).encode()})
    with pytest.raises(BundleError, match="newer version"):
        si.load(path)


@pytest.mark.parametrize("manifest", [b"", b"[]", b"{}", b'{"schema": 1}', b'{"schema": 1, "parts": 3}'])
def test_malformed_manifests_are_refused(path: Path, manifest: bytes) -> None:
    _rewrite(path, **{"manifest__json": manifest})
    with pytest.raises(BundleError):
        si.load(path)


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_truncated_files_are_refused(path: Path, keep: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(keep if keep >= 1 else keep * len(data))])
    with pytest.raises(BundleError, match="copy or compile it again"):
        si.load(path)


def test_absent_files_and_urls_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        si.load(tmp_path / "nothing.bundle")
    with pytest.raises(UsageError, match="address can't be used"):
        Client.connect("ftp://host:8443")


def test_writing_leaves_the_old_file_or_the_new_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UsageError, match="No space left"):
        files.write(path, b"half")
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
