"""Calls the command line, in a process of its own or in this one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from secure_infer.cli import app

NETS = Path(__file__).with_name("nets.py")


def process(*words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `secure-infer` in a process of its own."""
    command = [sys.executable, "-m", "secure_infer.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=cwd, check=False)


def succeed(*words: object, cwd: Path | None = None) -> Any:
    """Run a command in a process of its own with `--json`; returns its document."""
    done = process(*words, "--json", cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Run a command in this process: exit code, standard output, standard error."""
    code = app.run([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def save_inputs(path: Path, n: int = 6) -> np.ndarray:
    """Inputs for the networks of `nets`."""
    x = np.random.default_rng(1).integers(0, 4, (n, 4)) * 0.25
    np.save(path, x)
    return x
