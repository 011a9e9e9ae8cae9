"""A recipe: which data, which network, how to train it and for which protocols; read from `recipe.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from secure_infer.errors import Problem, UsageError

OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("cosine", "one-cycle", "constant")
_TABLES = ("architecture", "training", "protocols")


@dataclass(frozen=True)
class Training:
    """How a network is trained.

    Attributes:
        epochs: Passes over the training data.
        seed: Of weights, order, augmentation and noise.
        batch_size: Images a step.
        optimizer: One of `OPTIMIZERS`.
        learning_rate: Greatest learning rate of the schedule.
        schedule: One of `SCHEDULES`.
        weight_decay: Passed to the optimizer.
        label_smoothing: Share of the target that goes to all classes alike.
        validation: Share of each class of the *training* data that is kept back to judge recipes by; 0 for none.
        shift: Greatest random translation, in pixels.
        rotation: Greatest random rotation, in degrees.
        elastic: Standard deviation of random displacements that vary smoothly over the image, in pixels.
        flip: Whether to mirror half of the images.
        range_penalty: Weight in the loss of inputs that leave the range of a polynomial activation.
        sparsity: Weight in the loss of the mean magnitude of weights, which narrows accumulators.
        threads: CPU threads; part of what makes a result reproducible.
        bfloat16: Whether to multiply in bfloat16, twice as fast for convolutions where the CPU has it.
    """

    epochs: int
    seed: int
    batch_size: int = 64
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    validation: float = 0.1
    shift: float = 0.0
    rotation: float = 0.0
    elastic: float = 0.0
    flip: bool = False
    range_penalty: float = 0.0
    sparsity: float = 0.0
    threads: int = 1
    bfloat16: bool = False


@dataclass(frozen=True)
class Recipe:
    """One model of the zoo.

    Attributes:
        name: Name of the model.
        summary: One sentence for tables.
        dataset: Name for `data.load_dataset`.
        architecture: Name for `architectures.build`.
        parameters: Its parameters.
        training: How to train it.
        protocols: Compile options for each protocol that the model is meant for.
    """

    name: str
    summary: str
    dataset: str
    architecture: str
    parameters: Mapping[str, Any]
    training: Training
    protocols: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def read_recipe(path: Path, name: str | None = None) -> Recipe:
    """Read `recipe.toml`; unless `name` is given, the model is named by its folder.

    Raises:
        UsageError: Not TOML, or keys that are missing, unknown or of a wrong type or range; all are listed.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(
            f"The recipe {path.name} can't be read.", [Problem(str(path), f"{error}.", "correct the file.")]
        ) from error
    return parse_recipe(name or path.parent.name, data)


def parse_recipe(name: str, data: Mapping[str, Any]) -> Recipe:
    """The recipe that parsed TOML describes.

    Args:
        name: Name of the model.
        data: Strings `summary` and `dataset`; tables `architecture` (its `name` and parameters), `training` and
            `protocols` (a table of compile options for each).

    Raises:
        UsageError: Keys that are missing, unknown or of a wrong type or range; all are listed.
    """
    problems = [Problem(key, "Unknown key.", "remove it.") for key in data.keys() - {"summary", "dataset", *_TABLES}]
    problems += [
        Problem(key, "Expected a string.", "add it.")
        for key in ("summary", "dataset")
        if not isinstance(data.get(key), str)
    ]
    tables = {key: data.get(key, {}) for key in _TABLES}
    problems += [
        Problem(key, "Expected a table.", f"write it as [{key}].")
        for key, table in tables.items()
        if not isinstance(table, dict)
    ]
    if isinstance(tables["architecture"], dict) and not isinstance(tables["architecture"].get("name"), str):
        problems.append(Problem("architecture.name", "Expected a string.", "name an architecture."))
    if isinstance(tables["training"], dict):
        problems += _training_problems(tables["training"])
    if problems:
        raise UsageError(f"The recipe {name} is not valid.", problems)
    parameters = dict(tables["architecture"])
    return Recipe(
        name,
        data["summary"],
        data["dataset"],
        parameters.pop("name"),
        parameters,
        Training(**tables["training"]),
        tables["protocols"],
    )


def _training_problems(table: Mapping[str, Any]) -> list[Problem]:
    types = get_type_hints(Training)
    problems = [
        Problem(f"training.{key}", "Unknown key.", f"use one of {', '.join(types)}.")
        for key in table.keys() - types.keys()
    ]
    for entry in fields(Training):
        where = f"training.{entry.name}"
        if entry.name not in table:
            if entry.default is MISSING:
                problems.append(Problem(where, "Missing.", "add it."))
            continue
        value, kind = table[entry.name], types[entry.name]
        accepted = (int, float) if kind is float else (kind,)
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            problems.append(Problem(where, f"Expected {kind.__name__}, got {value!r}.", "correct the value."))
        elif wrong := _out_of_range(entry.name, value):
            problems.append(Problem(where, wrong, "correct the value."))
    return problems


def _out_of_range(name: str, value: Any) -> str:
    choices = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES}.get(name)
    if choices:
        return "" if value in choices else f"Expected one of {', '.join(choices)}, got {value!r}."
    least = 1 if name in ("epochs", "batch_size", "threads") else 0
    if not value >= least:
        return f"Expected at least {least}, got {value}."
    most = {"validation": 0.9, "label_smoothing": 0.9}.get(name, float("inf"))
    return "" if value <= most and value != float("inf") else f"Expected at most {most}, got {value}."
