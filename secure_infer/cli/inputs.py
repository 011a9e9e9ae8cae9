"""Arrays that a user names on the command line: .npy and .npz files, read without pickles, and data sets."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from secure_infer import files
from secure_infer.errors import InvalidInput, Problem, UsageError, missing_extra

if TYPE_CHECKING:
    from secure_infer.nn.data import Dataset

Array = npt.NDArray[Any]


def is_dataset(source: str) -> bool:
    """Whether a word names a data set rather than a file."""
    return re.fullmatch(r"[A-Za-z][\w-]*", source) is not None and not Path(source).exists()


def dataset(name: str) -> Dataset:
    """A data set by name.

    Raises:
        UsageError: An unknown name.
        DataError: It is not to be had.
        MissingExtra: torch or scikit-learn is not installed.
    """
    try:
        from secure_infer.nn.data import load_dataset
    except ModuleNotFoundError as error:
        raise missing_extra(f"The data set {name}", "train", error.name or "torch") from error
    return load_dataset(name)


def read_input(source: str, index: Sequence[int], shape: tuple[int, ...]) -> Array:
    """A batch of inputs.

    Args:
        source: A .npy or .npz file, or the name of a data set, of which the held-out images are taken.
        index: Which rows; all if empty (the first only, if it is a data set).
        shape: Shape of one input; a file that holds a single one is taken as a batch of one.

    Returns:
        Reals, shape `(n, *shape)` if the file is right; the model checks that.
    """
    if is_dataset(source):
        batch: Array = dataset(source).x_test
        index = index or (0,)
    else:
        batch = read_array(Path(source))
        batch = batch[None] if batch.shape == shape else batch
    if batch.ndim == 0:
        raise InvalidInput(
            "The input is a single number.", [Problem(source, "Expected a batch.", "save an array (n, ...).")]
        )
    wrong = [i for i in index if not 0 <= i < len(batch)]
    if wrong:
        raise UsageError(
            "There is no such input.",
            [Problem("--index", f"Expected 0 to {len(batch) - 1}, got {i}.", "correct it.") for i in wrong],
        )
    batch = batch[list(index)] if index else batch
    # Images of a data set fit a model that reads vectors, such as a perceptron.
    return batch.reshape(-1, *shape) if is_dataset(source) and batch[0].size == np.prod(shape) else batch


def read_array(path: Path) -> Array:
    """The array in a .npy file, or the only array (or the one called `x`) in a .npz file; never a pickle.

    Raises:
        InvalidInput: Not such a file, or one that holds Python objects.
        UsageError: The file is absent.
    """
    data = files.read(path)
    try:
        found = np.load(io.BytesIO(data), allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found
        names = found.files
        if "x" not in names and len(names) != 1:
            raise _unreadable(path, f"It holds {', '.join(names) or 'nothing'}.", "name the array `x`.")
        chosen: Array = found["x" if "x" in names else names[0]]
        return chosen
    except InvalidInput:
        raise
    except Exception as error:
        # A damaged file makes numpy raise errors of many kinds, some undocumented.
        raise _unreadable(
            path, f"{error}".strip().splitlines()[0].rstrip(".") + ".", "save it with numpy.save, as plain numbers."
        ) from error


def _unreadable(path: Path, what: str, fix: str) -> InvalidInput:
    return InvalidInput(f"Can't read an array from {path}.", [Problem(str(path), what, fix)])
