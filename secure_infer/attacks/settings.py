"""Checks of an attack's own settings, so that a wrong one is refused when the attack is made."""

from __future__ import annotations

from collections.abc import Collection
from typing import get_args

from secure_infer.attacks.base import Attack, Norm
from secure_infer.errors import Problem, UsageError


def require_settings(attack: Attack, *positive: str, **choices: Collection[str]) -> None:
    """Refuse settings that make no sense; a setting `norm` is always checked against the attack's norms.

    Args:
        attack: A dataclass, just made.
        positive: Names of settings that must be above 0 (None is left alone).
        choices: Names of settings with the values that they may take.

    Raises:
        UsageError: Some do not fit; all are listed.
    """
    if hasattr(attack, "norm"):
        choices = {"norm": [norm for norm in get_args(Norm) if norm in attack.norms], **choices}
    problems = [
        Problem(name, f"Expected more than 0, got {value}.", "correct the setting.")
        for name in positive
        if (value := getattr(attack, name)) is not None and not value > 0
    ]
    problems += [
        Problem(name, f"Expected one of {', '.join(allowed)}, got {value!r}.", "use one of these.")
        for name, allowed in choices.items()
        if (value := getattr(attack, name)) not in allowed
    ]
    if problems:
        raise UsageError(f"The attack {attack.name} can't be made so.", problems)
