"""Two owners train a perceptron on shares: the weights are those of clear training, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from secure_infer.backends.mpc.training.learn import Clear, step, train_clear
from secure_infer.backends.mpc.training.task import Task, Weights
from secure_infer.errors import BundleError, InvalidInput

FEATURES, CLASSES = 6, 3
Samples = tuple[np.ndarray, np.ndarray]


def blobs(count: int, seed: int) -> Samples:
    """Points around three centers, which a line can't part."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, count)
    centers = np.random.default_rng(0).normal(0, 1.5, (2 * CLASSES, FEATURES))
    return centers[y + CLASSES * rng.integers(0, 2, count)] + rng.normal(0, 0.5, (count, FEATURES)), y


def in_floats(task: Task, x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """The same descent in floating point."""
    weights = [task.reals(part) for part in task.first_weights()]
    rate = 2.0**-task.rate_bits / task.batch
    for chosen in task.batches(len(x)):
        inputs, target = x[chosen], np.eye(CLASSES)[y[chosen]]
        hidden = inputs @ weights[0] + weights[1]
        kept = np.maximum(hidden, 0)
        error = kept @ weights[2] + weights[3] - target
        back = error @ weights[2].T * (hidden >= 0)
        weights[2] = weights[2] - rate * kept.T @ error
        weights[3] = weights[3] - rate * error.sum(axis=0)
        weights[0] = weights[0] - rate * inputs.T @ back
        weights[1] = weights[1] - rate * back.sum(axis=0)
    return weights


def joined(task: Task, owners: list[Samples]) -> tuple[np.ndarray, np.ndarray]:
    parts = [task.samples(*samples) for samples in owners]
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])


def test_owners_get_the_weights_of_clear_training() -> None:
    pytest.importorskip("crypten")
    from secure_infer.backends.mpc.training import train

    task = Task((FEATURES, 8, CLASSES), steps=40, batch=16, rate_bits=2)
    owners = [blobs(90, 1), blobs(60, 2)]
    trained = train(task, owners)
    expected = train_clear(task, *joined(task, owners))
    assert all(np.array_equal(found, part) for found, part in zip(trained.weights, expected, strict=True))
    first = task.first_weights()
    assert not any(np.array_equal(found, part) for found, part in zip(trained.weights, first, strict=True))
    x, y = blobs(500, 3)
    assert (trained.logits(x).argmax(axis=1) == y).mean() > 0.7
    assert trained.statistics["rounds"] > 40 and trained.statistics["bytes_between_parties"] > 0


@pytest.mark.parametrize(("fraction_bits", "bound"), [(16, 2**-10), (20, 2**-12)])
def test_integers_stay_near_floating_point(fraction_bits: int, bound: float) -> None:
    """The stated error: after 400 steps at a rate of 1/16, so far is no weight from training in floating point."""
    task = Task((FEATURES, 8, CLASSES), steps=400, batch=16, rate_bits=4, fraction_bits=fraction_bits)
    owners = [blobs(90, 1), blobs(60, 2)]
    found = train_clear(task, *joined(task, owners))
    x, y = (np.concatenate(parts) for parts in zip(*owners, strict=True))
    expected = in_floats(task, x, y)
    errors = [np.abs(task.reals(part) - other).max() for part, other in zip(found, expected, strict=True)]
    assert 0 < max(errors) < bound


def test_a_step_without_error_changes_nothing() -> None:
    task = Task((2, 2), steps=1, batch=2)
    weights: Weights = [np.eye(2, dtype=np.int64) << 16, np.zeros(2, dtype=np.int64)]
    x = np.array([[1, 0], [0, 1]]) << 16
    assert np.array_equal(step(Clear(), task, weights, x, x)[0], weights[0])


def test_every_sample_is_taken_once_a_pass() -> None:
    task = Task((2, 2), steps=6, batch=4)
    taken = np.concatenate(list(task.batches(8)))
    assert all(sorted(taken[start : start + 8]) == list(range(8)) for start in (0, 8, 16))


@pytest.mark.parametrize(
    "samples",
    [
        (np.zeros((3, 5)), np.zeros(3, dtype=int)),
        (np.zeros((3, 6)), np.zeros(2, dtype=int)),
        (np.full((1, 6), np.nan), np.zeros(1, dtype=int)),
        (np.full((1, 6), 2000.0), np.zeros(1, dtype=int)),
        (np.zeros((1, 6)), np.array([3])),
        (np.zeros((1, 6)), np.array([0.0])),
        (np.zeros((0, 6)), np.zeros(0, dtype=int)),
    ],
)
def test_samples_that_do_not_fit_are_refused(samples: Samples) -> None:
    with pytest.raises(InvalidInput):
        Task((FEATURES, 8, CLASSES), steps=1).samples(*samples)


@pytest.mark.parametrize("change", [{"steps": -1}, {"batch": 12}, {"batch": 0}, {"sizes": (3,)}, {"fraction_bits": 40}])
def test_tasks_that_can_not_be_trained_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        Task(**{"sizes": (2, 2), "steps": 1, **change})


def test_a_task_survives_the_wire() -> None:
    task = Task((6, 8, 3), steps=5)
    assert Task.from_bytes(task.to_bytes()) == task
    for data in (b"", b"[]", b'{"steps": 1}', task.to_bytes().replace(b'"steps": 5', b'"steps": "5"')):
        with pytest.raises(BundleError):
            Task.from_bytes(data)
