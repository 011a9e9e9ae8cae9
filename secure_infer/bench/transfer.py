"""The run `transfer`: examples of five kinds of models against one another, and within each kind."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt

from secure_infer.attacks.statistics import wilson
from secure_infer.bench import host
from secure_infer.bench.records import Record
from secure_infer.bench.techniques import RADIUS, Labels, Model, Reals, techniques
from secure_infer.nn.data import load_dataset

FOLDER = "attacks"
DATASET, IMAGES, SPLITS, SPLIT = "mnist", 1000, 5, 5000
PUBLISHED = (
    (38.27, 23.02, 64.32, 79.31, 8.36),
    (6.31, 91.64, 91.43, 87.42, 11.29),
    (2.51, 36.56, 100.0, 80.03, 5.19),
    (0.82, 12.22, 8.85, 89.29, 3.31),
    (11.75, 42.89, 82.16, 82.95, 41.65),
)
"""Percent of a row's examples that a column's model gets wrong, in the order of `techniques` (Papernot et al. 2016)."""
Progress = Callable[[str, int, int], None]
Matrix = npt.NDArray[np.float64]


def run(n: int | None = None, progress: Progress | None = None) -> Record:
    """Fit every kind on disjoint parts of the training images, and attack held-out ones.

    Args:
        n: Held-out images, instead of 1,000.
        progress: Told the kind, the parts done and the parts to do.

    Raises:
        DataError: The data set is not to be found.
        MissingExtra: scikit-learn is not installed.
    """
    return measure(DATASET, n or IMAGES, SPLITS, SPLIT, progress or _silent)


def measure(dataset: str, images: int, splits: int, size: int, progress: Progress) -> Record:
    """As `run`, with every size free.

    Args:
        dataset: Name of a data set of square gray images.
        images: Held-out images.
        splits: Disjoint parts of the training images, two or more.
        size: Images of each part.
        progress: As in `run`.
    """
    at = datetime.now(UTC).isoformat(timespec="seconds")
    data = load_dataset(dataset)
    x, y = data.x_train.reshape(len(data.x_train), -1), data.y_train
    held, truth = data.x_test.reshape(len(data.x_test), -1)[:images], data.y_test[:images]
    models: dict[str, list[Model]] = {}
    for name, fit in techniques().items():
        models[name] = []
        for split in range(splits):
            progress(name, split, splits)
            part = slice(split * size, (split + 1) * size)
            models[name].append(fit(x[part], y[part], split))
        progress(name, splits, splits)
    crafted = {name: [_crafted(model, held) for model in group] for name, group in models.items()}
    cross = _cross(models, crafted, truth, victim=0)
    return {
        "case": "transfer",
        "dataset": dataset,
        "n": len(held),
        "splits": splits,
        "split_size": size,
        "radius": RADIUS,
        "techniques": list(models),
        "accuracy": {k: [float((m.predict(held) == truth).mean()) for m in group] for k, group in models.items()},
        "cross": _cells(cross, len(held)),
        "cross_disjoint": _cells(_cross(models, crafted, truth, victim=1), len(held)),
        "spearman": spearman(cross, np.array(PUBLISHED)),
        "published": [list(row) for row in PUBLISHED],
        "intra": {name: _intra(group, crafted[name], truth) for name, group in models.items()},
        "host": host.host(),
        "load": host.load_average(),
        "versions": host.versions(("torch", "scikit-learn")),
        "commit": host.commit(),
        "at": at,
    }


def spearman(first: Matrix, second: Matrix) -> float:
    """Rank correlation of two matrices' entries; equal entries share their mean rank."""
    a, b = (_ranks(values.ravel()) for values in (first, second))
    return float(np.corrcoef(a, b)[0, 1])


def _ranks(values: Matrix) -> Matrix:
    below = (values[:, None] > values).sum(1)
    return np.asarray(below + ((values[:, None] == values).sum(1) - 1) / 2, dtype=np.float64)


def _crafted(model: Model, held: Reals) -> Reals:
    """Examples that are to leave the class that the source itself gives."""
    return model.craft(held, model.predict(held)).astype(np.float32)


def _cross(models: dict[str, list[Model]], crafted: dict[str, list[Reals]], truth: Labels, *, victim: int) -> Matrix:
    """Wrong answers of each kind's model `victim` to the examples of each kind's first model: (source, victim)."""
    return np.array([[_wrong(group[victim], made[0], truth) for group in models.values()] for made in crafted.values()])


def _wrong(model: Model, examples: Reals, truth: Labels) -> int:
    return int((model.predict(examples) != truth).sum())


def _cells(wrong: Matrix, n: int) -> Record:
    return {
        "misclassified": (wrong / n).tolist(),
        "interval": [[list(wilson(int(count), n)) for count in row] for row in wrong],
    }


def _intra(group: list[Model], crafted: list[Reals], truth: Labels) -> Record:
    """Every source and victim of one kind; the mean over pairs trained on disjoint parts, and over one and the same."""
    matrix = np.array([[_wrong(victim, made, truth) for victim in group] for made in crafted]) / len(truth)
    same = np.eye(len(group), dtype=bool)
    return {"misclassified": matrix.tolist(), "same": matrix[same].mean(), "disjoint": matrix[~same].mean()}


def _silent(name: str, done: int, total: int) -> None:
    """Progress that nobody asked for."""
