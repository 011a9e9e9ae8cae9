"""What MODEL means on the command line: a model of the zoo, or somebody's own network in a Python file or module."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from secure_infer.cli import inputs
from secure_infer.errors import Problem, UnsupportedNetwork, UsageError, missing_extra

CALIBRATION = 1000
"""Training images that set the ranges of a zoo model."""


@dataclass(frozen=True, eq=False)
class Network:
    """A network to compile.

    Attributes:
        net: A torch network, a scikit-learn or XGBoost model, or a `Graph`.
        dataset: Name of the data set that it is meant for; empty if it is somebody's own.
        options: Compile options by protocol, as the recipe has them.
    """

    net: Any
    dataset: str = ""
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def calibration(self, source: str | None) -> npt.NDArray[Any]:
        """Typical inputs: those of `source` (a file or a data set), else the training part of the model's data set.

        Raises:
            UsageError: A network of one's own without a source.
        """
        if source is None and not self.dataset:
            raise UsageError(
                "There is nothing to calibrate on.",
                [
                    Problem(
                        "--calibration",
                        "A network of your own brings no data.",
                        "give typical inputs: x.npy, x.npz, or the name of a data set.",
                    )
                ],
            )
        if source is None or inputs.is_dataset(source):
            return np.asarray(inputs.dataset(source or self.dataset).x_train[:CALIBRATION])
        return inputs.read_array(Path(source))


def find(model: str) -> Network:
    """The network that a word on the command line names.

    Args:
        model: Name of a zoo model, `module:object`, or `path.py:object`. The object is a torch network, a `Graph`, or
            a function of no arguments that returns one.

    Raises:
        UsageError: No such model, module or object.
        MissingExtra: torch, which a zoo model needs, is not installed.
    """
    if ":" in model:
        return Network(_own(model))
    try:
        from secure_infer import zoo

        recipe = zoo.recipe(model)
        return Network(zoo.load_model(model), recipe.dataset, recipe.protocols)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "brevitas"):
            raise
        raise missing_extra(f"The model {model}", "train", error.name) from error


def is_bundle(model: str) -> bool:
    """Whether a word names a file, which can only be a bundle: networks of one's own have a colon."""
    return ":" not in model and Path(model).is_file()


def _own(model: str) -> Any:
    home, _, name = model.rpartition(":")
    module = _module(home)
    try:
        found = getattr(module, name)
        found = found() if callable(found) and not _is_network(found) else found
    except AttributeError as error:
        raise _unusable(model, f"{home} has no {name}.", "name a network, or a function that makes one.") from error
    except Exception as error:
        raise _unusable(model, f"{name}() failed: {type(error).__name__}: {error}.", "mend the function.") from error
    if not _is_network(found):
        kind = type(found).__name__
        raise _unusable(model, f"{name} is a {kind}.", "name a torch network or a Graph, or a function that makes one.")
    return found


def _module(home: str) -> ModuleType:
    path = Path(home)
    try:
        if path.suffix != ".py":
            sys.path.insert(0, str(Path.cwd()))
            return importlib.import_module(home)
        if not path.is_file():
            raise _unusable(home, "There is no such file.", "correct the path.")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise _unusable(home, "It can't be imported.", "give a Python file.")
        module = importlib.util.module_from_spec(spec)
        # Tracers look a network's class up in its module.
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
        return module
    except UsageError:
        raise
    except Exception as error:
        raise _unusable(home, f"Importing it failed: {type(error).__name__}: {error}.", "mend it.") from error


def _is_network(found: Any) -> bool:
    from secure_infer.frontends import is_tabular
    from secure_infer.graph.graph import Graph

    torch = sys.modules.get("torch")
    return isinstance(found, Graph) or is_tabular(found) or (torch is not None and isinstance(found, torch.nn.Module))


def _unusable(where: str, what: str, fix: str) -> UsageError:
    return UsageError(f"Can't find the network {where}.", [Problem("MODEL", what, fix)])


def problems(net: Any, protocol: str) -> tuple[Problem, ...]:
    """Everything in a network that a protocol can't evaluate.

    Raises:
        UsageError: No such protocol.
    """
    from secure_infer import backends
    from secure_infer.backends.base import require_supported
    from secure_infer.graph.graph import Graph

    if not isinstance(net, Graph):
        from secure_infer.compiler import check

        return tuple(check(net, protocol))
    try:
        require_supported(backends.load(protocol), net)
    except UnsupportedNetwork as error:
        return error.problems
    return ()


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """`name=value` words to compile options; a value is JSON where it reads as JSON, else text.

    Raises:
        UsageError: Words of another form; all are listed.
    """
    import json

    wrong = [pair for pair in pairs if not pair.partition("=")[0] or "=" not in pair]
    if wrong:
        raise UsageError(
            "An option can't be read.",
            [Problem(pair, "Expected name=value.", "write --option name=value.") for pair in wrong],
        )
    options: dict[str, Any] = {}
    for name, _, value in (pair.partition("=") for pair in pairs):
        try:
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options
