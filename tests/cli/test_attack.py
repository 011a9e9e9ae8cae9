"""`secure-infer attack` and `report`: results, what is not applicable, and misuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from secure_infer.attacks import ATTACKS
from tests.cli.command import call

pytestmark = pytest.mark.filterwarnings("ignore")


def document(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict]:
    code, out, _ = call(capsys, *words, "--json")
    return code, json.loads(out)


def test_every_attack_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = document(capsys, "attack", "--list")
    assert code == 0 and [row["name"] for row in found["attacks"]] == list(ATTACKS)
    assert all(name in call(capsys, "attack", "--list")[1] for name in ATTACKS)


def test_pgd_on_the_exact_graph(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("attack", "pgd", "--model", "digits-mlp-bnn", "--target", "quantized", "--n", "20", "--norm", "l2")
    code, strong = document(capsys, *words, "--eps", "1.5", "--steps", "20")
    assert code == 0 and strong["success"] > 0.8 and strong["success_interval"][0] < strong["success"]
    assert strong["queries"] >= strong["gradients"] > 0 and strong["settings"]["radius"] == 1.5
    code, weak = document(capsys, *words, "--eps", "0.01")
    assert code == 0 and weak["success"] < 0.3
    text = call(capsys, *words, "--eps", "1.5")[1]
    assert "95 % interval" in text and "median" in text


def test_a_label_attack_on_real_ciphertexts(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("attack", "surfree", "--model", "digits-mlp-bnn", "--target", "encrypted", "--protocol", "mpc")
    code, found = document(capsys, *words, "--n", "2", "--budget", "30", "--access", "label")
    assert code == 0 and found["access"] == "LABEL"
    assert found["queries"] <= 60 and found["bytes"]["sent"] > 1000


def test_a_simulated_result_comes_with_its_agreement(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("attack", "pgd", "--model", "digits-cnn-poly", "--target", "simulated", "--protocol", "ckks", "--n", "4")
    code, found = document(capsys, *words, "--steps", "3", "--executed", "3")
    assert code == 0 and found["agreement"]["n"] == 3 and found["agreement"]["same"] >= 2


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("pgd", "--target", "encrypted", "--protocol", "mpc"), 14),
        (("pgd", "--access", "logits"), 14),
        (("pgd", "--budget", "0"), 2),
        (("pgd", "--budget", "3", "--n", "4"), 13),
        (("nothing",), 2),
        (("pgd", "--target", "simulated"), 2),
        (("pgd", "--protocol", "mpc"), 2),
        (("pgd", "--target", "polynomial"), 2),
        (("pgd", "--set", "mood=good"), 2),
        (("pgd", "--set", "steps=few"), 2),
        (("one-pixel", "--eps", "1.5"), 2),
        (("pgd", "--norm", "l7"), 2),
        (("pgd", "--goal", "win"), 2),
        (("pgd", "--access", "root"), 2),
    ],
)
def test_every_refusal_is_one_error_of_its_own_code(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int
) -> None:
    found, said = document(capsys, "attack", *words, "--model", "digits-mlp-bnn")
    assert found == said["error"]["exit_code"] == code and said["error"]["problems"]


def test_a_network_without_labels_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    nets = Path(__file__).with_name("nets.py")
    code, said = document(capsys, "attack", "pgd", "--model", f"{nets}:mlp")
    assert code == 2 and said["error"]["problems"][0]["where"] in ("--data", "MODEL")
    code, said = document(capsys, "attack", "pgd")
    assert code == 2 and said["error"]["problems"][0]["where"] == "--model"


@pytest.mark.parametrize(
    "words",
    [
        ("--models", "imagenet"),
        ("--protocol", "bgv"),
        ("--threat", "theft"),
        ("--queries", "1"),
        ("--records", "nowhere.json"),
    ],
)
def test_a_report_of_nothing_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, said = document(capsys, "report", "--out", "report", *words)
    assert code == 2 and said["error"]["problems"]
    assert list(tmp_path.iterdir()) == []
