"""What a user can choose when a network is compiled to TFHE, checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from secure_infer.errors import Problem, UsageError

P_ERROR = 2.0**-40
ROUNDED_P_ERROR, KEEP_BITS = 0.4, 6
"""A standard deviation of 0.5 % of the torus at the look-ups, and of 0.6 units of the output."""
MIXED_P_ERROR, MOST_MIXED_P_ERROR = 2.0**-10, 2.0**-7
"""The default, and the greatest, where some look-ups of a rounded network read every bit and have to be right."""
HELP = {
    "p_error": "failure probability of one look-up (default 2**-40; with rounding 0.4, or 2**-10 if some do not round)",
    "rounding": '"exact" (default); "approximate": one cheap look-up an activation, but values near a threshold '
    'may flip; or "auto": the cheapest plan whose classes of calibration inputs stay within the tolerance',
    "keep_bits": "bits of the tables of rounded look-ups, 1 to 10 (default 6): a number, or a mapping of layers to "
    "numbers, in which layers that are not named stay exact",
    "tolerance": 'share of calibration inputs whose class may change under rounding="auto" (default 0.02)',
    "failure": "failure probability of a whole inference, such as 2**-128, in place of p_error; exact rounding only",
    "security": "bits of security: 128 (default) or 132",
    "keys_of": "a compiled model, or the path of its bundle: use its keys, so that one upload serves both",
    "ranges": '"calibrated" (default), or "worst_case": no input can overflow, at the cost of wider accumulators',
}


@dataclass(frozen=True)
class Options:
    """Checked options.

    Attributes:
        p_error: Failure probability of one look-up; None for what suits the rounded network.
        rounding: `exact`, `approximate` or `auto`.
        keep_bits: Bits of the tables of rounded look-ups, for all layers or by name.
        security: Bits of security.
        ranges: `calibrated` or `worst_case`.
        keys_of: Client half of the model whose keys are to be used.
        tolerance: Share of calibration inputs whose class the search for a plan may change.
        failure: Failure probability of a whole inference; None where `p_error` counts.
    """

    p_error: float | None = P_ERROR
    rounding: str = "exact"
    keep_bits: int | Mapping[str, int] = KEEP_BITS
    security: int = 128
    ranges: str = "calibrated"
    keys_of: bytes | None = None
    tolerance: float = 0.02
    failure: float | None = None

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
    if options.get("failure") is not None and options.get("rounding", "exact") != "exact":
        problems.append(Problem("failure", "Rounded look-ups have no failure probability.", 'use rounding="exact".'))
    if options.get("failure") is not None and "p_error" in options:
        problems.append(Problem("failure", "It takes the place of p_error.", "give one of the two."))
    if problems:
        raise UsageError("The options for tfhe are not usable.", problems)
    if options.get("rounding") == "approximate":
        options = {"p_error": None, **options}
    return Options(**options)


def _bits(value: Any) -> bool:
    each = value.values() if isinstance(value, Mapping) else [value]
    return all(_number(bits, int, 1, 10) for bits in each)


def _number(value: Any, kind: type[int] | type[float], low: float, high: float) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and low <= value <= high


_ACCEPTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "p_error": (lambda v: v is None or _number(v, float, 2.0**-128, 0.95), "a float in [2**-128, 0.95]"),
    "rounding": (lambda v: v in ("exact", "approximate", "auto"), '"exact", "approximate" or "auto"'),
    "keep_bits": (_bits, "an integer in [1, 10], or a mapping of layers to such"),
    "tolerance": (lambda v: _number(v, float, 0.0, 1.0), "a float in [0, 1]"),
    "failure": (lambda v: v is None or _number(v, float, 2.0**-128, 0.5), "a float in [2**-128, 0.5]"),
    "security": (lambda v: v in (128, 132), "128 or 132"),
    "keys_of": (lambda v: v is None or isinstance(v, bytes), "a compiled model or the path of its bundle"),
    "ranges": (lambda v: v in ("calibrated", "worst_case"), '"calibrated" or "worst_case"'),
}
