"""How many cores there are for us."""

import os


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_words(cores: int) -> str:
    """For example "2 cores"."""
    return f"{cores} core{'' if cores == 1 else 's'}"
