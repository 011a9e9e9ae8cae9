"""Every code block of the README runs, in order, in an empty folder."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)


def _shell(block: str) -> None:
    """Run a block as bash does, and stop what it left in the background only when everything has run."""
    for target in re.findall(r"^make (\S+)", block, re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    block = re.sub(r"^make .*$", "", block, flags=re.MULTILINE)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    subprocess.run(["bash", "-euc", block], env={**os.environ, "PATH": path}, timeout=300, check=True)


def _end_background(folder: Path) -> None:
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "cwd").resolve() == folder and int(process.name) != os.getpid():
                os.kill(int(process.name), signal.SIGTERM)


@pytest.mark.filterwarnings("default")
def test_every_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "protocols").symlink_to(ROOT / "protocols")
    names: dict[str, object] = {}
    try:
        for language, text in BLOCKS:
            assert language in ("python", "sh")
            if language == "python":
                exec(compile(text, "README.md", "exec"), names)
            else:
                _shell(text)
    finally:
        _end_background(tmp_path)


def test_a_reader_finds_install_and_example_at_once() -> None:
    lines = README.read_text().splitlines()
    assert any("make demo" in line for line in lines[:15])
    first = next(i for i, line in enumerate(lines) if line.startswith("```python"))
    end = lines.index("```", first)
    assert end <= 25
    assert len([line for line in lines[first + 1 : end] if line]) <= 12
