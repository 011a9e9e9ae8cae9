"""Runs one target under atheris: `python -m tests.fuzz.run frame -runs=1000000 CORPUS_FOLDER`.

Findings are written to the working folder by libFuzzer, and belong into `tests/malicious` once they are mended.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["secure_infer", "zipfile", "json"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    """Fuzz the target that is named first."""
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: python -m tests.fuzz.run {{{'|'.join(TARGETS)}}} [libFuzzer options] [corpus]")
    atheris.Setup(sys.argv, TARGETS[sys.argv.pop(1)]())
    atheris.Fuzz()


if __name__ == "__main__":
    main()
