"""The help is instant and complete, and nothing heavy is loaded before it is needed."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest

from secure_infer.cli import app
from tests.cli.command import call, process

HEAVY = ("torch", "concrete", "tenseal", "crypten", "brevitas", "fastapi", "matplotlib", "sklearn")
_IMPORTED = """
import json, sys
from secure_infer.cli import app
code = app.run(sys.argv[1:]) if sys.argv[1:] else 0
print(json.dumps([code, sorted(name for name in sys.modules if "." not in name)]), file=sys.stderr)
"""


def _loaded(*words: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", _IMPORTED, *words], capture_output=True, text=True, check=True)
    code, names = json.loads(done.stderr.splitlines()[-1])
    assert code == 0, done.stdout
    return set(names)


def test_help_takes_little_time() -> None:
    def cpu_seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert process("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # 0.2 s alone; CPU, unlike time by the clock, hardly depends on what else the machine does.
    assert min(cpu_seconds() for _ in range(3)) < 1.0


@pytest.mark.parametrize("words", [(), ("--help",), ("--version",), ("compile", "--help"), ("models", "--json")])
def test_nothing_heavy_is_loaded(words: tuple[str, ...]) -> None:
    assert not _loaded(*words) & set(HEAVY)


def test_help_loads_no_numpy() -> None:
    assert "numpy" not in _loaded("--help")


def test_help_names_every_verb_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "--help")
    assert code == 0
    assert all(verb in out for verb in app.VERBS)
    for number, meaning in app.exit_codes().items():
        assert f"{number}  {meaning.split()[0]}" in out


@pytest.mark.parametrize("verb", app.VERBS)
def test_every_verb_has_help_and_json(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, verb, "--help")
    assert code == 0
    assert "--json" in out


def test_no_words_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Exit codes" in call(capsys)[1]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "--version")
    assert (code, out.split()[0]) == (0, "secure-infer")
