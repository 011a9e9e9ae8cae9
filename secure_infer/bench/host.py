"""Facts about the machine, the code and the libraries that a figure depends on."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from secure_infer import __version__
from secure_infer.bench import places
from secure_infer.cores import usable_cores

LIBRARIES = {
    "tfhe": ("concrete-python",),
    "ckks": ("tenseal",),
    "mpc": ("crypten", "torch"),
    "mpc-fss": ("cryptography",),
    "mpc-spu": ("spu", "jax"),
}
"""Distributions that a protocol's figures depend on."""


def host() -> dict[str, Any]:
    """CPU model, usable cores, memory in GiB, operating system and Python."""
    return {
        "cpu": _cpu_model(),
        "cores": usable_cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
    }


def load_average() -> float:
    """The load average of the last minute."""
    return round(os.getloadavg()[0], 2)


def versions(distributions: Iterable[str]) -> dict[str, str]:
    """Versions of this package, numpy and the distributions named, as far as they are installed."""
    found = {"secure_infer": __version__}
    for name in ("numpy", *distributions):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The commit of the source tree, `-dirty` appended if its code or models differ; None in an installed package."""
    root = places.checkout()
    head = _git(root, "rev-parse", "HEAD") if root else None
    if not head:
        return None
    return head + ("-dirty" if _git(root, "status", "--porcelain", "--", "secure_infer", "models") else "")


def _git(root: Path | None, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
