"""How predictions are shown: one line each, as JSON, and as a .npy file."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from secure_infer import files
from secure_infer.cli import console


def show(values: npt.NDArray[np.float64], about: Mapping[str, Any], out: Path | None, as_json: bool) -> None:
    """Print a batch of outputs, shape `(n, *output shape)`, with the class of each if they are scores."""
    if out is not None:
        buffer = io.BytesIO()
        np.save(buffer, values, allow_pickle=False)
        files.write(out, buffer.getvalue())
    scores = values.ndim == 2 and values.shape[1] > 1
    classes = [int(label) for label in values.argmax(axis=1)] if scores else None
    if as_json:
        console.emit({**about, "n": len(values), "classes": classes, "outputs": values.tolist()})
        return
    for position, output in enumerate(values):
        name = f"class {classes[position]}   " if classes else ""
        shown = np.array2string(np.ravel(output), precision=4, suppress_small=True, max_line_width=10_000, threshold=20)
        console.say(f"{position}: {name}{shown}")
