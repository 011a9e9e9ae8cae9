"""Recipes, architectures and the training loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from secure_infer import zoo
from secure_infer.errors import InvalidInput, UsageError
from secure_infer.nn.architectures import build
from secure_infer.nn.check import check
from secure_infer.nn.checkpoint import Checkpoint
from secure_infer.nn.data import Dataset, load_dataset
from secure_infer.nn.fix import fix
from secure_infer.nn.layers import ChebyshevActivation, PolynomialActivation, range_penalty
from secure_infer.nn.recipe import Recipe, parse_recipe, read_recipe
from secure_infer.nn.train import Accuracy, Trained, augment, evaluate, split_validation, train, tune

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "binary-mlp": {"inputs": 64, "classes": 10, "hidden": [16], "input_bits": 2, "weight_bits": [1, 2], "noise": 0.1},
    "quantized-cnn": {
        "image": [1, 8, 8],
        "classes": 10,
        "convolutions": [[4, 3, 2, 1]],
        "hidden": [8],
        "input_bits": 2,
        "weight_bits": [3, 2, 2],
        "activation_bits": 2,
    },
    "sign-network": {
        "image": [1, 8, 8],
        "classes": 10,
        "convolutions": [[6, 4, 2, 1]],
        "hidden": [16],
        "input_bits": 3,
        "magnitude": 2.0,
        "head_bits": 3,
        "noise": 0.1,
    },
    "polynomial-cnn": {
        "image": [1, 8, 8],
        "classes": 10,
        "convolutions": [[4, 4, 2, 1]],
        "hidden": [16],
    },
    "relu-cnn": {"image": [1, 8, 8], "classes": 10, "convolutions": [[4, 3, 2, 1]], "hidden": [16]},
}


def _recipe(architecture: str = "binary-mlp", **training: Any) -> Recipe:
    plan = {"epochs": 2, "seed": 7, "learning_rate": 0.01, "shift": 0.5, "rotation": 5.0, **training}
    return parse_recipe(
        "test",
        {
            "summary": "A test",
            "dataset": "digits",
            "training": plan,
            "architecture": {"name": architecture, **ARCHITECTURES[architecture]},
        },
    )


def _results(trained: Trained) -> list[tuple[Any, ...]]:
    """What epochs gave, without the time that they took."""
    return [(epoch.loss, epoch.train, epoch.validation) for epoch in trained.history]


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_training_is_reproducible_and_learns(architecture: str, digits: Dataset) -> None:
    recipe = _recipe(architecture, range_penalty=0.1, sparsity=0.1)
    torch.manual_seed(0)
    first = train(recipe, dataset=digits)
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.rand(1) == after, "training moved the caller's random state"
    second = train(recipe, dataset=digits)
    states = first.net.state_dict(), second.net.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert _results(first) == _results(second) and len(first.history) == 2
    assert first.history[1].loss < first.history[0].loss
    assert first.history[1].validation is not None and first.history[1].validation.n == 137
    assert first.held_out.value > 0.3 and not first.net.training
    other = train(replace(recipe, training=replace(recipe.training, seed=8)), dataset=digits)
    assert _results(other) != _results(first)


@pytest.mark.parametrize(("optimizer", "schedule"), [("adamw", "one-cycle"), ("sgd", "constant"), ("adam", "cosine")])
def test_each_optimizer_and_schedule_runs_to_its_end(optimizer: str, schedule: str, digits: Dataset) -> None:
    tiny = replace(digits, x_train=digits.x_train[:50], y_train=digits.y_train[:50])
    recipe = _recipe(optimizer=optimizer, schedule=schedule, batch_size=64, validation=0.0, flip=True)
    assert train(recipe, dataset=tiny).history[-1].train.n == 50


@pytest.mark.parametrize(("optimizer", "schedule"), [("adamw", "one-cycle"), ("sgd", "cosine"), ("adam", "constant")])
def test_an_interrupted_run_goes_on_to_the_same_result(
    optimizer: str, schedule: str, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = _recipe("polynomial-cnn", optimizer=optimizer, schedule=schedule, epochs=3, learning_rate=3e-3)
    straight, path = train(recipe, dataset=digits), tmp_path / "state"
    saves = []

    def interrupted(self: Checkpoint, *state: Any) -> None:
        write(self, *state)
        saves.append(path.stat().st_size)
        if len(saves) == 2:
            raise KeyboardInterrupt

    write = Checkpoint.save
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Checkpoint, "save", interrupted)
        train(recipe, dataset=digits, checkpoint=path)
    resumed = train(recipe, dataset=digits, checkpoint=path)
    assert not path.exists() and len(resumed.history) == 3 and resumed.seconds > 0
    assert _results(resumed) == _results(straight)
    for key, value in straight.net.state_dict().items():
        assert torch.equal(resumed.net.state_dict()[key], value)


def test_a_checkpoint_of_another_recipe_or_none_at_all_is_refused(digits: Dataset, tmp_path: Path) -> None:
    recipe, path = _recipe("polynomial-cnn"), tmp_path / "state"
    net = build(recipe.architecture, recipe.parameters)
    optimizer = torch.optim.Adam(net.parameters())
    Checkpoint(path, "another").save(net, optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer), {})
    with pytest.raises(UsageError, match="another recipe"):
        train(recipe, dataset=digits, checkpoint=path)
    path.write_bytes(b"\x80\x04pickle")
    with pytest.raises(UsageError, match="can't be read"):
        train(recipe, dataset=digits, checkpoint=path)


def test_the_range_penalty_narrows_what_a_polynomial_sees(digits: Dataset) -> None:
    peaks = []
    for weight in (0.0, 10.0):
        recipe = _recipe("polynomial-cnn", range_penalty=weight)
        recipe = replace(recipe, parameters={**recipe.parameters, "radius": 1.0})
        net = train(recipe, dataset=digits).net.train()
        layers = [m for m in net.modules() if isinstance(m, PolynomialActivation)]
        net(torch.from_numpy(digits.x_train[:500]))
        peaks.append(sum(float(layer.range_penalty()) for layer in layers))
    assert peaks[1] < peaks[0] / 2


@pytest.mark.full
@pytest.mark.parametrize("name", ["mnist-cnn-float", "fashion-cnn-float"])
def test_after_fix_and_some_more_training_a_network_is_as_good_as_with_relus(name: str) -> None:
    recipe, net = zoo.recipe(name), zoo.load_model(name)
    data = load_dataset(recipe.dataset)
    before = evaluate(net, data.x_test, data.y_test)
    fixed = fix(net, "ckks", data.x_train[:1000], degree=4)
    assert check(fixed, "ckks", data.x_train.shape[1:]) == []
    plan = replace(recipe.training, epochs=8, learning_rate=2e-3, validation=0.0, range_penalty=1.0)
    after = tune(fixed, data, plan).held_out
    assert after.value >= before.value - 0.005, f"{before} with ReLUs, {after} with polynomials"


def test_tuning_goes_on_from_the_weights_given(digits: Dataset) -> None:
    plan = _recipe(epochs=1, learning_rate=1e-3).training
    net = train(_recipe("relu-cnn", epochs=10), dataset=digits).net
    fixed = fix(net, "ckks", digits.x_train, degree=4)
    start = evaluate(fixed, digits.x_test, digits.y_test)
    tuned = tune(fixed, digits, plan)
    assert tuned.net is fixed and not fixed.training
    assert tuned.held_out.value > max(start.value, 0.8)
    layers = [m for m in fixed.modules() if isinstance(m, ChebyshevActivation)]
    assert layers and all(float(layer.peak) > 0 for layer in layers)
    assert float(range_penalty(fixed.train())) >= 0


def test_validation_images_come_from_the_training_part_class_by_class() -> None:
    labels = np.repeat(np.arange(4), 20)
    chosen, kept = split_validation(labels, 0.25, seed=1)
    assert sorted([*chosen, *kept]) == list(range(80))
    assert np.bincount(labels[kept]).tolist() == [5, 5, 5, 5]
    assert not np.array_equal(kept, split_validation(labels, 0.25, seed=2)[1])
    assert len(split_validation(labels, 0.0, seed=1)[1]) == 0


def test_a_shift_moves_pixels_and_fills_with_zeros() -> None:
    torch.manual_seed(0)
    images = torch.ones(200, 1, 6, 6)
    moved = augment(images, _recipe(shift=2.0, rotation=0.0).training)
    assert moved.shape == images.shape
    assert moved.max() <= 1 + 1e-6 and moved.min() == 0
    # A shift by up to two pixels never reaches the middle, and empties an outer row in half of the images or more.
    assert torch.allclose(moved[:, :, 2:4, 2:4], torch.ones(1), atol=1e-5)
    assert (moved[:, 0, 0].sum(1) < 5.9).float().mean() > 0.5
    assert torch.equal(augment(images, _recipe(shift=0.0, rotation=0.0).training), images)


def test_a_warp_moves_pixels_smoothly_and_by_as_much_as_it_says() -> None:
    torch.manual_seed(0)
    across = torch.arange(28.0).expand(300, 1, 28, 28)
    moved = augment(across, _recipe(shift=0.0, rotation=0.0, elastic=0.5).training)
    inner = (moved - across)[:, :, 6:22, 6:22]
    # Between the points that are drawn, interpolation averages some of the displacement away.
    assert 0.3 < float(inner.std()) < 0.5 and abs(float(inner.mean())) < 0.05
    assert float((inner[..., 1:] - inner[..., :-1]).std()) < 0.5 * float(inner.std())


def test_wilson_interval() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263 and 0 of 20.
    assert Accuracy(81, 263).interval == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert Accuracy(0, 20).interval == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_evaluate_counts_and_keeps_the_mode() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Identity()).train()
    x = np.eye(3, dtype=np.float32)[[0, 1, 2, 2]]
    assert evaluate(net, x, np.array([0, 1, 2, 0]), batch_size=3) == Accuracy(3, 4)
    assert net.training
    for images, labels in ((x[:0], np.zeros(0, np.int64)), (x, np.zeros(3, np.int64))):
        with pytest.raises(InvalidInput, match="images and"):
            evaluate(net, images, labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "training.epochs: Expected at least 1"),
        ({"epochs": True}, "training.epochs: Expected int"),
        ({"seed": "x"}, "training.seed: Expected int"),
        ({"optimizer": "lion"}, "Expected one of adam, adamw, sgd"),
        ({"validation": 1.5}, "Expected at most 0.9"),
        ({"learning_rate": float("nan")}, "training.learning_rate"),
        ({"epoch": 3}, "training.epoch: Unknown key"),
    ],
)
def test_a_wrong_recipe_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        _recipe(**change)


def test_all_problems_of_a_recipe_are_listed(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        parse_recipe("x", {"sumary": "", "architecture": {}, "training": {"epochs": 1}, "protocols": ["tfhe"]})
    assert {p.where for p in caught.value.problems} == {
        "sumary",
        "summary",
        "dataset",
        "protocols",
        "architecture.name",
        "training.seed",
    }
    (tmp_path / "recipe.toml").write_text("epochs = = 1")
    with pytest.raises(UsageError, match="can't be read"):
        read_recipe(tmp_path / "recipe.toml")
    with pytest.raises(UsageError, match="can't be read"):
        read_recipe(tmp_path / "absent.toml")


def test_wrong_parameters_of_an_architecture_are_listed() -> None:
    with pytest.raises(UsageError) as caught:
        build("binary-mlp", {"inputs": 4, "classes": 2, "hidden": [2], "input_bits": 1, "depth": 3})
    assert {p.where for p in caught.value.problems} == {"depth", "weight_bits"}
    with pytest.raises(UsageError, match=r"binary-mlp, .*polynomial-cnn"):
        build("transformer", {})
