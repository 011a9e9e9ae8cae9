"""Greatest resident memory of this process and of those it started, as Linux counts it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")
_RESET = "5"
"""What `clear_refs` takes to forget the greatest resident size (man 5 proc)."""


def reset() -> None:
    """Forget earlier peaks, where the system can."""
    for process in _family():
        with contextlib.suppress(OSError):
            (process / "clear_refs").write_text(_RESET)


def peak() -> int | None:
    """Sum of the greatest resident sizes since `reset`, in bytes; None where the system does not tell.

    Pages that processes share count for each, and the peaks need not coincide: an upper bound.
    """
    found = [_high_water(process) for process in _family()]
    return sum(found) or None


def _family() -> Iterator[Path]:
    """This process and its living descendants."""
    waiting = [os.getpid()]
    while waiting:
        process = _PROC / str(waiting.pop())
        if process.exists():
            yield process
        for task in process.glob("task/*/children"):
            with contextlib.suppress(OSError):
                waiting += [int(word) for word in task.read_text().split()]


def _high_water(process: Path) -> int:
    try:
        lines = (process / "status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
