"""compile, keygen, encrypt, run, decrypt as five processes that share nothing but the files of their role."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

import numpy as np
import pytest

from secure_infer.client import SECRET
from secure_infer.graph.graph import Graph
from secure_infer.graph.interpret import interpret, interpret_real
from secure_infer.wire import frame
from tests.cli import nets
from tests.cli.command import NETS, call, process, save_inputs, succeed

CASES = {"clear": nets.signs, "ckks": nets.square, "mpc": nets.signs, "tfhe": nets.signs}


def _move(files: list[Path], to: Path) -> list[Path]:
    """Carry files from one role's folder to another's: what is not moved is not there."""
    to.mkdir(exist_ok=True)
    return [Path(shutil.move(path, to / path.name)) for path in files]


def _clear(net: Graph, x: np.ndarray, exact: bool = True) -> np.ndarray:
    """What the network gives in the clear: over the integers, or over the reals as CKKS understands it."""
    evaluate = interpret if exact else interpret_real
    return net.dequantize(evaluate(net, net.quantize(x)))


@pytest.mark.parametrize("protocol", CASES)
def test_five_processes(protocol: str, tmp_path: Path) -> None:
    x = save_inputs(tmp_path / "x.npy", 3)
    developer, server, client = (tmp_path / name for name in ("developer", "server", "client"))
    developer.mkdir()
    name = f"{NETS}:{CASES[protocol].__name__}"
    words = ["--protocol", protocol, "--calibration", tmp_path / "x.npy", "--out", developer / "net.bundle"]
    compiled = succeed("compile", name, *words, "--out-client", developer / "net.client")
    (bundle,) = _move([developer / "net.bundle"], server)
    (half, inputs) = _move([developer / "net.client", tmp_path / "x.npy"], client)

    secret, evaluation = client / "secret.key", client / "evaluation.key"
    made = succeed("keygen", half, "--out-secret", secret, "--out-evaluation", evaluation)
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert made["fingerprint"] == compiled["fingerprint"]

    sent = succeed("encrypt", half, "--secret", secret, "--input", inputs, "--out", client / "message.bin")
    messages = _move([Path(entry["path"]) for entry in sent["messages"]] + [evaluation], server)
    evaluation = messages.pop()
    words = [word for path in messages for word in ("--message", path)]
    answered = succeed("run", bundle, "--evaluation", evaluation, *words, "--out", server / "reply.bin", cwd=server)
    assert answered["wall_s"] > 0

    replies = _move([Path(entry["path"]) for entry in answered["replies"]], client)
    words = [word for path in replies for word in ("--reply", path)]
    result = succeed("decrypt", half, "--secret", secret, *words, "--out", client / "y.npy")

    expected = _clear(CASES[protocol](), x, exact=protocol != "ckks")
    bound = compiled["guarantee"]["error_bound"] or 0.0
    np.testing.assert_allclose(np.load(client / "y.npy"), expected, rtol=0, atol=bound + 1e-9)
    np.testing.assert_allclose(result["outputs"], expected, rtol=0, atol=bound + 1e-9)
    assert len(sent["messages"]) == len(answered["replies"]) == (2 if protocol == "mpc" else 1)
    (key,) = frame.unpack(secret.read_bytes(), SECRET).parts
    assert not key or not any(key[len(key) // 2 :][:64] in path.read_bytes() for path in server.iterdir())


def test_keys_and_replies_of_another_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_inputs(tmp_path / "x.npy", 1)
    for net, folder in ((nets.square, tmp_path / "one"), (nets.cubic, tmp_path / "two")):
        words = ["--protocol", "ckks", "--calibration", tmp_path / "x.npy", "--out", folder / "net"]
        assert call(capsys, "compile", f"{NETS}:{net.__name__}", *words)[0] == 0
    one, two = tmp_path / "one", tmp_path / "two"
    keys = ["--out-secret", one / "secret", "--out-evaluation", one / "evaluation"]
    assert call(capsys, "keygen", one / "net", *keys)[0] == 0
    words = ["--input", tmp_path / "x.npy", "--out", one / "message"]
    assert call(capsys, "encrypt", one / "net", "--secret", one / "secret", *words)[0] == 0

    code, _, err = call(capsys, "encrypt", two / "net", "--secret", one / "secret", *words)
    assert (code, "another model" in err) == (7, True)
    words = ["--evaluation", one / "evaluation", "--message", one / "message", "--out", one / "reply"]
    assert call(capsys, "run", two / "net", *words)[0] == 7
    assert not (one / "reply").exists()
    assert call(capsys, "run", one / "net", *words)[0] == 0

    (one / "reply").write_bytes((one / "reply").read_bytes()[:-100])
    assert call(capsys, "decrypt", one / "net", "--secret", one / "secret", "--reply", one / "reply")[0] in (6, 8)


def test_no_secure_parameters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_inputs(tmp_path / "x.npy")
    words = ["--protocol", "ckks", "--calibration", tmp_path / "x.npy", "--out", tmp_path / "b"]
    code, _, err = call(capsys, "compile", f"{NETS}:deep", *words)
    assert code == 9
    assert "Traceback" not in err
    assert not (tmp_path / "b").exists()


def test_predict_keeps_keys(tmp_path: Path) -> None:
    x = save_inputs(tmp_path / "x.npy")
    words = ["--protocol", "ckks", "--calibration", tmp_path / "x.npy", "--out", tmp_path / "net"]
    succeed("compile", f"{NETS}:square", *words)
    cache, words = tmp_path / "keys", ["predict", tmp_path / "net", "--input", tmp_path / "x.npy"]
    first = succeed(*words, "--key-cache", cache)
    kept = {path: path.read_bytes() for path in cache.rglob("*") if path.name in ("secret-key", "evaluation-keys")}
    second = succeed(*words, "--key-cache", cache, "--index", 2, "--index", 0)
    assert kept == {
        path: path.read_bytes() for path in cache.rglob("*") if path.name in ("secret-key", "evaluation-keys")
    }
    assert len(kept) == 2
    bound = first["guarantee"]["error_bound"]
    expected = _clear(nets.square(), x, exact=False)
    np.testing.assert_allclose(first["outputs"], expected, rtol=0, atol=bound)
    np.testing.assert_allclose(second["outputs"], expected[[2, 0]], rtol=0, atol=bound)


@pytest.mark.parametrize("mode", ["clear", "simulate", "encrypted"])
def test_predict_modes(mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    x = save_inputs(tmp_path / "x.npy")
    words = ["--protocol", "clear", "--calibration", tmp_path / "x.npy", "--out", tmp_path / "net"]
    assert call(capsys, "compile", f"{NETS}:signs", *words)[0] == 0
    code, out, _ = call(capsys, "predict", tmp_path / "net", "--input", tmp_path / "x.npy", "--mode", mode, "--json")
    assert code == 0
    expected = _clear(nets.signs(), x)
    assert json.loads(out)["outputs"] == expected.tolist()
    assert json.loads(out)["classes"] == expected.argmax(axis=1).tolist()


def test_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    save_inputs(tmp_path / "x.npy")
    words = ["--protocol", "clear", "--calibration", tmp_path / "x.npy", "--out", tmp_path / "net"]
    assert call(capsys, "compile", f"{NETS}:signs", *words, "--out-client", tmp_path / "half")[0] == 0
    code, out, _ = call(capsys, "inspect", tmp_path / "net")
    assert code == 0
    assert all(part in out for part in ("%first = Linear", "look_ups", "Guarantee", "adversary"))
    document = json.loads(call(capsys, "inspect", tmp_path / "net", "--json")[1])
    assert document["cost"]["look_ups"] == 3
    half = json.loads(call(capsys, "inspect", tmp_path / "half", "--json")[1])
    assert half["fingerprint"] == document["fingerprint"]
    assert "network" not in half
    assert "Client half" in call(capsys, "inspect", tmp_path / "half")[1]


def test_a_module_in_the_working_folder(tmp_path: Path) -> None:
    shutil.copy(NETS, tmp_path / "my_nets.py")
    save_inputs(tmp_path / "x.npy")
    words = ["my_nets:signs", "--protocol", "clear", "--calibration", "x.npy", "--out", "net"]
    assert process("compile", *words, cwd=tmp_path).returncode == 0
    assert process("check", "my_nets:signs", "--protocol", "clear", cwd=tmp_path).returncode == 0
