"""Tables made of the code and the zoo: which protocol evaluates which operation, and which models there are."""

from __future__ import annotations

import inspect

from secure_infer import backends
from secure_infer.graph import OPS
from secure_infer.report.markdown import table


def operations() -> str:
    """Operations by protocol, read off every backend's `ops`."""
    loaded = [backends.load(name) for name in backends.protocols()]
    rows = [
        (f"`{name}`", _meaning(kind), *("yes" if name in backend.ops else "-" for backend in loaded))
        for name, kind in OPS.items()
    ]
    return table(("operation", "meaning", *(f"`{backend.name}`" for backend in loaded)), rows, left=2)


def _meaning(kind: type) -> str:
    """First sentence of an operation's docstring."""
    line = (inspect.getdoc(kind) or "").splitlines()[0]
    return line.split(". ")[0].rstrip(".")


def models() -> str:
    """Models of the zoo, read off their recipes."""
    from secure_infer import zoo

    recipes = [zoo.recipe(name) for name in zoo.models()]
    rows = [
        (
            f"`{recipe.name}`",
            recipe.summary,
            recipe.dataset,
            ", ".join(name for name in recipe.protocols if name != "clear"),
        )
        for recipe in recipes
    ]
    return table(("model", "what it is", "data", "protocols"), rows, left=4)
