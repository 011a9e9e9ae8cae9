"""The zoo: every model loads, is what its card says, and gives its golden vectors."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import secure_infer as si
from secure_infer import zoo
from secure_infer.backends import protocols
from secure_infer.errors import BundleError, DataError, UsageError
from secure_infer.graph import Graph, interpret
from secure_infer.graph.store import fingerprint
from secure_infer.nn.data import load_dataset
from secure_infer.nn.train import Accuracy, evaluate
from secure_infer.publish import CALIBRATION, golden_graph

MODELS = zoo.models()
SMALL = [name for name in MODELS if name.startswith("digits")]


def _graph(name: str) -> Graph:
    recipe = zoo.recipe(name)
    try:
        data = load_dataset(recipe.dataset, download=False)
    except DataError:
        pytest.skip(f"{recipe.dataset} is not on this machine")
    return golden_graph(zoo.load_model(name), recipe, data)


def test_the_zoo_is_complete() -> None:
    assert MODELS == [
        "cifar10-cnn-ckks",
        "cifar10-cnn-tfhe",
        "digits-cnn-float",
        "digits-cnn-poly",
        "digits-cnn-qat",
        "digits-mlp-bnn",
        "fashion-cnn-float",
        "fashion-cnn-poly",
        "fashion-cnn-qat",
        "fashion-mlp-bnn",
        "mnist-cnn-float",
        "mnist-cnn-poly",
        "mnist-cnn-qat",
        "mnist-lenet5-qat",
        "mnist-mlp-bnn",
        "mnist-mlp-poly",
        "mnist-mlp-qat",
    ]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_holds_data_only(name: str) -> None:
    folder = Path(str(zoo._folder(name)))
    assert {path.name for path in folder.iterdir()} == {zoo.RECIPE, zoo.WEIGHTS, zoo.CARD, zoo.GOLDEN}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_loads_in_evaluation_mode_and_leaves_randomness_alone(name: str) -> None:
    torch.manual_seed(0)
    net = zoo.load_model(name)
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.rand(1) == after
    assert not any(module.training for module in net.modules())
    recipe = zoo.recipe(name)
    assert recipe.name == name and "clear" in recipe.protocols and set(recipe.protocols) <= set(protocols())


@pytest.mark.parametrize("name", MODELS)
def test_golden_vectors_hold(name: str) -> None:
    graph, record = _graph(name), zoo.golden(name)
    x, expected = np.array(record["inputs"]), np.array(record["outputs"])
    found = interpret(graph, x)
    if fingerprint(graph) == record["fingerprint"] or "Polynomial" not in graph.kinds:
        np.testing.assert_array_equal(found, expected)
    else:
        # Ranges of a float network are measured, and the last bit of that may differ between processors.
        np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("name", MODELS)
def test_golden_inputs_are_held_out_images(name: str) -> None:
    graph, record = _graph(name), zoo.golden(name)
    images = load_dataset(zoo.recipe(name).dataset).x_test[record["indices"]]
    np.testing.assert_array_equal(graph.quantize(images), record["inputs"])


@pytest.mark.parametrize("name", MODELS)
def test_the_accuracy_of_the_card_is_found_again(name: str) -> None:
    recorded = Accuracy(**zoo.golden(name)["accuracy"]["held_out"])
    assert f"| Held-out accuracy | {recorded} |" in zoo.card(name)
    try:
        data = load_dataset(zoo.recipe(name).dataset, download=False)
    except DataError:
        pytest.skip("its data is not on this machine")
    found = evaluate(zoo.load_model(name), data.x_test, data.y_test)
    # Float sums may fall on the other side of a threshold on another processor, for an image in a thousand or so.
    assert found.n == recorded.n and abs(found.correct - recorded.correct) <= recorded.n // 1000


@pytest.mark.parametrize("name", SMALL)
def test_the_integer_network_is_as_good_as_the_float_one(name: str) -> None:
    graph, data = _graph(name), load_dataset("digits")
    found = graph.dequantize(interpret(graph, graph.quantize(data.x_test))).argmax(axis=1)
    recorded = zoo.golden(name)["accuracy"]["held_out"]
    assert abs(int((found == data.y_test).sum()) - recorded["correct"]) <= 1


def test_the_simulated_accuracy_of_the_card_is_found_again() -> None:
    name, n = "mnist-mlp-bnn", 500
    record, recipe, graph = zoo.golden(name)["tfhe"], zoo.recipe(name), _graph(name)
    recorded = Accuracy(**record["simulated"])
    assert f"| Simulated under TFHE | {recorded}" in zoo.card(name)
    data = load_dataset(recipe.dataset)
    compiled = si.compile(graph, data.x_train[:CALIBRATION], "tfhe", **recipe.protocols["tfhe"])
    assert compiled.program.counts["look_ups"] == record["look_ups"]
    found = compiled.predict(data.x_test[:n], mode="simulate").argmax(axis=1)
    # Four standard deviations of the share of right answers among so many images.
    spread = 4 * (recorded.value * (1 - recorded.value) / n) ** 0.5
    assert abs(float((found == data.y_test[:n]).mean()) - recorded.value) <= spread


def test_an_unknown_model_lists_the_known_ones() -> None:
    for verb in (zoo.recipe, zoo.card, zoo.load_model, zoo.golden):
        for name in ("digits-resnet", "../models/digits-mlp-bnn", ""):
            with pytest.raises(UsageError, match=r"digits-cnn-poly, .*mnist-mlp-bnn"):
                verb(name)


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A zoo of one model that may be damaged."""
    shutil.copytree(str(zoo._folder("digits-mlp-bnn")), tmp_path / "digits-mlp-bnn")
    monkeypatch.setattr(zoo, "_root", lambda: tmp_path)
    return tmp_path / "digits-mlp-bnn"


def test_altered_weights_are_refused(copied: Path) -> None:
    weights = copied / zoo.WEIGHTS
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(BundleError, match="SHA-256"):
        zoo.load_model("digits-mlp-bnn")
    weights.unlink()
    with pytest.raises(BundleError, match="No such file"):
        zoo.load_model("digits-mlp-bnn")


def test_a_damaged_record_is_refused(copied: Path) -> None:
    (copied / zoo.GOLDEN).write_text("{")
    with pytest.raises(BundleError, match="Not JSON"):
        zoo.load_model("digits-mlp-bnn")
    (copied / zoo.GOLDEN).write_text("[]")
    with pytest.raises(BundleError, match="Not a JSON object"):
        zoo.load_model("digits-mlp-bnn")


@pytest.mark.parametrize("data", [b"", b"\xff" * 40, b"\x80\x04pickle"])
def test_weights_that_are_not_safetensors_are_refused(data: bytes) -> None:
    with pytest.raises(BundleError, match="damaged"):
        zoo.with_weights(zoo.recipe("digits-mlp-bnn"), data)


def test_weights_of_another_model_are_refused() -> None:
    other = zoo._read("digits-cnn-poly", zoo.WEIGHTS)
    with pytest.raises(BundleError, match="damaged"):
        zoo.with_weights(zoo.recipe("digits-mlp-bnn"), other)
