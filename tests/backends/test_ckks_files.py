"""SEAL's files: private, short-lived, and elsewhere if memory is full."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from secure_infer.backends.ckks.seal import dump
from secure_infer.errors import UsageError


class _Handle:
    """Stands for an object of SEAL; the first `full` places have no room."""

    def __init__(self, full: int) -> None:
        self._full = full
        self.paths: list[Path] = []

    def save(self, path: str) -> None:
        self.paths.append(Path(path))
        if len(self.paths) <= self._full:
            raise RuntimeError("I/O error")
        assert Path(path).parent.stat().st_mode & 0o077 == 0
        Path(path).write_bytes(b"key")


@pytest.mark.parametrize("full", [0, 1])
def test_a_full_place_is_passed_over_and_nothing_stays(full: int) -> None:
    handle = _Handle(full)
    assert dump(handle) == b"key"
    assert len(handle.paths) == full + 1
    assert not any(path.exists() for path in handle.paths)


def test_no_room_anywhere_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    handle = _Handle(9)
    with pytest.raises(UsageError, match="full, or can't be written"):
        dump(handle)
    assert not any(path.exists() for path in handle.paths)
