"""Defenses against those attacks, each marked with whether a server that sees ciphertexts can still run it."""

from __future__ import annotations

from importlib import import_module

from secure_infer.defenses.base import Data, Defense, Place
from secure_infer.errors import Problem, UsageError

# One row a defense: its name and where it lives.
DEFENSES: dict[str, str] = {
    "adversarial-training": "training:AdversarialTraining",
    "input-transformation": "transform:InputTransformation",
    "magnet": "magnet:MagNet",
    "prada": "prada:Prada",
    "query-budget": "budget:QueryBudget",
    "randomized-smoothing": "smoothing:RandomizedSmoothing",
}

__all__ = ["DEFENSES", "Data", "Defense", "Place", "defense"]


def defense(name: str) -> type[Defense]:
    """The class of a defense by its name.

    Raises:
        UsageError: There is no such defense.
    """
    if name not in DEFENSES:
        raise UsageError(
            f"There is no defense {name!r}.", [Problem("defense", f"Known: {', '.join(DEFENSES)}.", "use one.")]
        )
    module, _, found = DEFENSES[name].partition(":")
    cls: type[Defense] = getattr(import_module(f"secure_infer.defenses.{module}"), found)
    return cls
