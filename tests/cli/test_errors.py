"""Every mistake gives one clean message, on the right stream, and the exit code that the help names."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from secure_infer import errors
from secure_infer.cli import app, models
from secure_infer.errors import Problem, SecureInferError, UnsupportedNetwork
from tests.cli.command import NETS, call, save_inputs

KINDS = [SecureInferError, *SecureInferError.__subclasses__()]


def _raising(error: BaseException) -> Callable[..., None]:
    def verb() -> None:
        raise error

    return verb


def _raising_json(error: BaseException) -> Callable[..., None]:
    def verb(json: Any = False) -> None:
        raise error

    verb.__annotations__ = {"json": models.console.Json}
    return verb


@pytest.mark.parametrize("kind", KINDS)
def test_each_error_has_its_exit_code(
    kind: type[SecureInferError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = kind(
        "It failed.", [Problem("there", "Is wrong.", "mend it."), Problem("here", "Too.", "do.")], "%x\n^^ this"
    )
    monkeypatch.setattr(models, "models", _raising(error))
    code, out, err = call(capsys, "models")
    assert (code, out) == (kind.exit_code, "")
    assert all(part in err for part in ("It failed.", "there: Is wrong.", "fix: mend it.", "here: Too.", "^^ this"))
    assert "Traceback" not in err


@pytest.mark.parametrize("kind", KINDS)
def test_each_error_as_json(
    kind: type[SecureInferError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(models, "models", _raising_json(kind("It failed.", [Problem("a", "b", "c")])))
    code, out, err = call(capsys, "models", "--json")
    assert (code, err) == (kind.exit_code, "")
    assert json.loads(out) == {
        "error": {
            "type": kind.__name__,
            "summary": "It failed.",
            "problems": [{"where": "a", "what": "b", "fix": "c"}],
            "exit_code": kind.exit_code,
        }
    }


def test_exit_codes_are_distinct() -> None:
    assert len({kind.exit_code for kind in KINDS}) == len(KINDS)
    assert set(app.exit_codes()) == {0, app.INTERNAL, app.INTERRUPTED, *(kind.exit_code for kind in KINDS)}


def test_defect(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(models, "models", _raising(ZeroDivisionError("oh")))
    code, out, err = call(capsys, "models")
    assert (code, out) == (70, "")
    assert "ZeroDivisionError: oh" in err and "secure-infer --debug models" in err and "Traceback" not in err


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(models, "models", _raising(ZeroDivisionError("oh")))
    monkeypatch.setattr(app.logging, "basicConfig", lambda **_: None)
    code, _, err = call(capsys, "--debug", "models")
    assert code == 70
    assert "Traceback (most recent call last)" in err


def test_interrupt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(models, "models", _raising(KeyboardInterrupt()))
    assert call(capsys, "models")[0] == 130


def test_ctrl_c_ends_a_process_cleanly() -> None:
    command = [sys.executable, "-m", "secure_infer.cli", "check", f"{NETS}:slow", "--protocol", "clear"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "began\n"
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=30)
    assert running.returncode == 130
    assert err == "error: Interrupted.\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nothing"], "No such command"),
        (["modelz"], "models"),
        (["compile"], "MODEL"),
        (["models", "--colour"], "--colour"),
        (["demo", "--n", "many"], "valid integer"),
        (["demo", "--n", "0", "--protocols", "clear"], "Expected 1 to"),
        (["demo", "--protocols", "rot13"], "rot13"),
        (["compile", f"{NETS}:signs", "--protocol", "rot13", "--out", "b", "--calibration", "x.npy"], "rot13"),
        (["compile", f"{NETS}:signs", "--protocol", "clear", "--out", "b"], "--calibration"),
        (["compile", f"{NETS}:none", "--protocol", "clear", "--out", "b"], "has no none"),
        (["compile", f"{NETS}:a_number", "--protocol", "clear", "--out", "b"], "is a int"),
        (["compile", f"{NETS}:broken", "--protocol", "clear", "--out", "b"], "no network today"),
        (["compile", "absent.py:net", "--protocol", "clear", "--out", "b"], "no such file"),
        (["compile", "absent_module:net", "--protocol", "clear", "--out", "b"], "absent_module"),
        (["check", f"{NETS}:signs", "--protocol", "rot13"], "rot13"),
        (["inspect", "absent"], "No such file"),
        (["predict", "absent", "--input", "x.npy"], "--protocol"),
    ],
)
def test_misuse(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_inputs(tmp_path / "x.npy")
    code, out, err = call(capsys, *words)
    assert (code, out) == (2, "")
    assert says.lower() in " ".join(err.split()).lower()
    assert "fix: " in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.npy"]


def test_all_wrong_options_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_inputs(tmp_path / "x.npy")
    words = [
        "compile",
        f"{NETS}:signs",
        "--protocol",
        "clear",
        "--out",
        tmp_path / "b",
        "--calibration",
        tmp_path / "x.npy",
    ]
    code, _, err = call(capsys, *words, "--option", "a", "--option", "=2", "--option", "c=3")
    assert code == 2
    assert err.count("Expected name=value") == 2
    code, _, err = call(capsys, *words, "--option", "depth=3", "--option", "speed=fast")
    assert code == 2
    assert "depth" in err and "speed" in err


def test_check_lists_what_does_not_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from secure_infer.backends.clear import ClearBackend

    monkeypatch.setattr(ClearBackend, "ops", frozenset({"Sign"}))
    code, _, err = call(capsys, "check", f"{NETS}:signs", "--protocol", "clear")
    assert code == UnsupportedNetwork.exit_code == 3
    assert "first: " in err and "last: " in err and "act: " not in err
    code, out, _ = call(capsys, "check", f"{NETS}:signs", "--protocol", "clear", "--json")
    assert code == 3
    assert [problem["where"] for problem in json.loads(out)["error"]["problems"]] == ["first", "last"]


@pytest.fixture
def bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    save_inputs(tmp_path / "x.npy")
    path = tmp_path / "b"
    words = ["--protocol", "clear", "--out", path, "--calibration", tmp_path / "x.npy"]
    assert call(capsys, "compile", f"{NETS}:signs", *words)[0] == 0
    return path


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (np.zeros((2, 5)), "Expected (n, 4)"),
        (np.full((2, 4), np.nan), "NaN"),
        (np.full((2, 4), 99.0), "calibrated range"),
        (np.array([["a"] * 4]), "numbers"),
        (np.float64(3), "single number"),
    ],
)
def test_input(bundle: Path, x: np.ndarray, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "y.npy", x)
    code, _, err = call(capsys, "predict", bundle, "--input", tmp_path / "y.npy")
    assert code == 4
    assert says in err


def test_pickles_and_garbage_are_refused(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "pickle.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (tmp_path / "garbage.npy").write_bytes(b"\x93NUMPY\x01\x00not an array")
    (tmp_path / "empty.npy").write_bytes(b"")
    np.savez(tmp_path / "two.npz", a=np.zeros(3), b=np.zeros(3))
    for name in ("pickle.npy", "garbage.npy", "empty.npy", "two.npz"):
        code, _, err = call(capsys, "predict", bundle, "--input", tmp_path / name)
        assert (code, "Can't read an array" in " ".join(err.split())) == (4, True), err


def test_bundle(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = bundle.read_bytes()
    for damaged in (whole[:-40], whole[:200] + b"\x00" + whole[201:], b"", b"SIF1 and so on"):
        bundle.write_bytes(damaged)
        code, _, err = call(capsys, "inspect", bundle)
        assert code == 6
        assert "Traceback" not in err


def test_message_and_reply(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret, evaluation, reply = (tmp_path / name for name in ("s", "e", "r"))
    assert call(capsys, "keygen", bundle, "--out-secret", secret, "--out-evaluation", evaluation)[0] == 0
    words = ["--evaluation", evaluation, "--out", reply]
    assert call(capsys, "run", bundle, *words, "--message", secret)[0] == 6
    assert call(capsys, "run", bundle, *words, "--message", secret, "--message", secret)[0] == 2
    assert call(capsys, "run", bundle, "--evaluation", secret, "--out", reply, "--message", secret)[0] == 6
    assert not reply.exists()
    assert call(capsys, "decrypt", bundle, "--secret", secret, "--reply", evaluation)[0] == 8
    assert call(capsys, "decrypt", bundle, "--secret", evaluation, "--reply", evaluation)[0] == 6


def test_missing_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from secure_infer.cli import inputs

    def absent(name: str) -> None:
        raise errors.DataError(f"The data set {name} was not found.", [Problem(name, "Not here.", "put it there.")])

    monkeypatch.setattr(inputs, "dataset", absent)
    words = ["compile", f"{NETS}:signs", "--protocol", "clear", "--out", tmp_path / "b", "--calibration", "mnist"]
    code, _, err = call(capsys, *words)
    assert code == 11
    assert "mnist" in err
