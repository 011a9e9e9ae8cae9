"""Tables made of the code and the zoo: which protocol evaluates which operation, and which models there are."""

from __future__ import annotations

import inspect

from secure_infer import backends
from secure_infer.bench.statistics import wilson
from secure_infer.errors import BundleError
from secure_infer.graph import OPS
from secure_infer.report.markdown import share, table


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
    """Models of the zoo, read off their recipes and the records of their making."""
    from secure_infer import zoo

    header = ("model", "what it is", "protocols", "held-out accuracy (95 %)")
    rows = []
    for recipe in map(zoo.recipe, zoo.models()):
        protocols = ", ".join(name for name in recipe.protocols if name != "clear")
        rows.append(
            (f"[`{recipe.name}`](models/{recipe.name}/card.md)", recipe.summary, protocols, _held_out(recipe.name))
        )
    return table(header, rows, left=3)


def _held_out(name: str) -> str:
    from secure_infer import zoo

    try:
        counted = zoo.golden(name)["accuracy"]["held_out"]
    except (BundleError, KeyError):
        return "not trained"
    correct, n = counted["correct"], counted["n"]
    return f"{share(correct / n, wilson(correct, n))} of {n:,}"
