"""The trained models that come with the package: recipes, weights and cards, read from `models/`."""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secure_infer.errors import BundleError, Problem, UsageError
from secure_infer.nn.recipe import Recipe, read_recipe

if TYPE_CHECKING:
    from torch import nn

RECIPE, WEIGHTS, CARD, GOLDEN = "recipe.toml", "weights.safetensors", "card.md", "golden.json"


def models() -> list[str]:
    """Names of the models, sorted."""
    return sorted(entry.name for entry in _root().iterdir() if (entry / RECIPE).is_file())


def recipe(name: str) -> Recipe:
    """How the model `name` was trained, and for which protocols.

    Raises:
        UsageError: No such model.
    """
    with resources.as_file(_folder(name) / RECIPE) as path:
        return read_recipe(path, name)


def card(name: str) -> str:
    """What is to be known about the model `name`, as Markdown.

    Raises:
        UsageError: No such model.
        BundleError: It has no card.
    """
    return _read(name, CARD).decode()


def golden(name: str) -> dict[str, Any]:
    """The record of the model's making: SHA-256 of its weights, accuracy, and vectors to hold any copy against.

    Raises:
        UsageError: No such model.
        BundleError: It has no such record, or one that is not a JSON object.
    """
    try:
        record = json.loads(_read(name, GOLDEN))
    except ValueError as error:
        raise _damaged(name, GOLDEN, f"Not JSON: {error}.") from error
    if not isinstance(record, dict):
        raise _damaged(name, GOLDEN, "Not a JSON object.")
    return record


def load_model(name: str) -> nn.Module:
    """The model `name` with its trained weights, in evaluation mode.

    Raises:
        UsageError: No such model.
        BundleError: Weights that are absent, altered, or do not fit the architecture.
        MissingExtra: torch or brevitas is not installed.
    """
    data = _read(name, WEIGHTS)
    if hashlib.sha256(data).hexdigest() != golden(name).get("weights_sha256"):
        raise _damaged(name, WEIGHTS, "Its SHA-256 is not the recorded one.")
    return with_weights(recipe(name), data)


def with_weights(plan: Recipe, data: bytes) -> nn.Module:
    """The network of a recipe with the weights of a safetensors file, in evaluation mode.

    Raises:
        BundleError: Not a safetensors file, or weights that do not fit the architecture.
        MissingExtra: torch or brevitas is not installed.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    from secure_infer.nn.architectures import build

    # Building draws initial weights, which must not move the caller's random state.
    with torch.random.fork_rng(devices=[]):
        net = build(plan.architecture, plan.parameters)
    try:
        net.load_state_dict(load(data))
    except (SafetensorError, RuntimeError, ValueError, KeyError) as error:
        raise _damaged(plan.name, WEIGHTS, f"{str(error).splitlines()[0].rstrip('.:')}.") from error
    return net.eval()


def to_bytes(net: nn.Module) -> bytes:
    """The weights of a network as a safetensors file."""
    from safetensors.torch import save

    return save({key: value.contiguous() for key, value in net.state_dict().items()})


def _root() -> Traversable:
    """`models/` inside an installed package, or beside the package in a checkout."""
    package = resources.files("secure_infer")
    inside = package / "_data" / "models"
    return inside if inside.is_dir() else Path(str(package)).parent / "models"


def _folder(name: str) -> Traversable:
    known = models()
    if name not in known:
        raise UsageError(
            f"There is no model {name!r}.",
            [Problem("model", f"Expected one of {', '.join(known)}.", "correct the name.")],
        )
    return _root() / name


def _read(name: str, file: str) -> bytes:
    try:
        return (_folder(name) / file).read_bytes()
    except OSError as error:
        raise _damaged(name, file, f"{error.strerror or type(error).__name__}.") from error


def _damaged(name: str, file: str, what: str) -> BundleError:
    return BundleError(
        f"The model {name} is damaged.",
        [Problem(f"{name}/{file}", what, f"install the package again, or run `secure-infer train {name}`.")],
    )
