"""Server halves of several parties, and the plan in them: what every protocol checks alike before it loads them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from secure_infer.backends.parties.client import PARTIES
from secure_infer.errors import BundleError, Problem
from secure_infer.wire import frame

_LONGEST_PARAMETER = 8
_Plan = TypeVar("_Plan")
Parts = tuple[bytes, ...]
"""Of a half; the first is the plan."""


def unpack_all(
    halves: Sequence[bytes],
    kind: str,
    unpack: Callable[[bytes, int], tuple[Parts, _Plan]],
    parties: Callable[[_Plan], int] = lambda _: PARTIES,
) -> tuple[list[Parts], _Plan]:
    """The parts of all halves, and the plan they share.

    Args:
        halves: Of all parties, in order.
        kind: What their frames are called.
        unpack: One party's half, and its number, to its parts and its plan.
        parties: How many parties a plan is for.

    Raises:
        BundleError: Not the halves of one model, or one that `unpack` refuses.
    """
    if not halves:
        raise BundleError("Expected server halves, got none.")
    first, plan = unpack(halves[0], 0)
    if len(halves) != parties(plan):
        raise BundleError(f"Expected {parties(plan)} server halves, got {len(halves)}.")
    others = [unpack(half, party)[0] for party, half in enumerate(halves) if party]
    if any(other[0] != first[0] for other in others):
        raise BundleError(
            "The halves belong to different models.",
            [Problem(kind, "Their plans differ.", "use the halves of one bundle.")],
        )
    return [first, *others], plan


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


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """What goes wrong when a plan is read in this block is a BundleError."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise refused(f"{type(error).__name__}: {error}.") from error


def fields_of(data: bytes, schema: int, step: Callable[[Any], Any]) -> dict[str, Any]:
    """The fields of a plan that was stored as JSON.

    Args:
        data: The plan.
        schema: Which version of it can be read.
        step: Reads and checks one of its steps.

    Raises:
        BundleError: It is of another schema, or what `step` raises.
    """
    fields: dict[str, Any] = json.loads(data)
    found = fields.pop("schema")
    if found != schema:
        raise refused(f"Its schema is {found}; this version reads {schema}.")
    shape = tuple(integer(size) for size in fields["input_shape"])
    return {**fields, "input_shape": shape, "steps": tuple(step(entry) for entry in fields["steps"])}


def require_order(steps: Sequence[Any], given: str, output: str) -> None:
    """Make sure that each step of a plan reads what came before it, that none is made twice, and one is the output.

    Raises:
        BundleError: It is not so.
    """
    known = {given}
    for step in steps:
        if not set(step.inputs) <= known or step.name in known:
            raise refused(f"{step.name} reads values that nothing makes, or is made twice.")
        known.add(step.name)
    if output not in known:
        raise refused("Nothing makes its output.")


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
