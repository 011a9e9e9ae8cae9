"""Server halves of two parties, and the plan in them: what every protocol checks alike before it loads them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

from secure_infer.backends.parties.client import PARTIES
from secure_infer.errors import BundleError, Problem
from secure_infer.wire import frame

_LONGEST_PARAMETER = 8
_Plan = TypeVar("_Plan")
Parts = tuple[bytes, ...]
"""Of a half; the first is the plan."""


def unpack_both(
    halves: Sequence[bytes], kind: str, unpack: Callable[[bytes, int], tuple[Parts, _Plan]]
) -> tuple[list[Parts], _Plan]:
    """The parts of both halves, and the plan they share.

    Args:
        halves: Of party 0 and party 1.
        kind: What their frames are called.
        unpack: One party's half, and its number, to its parts and its plan.

    Raises:
        BundleError: Not two halves of one model, or one that `unpack` refuses.
    """
    if len(halves) != PARTIES:
        raise BundleError(f"Expected {PARTIES} server halves, got {len(halves)}.")
    (first, _), (second, plan) = (unpack(half, party) for party, half in enumerate(halves))
    if first[0] != second[0]:
        raise BundleError(
            "The halves belong to different models.",
            [Problem(kind, "Their plans differ.", "use the halves of one bundle.")],
        )
    return [first, second], plan


def parts_of(half: bytes, kind: str, party: int, count: int) -> Parts:
    """The parts of one party's half, of which there must be so many.

    Raises:
        BundleError: Another party's half, or one that holds more or less.
    """
    received = frame.unpack(half, kind)
    if received.meta.get("party") != party or len(received.parts) != count:
        what = "It belongs to another party, or holds more or less than that party may hold."
        problem = Problem(kind, what, "pass the halves in order, as compiled.")
        raise BundleError(f"This is not the half of party {party}.", [problem])
    return received.parts


def refused(what: str) -> BundleError:
    """The error for a plan that is malformed or holds more than a plan may."""
    return BundleError(
        "The plan of a party can't be used.", [Problem("plan", what, "fetch or compile the model again.")]
    )


def integer(value: Any) -> int:
    """A number of a plan.

    Raises:
        BundleError: It is no small integer.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 31:
        raise refused(f"It holds {str(value)[:40]!r} where a small integer is due.")
    return value


def parameters_of(
    entry: Mapping[str, Any], fields: Collection[str], known: Mapping[str, Collection[str]]
) -> dict[str, Any]:
    """The parameters of a step of a plan, which can't carry weights: integers and short lists of them.

    Args:
        entry: The step as it was stored.
        fields: What a step consists of.
        known: Names of the parameters of each kind of step.

    Raises:
        BundleError: It has others, or an array.
    """
    parameters = dict(entry["parameters"])
    if set(entry) != set(fields) or set(parameters) != set(known[entry["kind"]]):
        raise refused(f"A step has other parameters than a {entry['kind']}.")
    for value in parameters.values():
        values = value if isinstance(value, list) else [value]
        if len(values) > _LONGEST_PARAMETER:
            raise refused("A step holds an array.")
        for number in values:
            integer(number)
    return parameters
