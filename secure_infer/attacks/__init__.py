"""Attacks on what encryption does not hide; torch and numpy alone, on CPU or GPU."""

from __future__ import annotations

from importlib import import_module

from secure_infer.attacks.base import Access, Answer, Attack, Bounds, Meter, Target
from secure_infer.attacks.goal import Goal
from secure_infer.attacks.networks import FunctionTarget, NetworkTarget
from secure_infer.errors import Problem, UsageError

# One row an attack: its name and where it lives.
ATTACKS: dict[str, str] = {
    "noise": "noise:Noise",
    "jpeg": "jpeg:Jpeg",
    "fgsm": "pgd:FGSM",
    "bim": "pgd:BIM",
    "least-likely": "pgd:LeastLikely",
    "pgd": "pgd:PGD",
    "apgd": "apgd:APGD",
    "apgd-t": "apgd:TargetedAPGD",
    "autoattack": "autoattack:AutoAttack",
    "fab": "fab:FAB",
    "deepfool": "deepfool:DeepFool",
    "superdeepfool": "deepfool:SuperDeepFool",
    "ddn": "ddn:DDN",
    "fmn": "fmn:FMN",
    "cw": "carlini:CarliniWagner",
    "bp": "boundary:BoundaryProjection",
    "hopskipjump": "hopskipjump:HopSkipJump",
    "geoda": "geoda:GeoDA",
    "surfree": "surfree:SurFree",
    "square": "square:Square",
    "estimated-pgd": "estimate:EstimatedPGD",
    "one-pixel": "onepixel:OnePixel",
}

__all__ = [
    "ATTACKS",
    "Access",
    "Answer",
    "Attack",
    "Bounds",
    "FunctionTarget",
    "Goal",
    "Meter",
    "NetworkTarget",
    "Target",
    "attack",
]


def attack(name: str) -> type[Attack]:
    """The class of an attack by its name.

    Raises:
        UsageError: There is no such attack.
    """
    if name not in ATTACKS:
        raise UsageError(
            f"There is no attack {name!r}.", [Problem("attack", f"Known: {', '.join(ATTACKS)}.", "use one.")]
        )
    module, _, found = ATTACKS[name].partition(":")
    cls: type[Attack] = getattr(import_module(f"secure_infer.attacks.{module}"), found)
    return cls
