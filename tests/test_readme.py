"""Every code block of the README runs, in order, in an empty folder."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)


def _shell(line: str) -> None:
    program, *arguments = shlex.split(line, comments=True)
    if program == "make":
        makefile = (README.parent / "Makefile").read_text()
        assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in arguments)
        return
    assert program == "secure-infer"
    found = subprocess.run(
        [Path(sys.executable).with_name(program), *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    assert found.returncode == 0, found.stderr


@pytest.mark.filterwarnings("default")
def test_every_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for language, text in BLOCKS:
        assert language in ("python", "sh")
        if language == "python":
            exec(compile(text, "README.md", "exec"), names)
        else:
            for line in filter(None, text.splitlines()):
                _shell(line)


def test_a_reader_finds_install_and_example_at_once() -> None:
    lines = README.read_text().splitlines()
    assert any("make demo" in line for line in lines[:15])
    first = next(i for i, line in enumerate(lines) if line.startswith("```python"))
    end = lines.index("```", first)
    assert end <= 25
    assert len([line for line in lines[first + 1 : end] if line]) <= 12
