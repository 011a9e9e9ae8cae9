"""Where cases are read from, and where records and reports go."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def checkout() -> Path | None:
    """The root of the source tree, or None in an installed package."""
    root = _PACKAGE.parent
    return root if (root / "pyproject.toml").is_file() and (root / "benchmarks").is_dir() else None


def cases() -> Path:
    """The folder of case files: package data when installed, `benchmarks/cases` in a source tree."""
    packed = Path(str(resources.files("secure_infer") / "_data" / "benchmarks" / "cases"))
    return packed if packed.is_dir() else _PACKAGE.parent / "benchmarks" / "cases"


def benchmarks() -> Path:
    """The folder that results and reports are written to: `benchmarks` in a source tree, else where the user is."""
    root = checkout()
    return (root or Path.cwd()) / "benchmarks"


def results() -> Path:
    """The folder of records."""
    return benchmarks() / "results"
