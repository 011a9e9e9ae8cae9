"""Networks by name: the zoo, and somebody's own torch network in a file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from secure_infer import zoo
from secure_infer.cli import networks
from secure_infer.nn.data import load_dataset
from secure_infer.nn.train import evaluate
from tests.cli.command import call

DIGITS = [name for name in zoo.models() if zoo.recipe(name).dataset == "digits"]
OWN = """
import torch
from torch import nn

torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)).eval()
lstm = nn.Sequential(nn.Linear(4, 4), nn.Softplus(), nn.LSTM(4, 4)).eval()


class Doubled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 2)

    def forward(self, x):
        return 2 * self.layer(torch.flatten(x, 1))
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "own.py").write_text(OWN)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((50, 1, 8, 8)))
    return tmp_path / "own.py"


def test_models_lists_the_zoo(capsys: pytest.CaptureFixture[str]) -> None:
    assert all(name in call(capsys, "models")[1] for name in zoo.models())
    listed = json.loads(call(capsys, "models", "--json")[1])["models"]
    assert [entry["name"] for entry in listed] == zoo.models()
    assert all(entry["protocols"] for entry in listed)


@pytest.mark.parametrize("name", DIGITS)
def test_check_agrees_with_the_recipe(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    meant = zoo.recipe(name).protocols
    codes = {protocol: call(capsys, "check", name, "--protocol", protocol)[0] for protocol in meant}
    assert codes == dict.fromkeys(meant, 0)


def test_a_zoo_model_from_bundle_to_prediction(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tmp_path / "digits.bundle"
    assert call(capsys, "compile", "digits-mlp-bnn", "--protocol", "clear", "--out", bundle)[0] == 0
    words = ["--input", "digits", *(word for i in range(20) for word in ("--index", i))]
    code, out, _ = call(capsys, "predict", bundle, *words, "--json")
    assert code == 0
    classes = np.array(json.loads(out)["classes"])
    assert (classes == load_dataset("digits").y_test[:20]).mean() > 0.8
    code, out, _ = call(capsys, "predict", "digits-mlp-bnn", "--protocol", "clear", "--mode", "clear", *words, "--json")
    assert (code, json.loads(out)["classes"]) == (0, classes.tolist())
    code, _, err = call(capsys, "predict", bundle, "--protocol", "clear", *words)
    assert (code, "compiled already" in err) == (2, True)
    code, _, err = call(capsys, "predict", bundle, "--input", "digits", "--index", 9999)
    assert (code, "got 9999" in err) == (2, True)


def test_ones_own_torch_network(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = tmp_path / "x.npy"
    for name, size in (("net", 3), ("Doubled", 2)):
        assert call(capsys, "check", f"{own}:{name}", "--protocol", "clear")[0] == 0
        words = ["--protocol", "clear", "--calibration", inputs, "--out", tmp_path / "b", "--n-bits", 6]
        code, _, err = call(capsys, "compile", f"{own}:{name}", *words)
        assert code == 0, err
        code, out, _ = call(capsys, "predict", tmp_path / "b", "--input", inputs, "--mode", "clear", "--json")
        assert code == 0
        got = np.array(json.loads(out)["outputs"])
        assert got.shape == (50, size)
        # Importing the file again seeds torch again, so this is the network that was compiled.
        net = networks.find(f"{own}:{name}").net
        expected = net(torch.as_tensor(np.load(inputs), dtype=torch.float32)).detach().numpy()
        assert np.abs(got - expected).max() < 0.1


def test_check_names_every_layer_of_ones_own_network(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "check", f"{own}:lstm", "--protocol", "ckks", "--json")
    assert code == 3
    problems = json.loads(out)["error"]["problems"]
    assert {problem["where"] for problem in problems} == {"1", "2"}
    assert all(problem["fix"] for problem in problems)


def test_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = zoo.recipe("digits-mlp-bnn")
    short = replace(recipe, training=replace(recipe.training, epochs=2))
    monkeypatch.setattr(zoo, "recipe", lambda name: short)
    out = tmp_path / "weights.safetensors"
    code, text, _ = call(capsys, "train", "digits-mlp-bnn", "--out", out, "--json")
    assert code == 0
    document = json.loads(text)
    assert len(document["epochs"]) == 2
    digits = load_dataset("digits")
    accuracy = evaluate(zoo.with_weights(short, out.read_bytes()), digits.x_test, digits.y_test)
    assert (accuracy.correct, accuracy.n) == (document["held_out"]["correct"], document["held_out"]["n"])
    code, text, _ = call(capsys, "train", "digits-mlp-bnn", "--out", out)
    assert (code, f"{accuracy.correct} of {accuracy.n}" in text) == (0, True)
