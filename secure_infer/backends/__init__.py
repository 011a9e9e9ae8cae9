"""The protocols, found by entry point, so that loading one loads only its own library."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points

from secure_infer.backends.base import Backend
from secure_infer.errors import Problem, UsageError

GROUP = "secure_infer.backends"


def protocols() -> tuple[str, ...]:
    """Names of all installed protocols, `clear` first."""
    names = {point.name for point in entry_points(group=GROUP)}
    return tuple(sorted(names, key=lambda name: (name != "clear", name)))


def load(protocol: str) -> Backend:
    """The backend of a protocol.

    Raises:
        UsageError: No such protocol.
        MissingExtra: Its library is not installed; names the command that installs it.
    """
    for point in entry_points(group=GROUP, name=protocol):
        backend: Backend = getattr(import_module(point.module), point.attr)()
        return backend
    raise UsageError(
        f"There is no protocol {protocol!r}.",
        [Problem("protocol", f"Expected one of {', '.join(protocols())}.", "check the spelling.")],
    )
