"""What a user can choose when a network is compiled to TFHE, checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from secure_infer.errors import Problem, UsageError

P_ERROR = 2.0**-40
HELP = {
    "p_error": "failure probability of one look-up (default 2**-40)",
    "rounding": '"exact" (default), or "approximate": cheaper, but values near a threshold may flip',
    "keep_bits": "leading bits that a rounded accumulator keeps: 1 to 8 (default 4)",
    "security": "bits of security: 128 (default) or 132",
    "keys_of": "a compiled model, or the path of its bundle: use its keys, so that one upload serves both",
    "ranges": '"calibrated" (default), or "worst_case": no input can overflow, at the cost of wider accumulators',
}


@dataclass(frozen=True)
class Options:
    """Checked options.

    Attributes:
        p_error: Failure probability of one look-up.
        rounding: `exact` or `approximate`.
        keep_bits: Leading bits that a rounded accumulator keeps.
        security: Bits of security.
        ranges: `calibrated` or `worst_case`.
        keys_of: Client half of the model whose keys are to be used.
    """

    p_error: float = P_ERROR
    rounding: str = "exact"
    keep_bits: int | Mapping[str, int] = 4
    security: int = 128
    ranges: str = "calibrated"
    keys_of: bytes | None = None

    def kept(self, layer: str) -> int | None:
        """Bits that rounding keeps in a layer; None if its look-up is exact."""
        if self.rounding == "exact":
            return None
        return self.keep_bits if isinstance(self.keep_bits, int) else self.keep_bits.get(layer)


def parse(options: Mapping[str, Any]) -> Options:
    """Check options given by name.

    Raises:
        UsageError: Unknown names and values out of range, all of them.
    """
    known = {field.name for field in fields(Options)}
    problems = [
        Problem(name, "There is no such option.", f"use one of {', '.join(sorted(known))}.")
        for name in options
        if name not in known
    ]
    for name, (accepted, expected) in _ACCEPTED.items():
        if name in options and not accepted(options[name]):
            problems.append(Problem(name, f"Expected {expected}, got {options[name]!r}.", HELP[name] + "."))
    if problems:
        raise UsageError("The options for tfhe are not usable.", problems)
    return Options(**options)


def _number(value: Any, kind: type[int] | type[float], low: float, high: float) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and low <= value <= high


_ACCEPTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "p_error": (lambda v: _number(v, float, 2.0**-128, 0.5), "a float in [2**-128, 0.5]"),
    "rounding": (lambda v: v in ("exact", "approximate"), '"exact" or "approximate"'),
    "keep_bits": (lambda v: _number(v, int, 1, 8), "an integer in [1, 8]"),
    "security": (lambda v: v in (128, 132), "128 or 132"),
    "keys_of": (lambda v: v is None or isinstance(v, bytes), "a compiled model or the path of its bundle"),
    "ranges": (lambda v: v in ("calibrated", "worst_case"), '"calibrated" or "worst_case"'),
}
