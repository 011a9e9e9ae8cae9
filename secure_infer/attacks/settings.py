"""Checks of an attack's own settings, so that a wrong one is refused when the attack is made."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields
from numbers import Integral, Real
from typing import get_args

from secure_infer.attacks.base import Attack, Norm
from secure_infer.errors import Problem, UsageError

_KINDS = {bool: (bool, "true or false"), int: (Integral, "a whole number"), float: (Real, "a number")}
"""By the type of a setting's default: what it may be instead, and how that is said."""


def require_settings(attack: Attack, *positive: str, **choices: Collection[str]) -> None:
    """Refuse settings that make no sense; types, and a setting `norm` against the attack's norms, are always checked.

    Args:
        attack: A dataclass, just made.
        positive: Names of settings that must be numbers above 0 (None is left alone).
        choices: Names of settings with the values that they may take.

    Raises:
        UsageError: Some do not fit; all are listed.
    """
    if hasattr(attack, "norm"):
        choices = {"norm": [norm for norm in get_args(Norm) if norm in attack.norms], **choices}
    problems = _mistyped(attack)
    known = {problem.where for problem in problems}
    problems += [
        Problem(name, f"Expected a number above 0, got {value!r}.", "correct the setting.")
        for name in positive
        if name not in known
        and (value := getattr(attack, name)) is not None
        and not (isinstance(value, Real) and float(value) > 0)
    ]
    problems += [
        Problem(name, f"Expected one of {', '.join(allowed)}, got {value!r}.", "use one of these.")
        for name, allowed in choices.items()
        if (value := getattr(attack, name)) not in allowed
    ]
    if problems:
        raise UsageError(f"The attack {attack.name} can't be made so.", problems)


def _mistyped(attack: Attack) -> list[Problem]:
    """Settings that are of another type than their defaults: text, say, where a number belongs."""
    problems = []
    for entry in fields(attack):  # type: ignore[arg-type]
        value, default = getattr(attack, entry.name), type(entry.default)
        kind, said = _KINDS.get(default, (object, ""))
        if not isinstance(value, kind) or (default is not bool and kind is not object and isinstance(value, bool)):
            problems.append(Problem(entry.name, f"Expected {said}, got {value!r}.", "correct the setting."))
    return problems
