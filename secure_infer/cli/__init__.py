"""The command line: `secure-infer VERB`. A verb's module is loaded when the verb is called, not before."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from secure_infer.cli import app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code.

    Args:
        arguments: Words after the program's name; those of this process if None.
    """
    sys.exit(app.run(sys.argv[1:] if arguments is None else arguments))
