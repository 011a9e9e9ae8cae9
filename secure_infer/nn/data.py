"""Data sets by name, found on this machine or fetched from their public homes, each verified by its checksum.

Searched in this order: the folder that the environment variable `SECURE_INFER_DATA` names; the folder of the
distribution's package, where it has one; our cache folder; the internet. Whatever the container, what is verified last
is the SHA-256 of the pixels and labels themselves, so that one name always means the same bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import logging
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from secure_infer.errors import DataError, Problem, UsageError, missing_extra
from secure_infer.nn.fetch import fetch
from secure_infer.nn.sources import CIFAR_FILE, SOURCES, Source

Pixels = npt.NDArray[np.uint8]
Arrays = Mapping[str, Pixels]
Reader = Callable[[], Arrays]

_LOG = logging.getLogger(__name__)
_ENVIRONMENT = "SECURE_INFER_DATA"
_DEBIAN = Path("/usr/share/datasets")
_PARTS = ("x_train", "y_train", "x_test", "y_test")
_IDX_FILES = {
    "x_train": "train-images-idx3-ubyte.gz",
    "y_train": "train-labels-idx1-ubyte.gz",
    "x_test": "t10k-images-idx3-ubyte.gz",
    "y_test": "t10k-labels-idx1-ubyte.gz",
}
_IDX_LIMIT = 64 << 20
"""Most bytes that an idx file may hold, packed or unpacked; MNIST's largest unpacks to 47 MB."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labeled images, split once and for all into a training and a held-out part.

    Attributes:
        name: The name that `load_dataset` takes.
        x_train: Training images, float32 in [0, 1], shape `(n, channels, height, width)`.
        y_train: Their classes, int64, shape `(n,)`.
        x_test: Held-out images, as `x_train`. Nothing may be chosen by looking at them.
        y_test: Their classes.
        classes: Name of each class.
        credit: Who made it.
        licence: Terms of use.
    """

    name: str
    x_train: npt.NDArray[np.float32]
    y_train: npt.NDArray[np.int64]
    x_test: npt.NDArray[np.float32]
    y_test: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    credit: str
    licence: str


class _Unusable(Exception):
    """A file that is there but is not what it should be."""


def datasets() -> list[str]:
    """Names that `load_dataset` takes."""
    return list(SOURCES)


def load_dataset(name: str, *, download: bool = True) -> Dataset:
    """Load a data set.

    Args:
        name: One of `datasets()`. `cifar10-jpeg` is a lossy copy: figures on it are not figures on CIFAR-10. `orl` are
            faces, the largest images here: 112x92 pixels, of 40 people, 8 images each to train on and 2 held out.
        download: Whether to fetch it if it is nowhere on this machine.

    Raises:
        UsageError: An unknown name.
        DataError: Found nowhere, or only in a damaged form; every place that was tried is listed.
        MissingExtra: `digits` without scikit-learn, or `cifar10-jpeg` without Pillow.
    """
    if name not in SOURCES:
        raise UsageError(
            f"There is no data set {name!r}.",
            [Problem("data set", f"Expected one of {', '.join(SOURCES)}.", "correct the name.")],
        )
    source = SOURCES[name]
    arrays = _read(name, source, download)
    images = {part: _unit(arrays[part], source.levels) for part in ("x_train", "x_test")}
    labels = {part: arrays[part].astype(np.int64) for part in ("y_train", "y_test")}
    return Dataset(
        name,
        images["x_train"],
        labels["y_train"],
        images["x_test"],
        labels["y_test"],
        source.classes,
        source.credit,
        source.licence,
    )


def read_idx(data: bytes) -> Pixels:
    """Parse an idx file of bytes: magic `00 00 08 ndim`, `ndim` big-endian sizes, then exactly the elements.

    Args:
        data: The file, unpacked.

    Returns:
        Array of the shape that the file declares.

    Raises:
        DataError: Anything else: another element type, a truncated header, too few or too many elements.
    """
    try:
        return _parse_idx(data)
    except _Unusable as problem:
        raise DataError("Not an idx file.", [Problem("idx", str(problem), "fetch the file again.")]) from None


def _parse_idx(data: bytes) -> Pixels:
    if len(data) < 4 or data[:3] != b"\x00\x00\x08" or not 1 <= data[3] <= 4:
        raise _Unusable(f"Expected the magic number 00 00 08 and 1 to 4 axes, got {data[:4].hex(' ') or 'nothing'}.")
    header = 4 + 4 * data[3]
    if len(data) < header:
        raise _Unusable(f"Expected a header of {header} bytes, got {len(data)}.")
    shape = tuple(int.from_bytes(data[i : i + 4], "big") for i in range(4, header, 4))
    size = 1
    for length in shape:
        size *= length
    if len(data) - header != size:
        raise _Unusable(f"Expected {size} elements for shape {shape}, got {len(data) - header}.")
    return np.frombuffer(data, dtype=np.uint8, offset=header).reshape(shape)


def _unit(images: Pixels, levels: int) -> npt.NDArray[np.float32]:
    """Pixels `(n, h, w)` or `(n, c, h, w)` to float32 in [0, 1] with a channel axis."""
    scaled = images.astype(np.float32) / np.float32(levels)
    return scaled if scaled.ndim == 4 else scaled[:, None]


def _read(name: str, source: Source, download: bool) -> Arrays:
    if name == "digits":
        return _digits(source)
    problems = []
    for where, read in _places(name, source, download):
        try:
            return read()
        except FileNotFoundError as error:
            problems.append(Problem(where, f"No file {Path(error.filename or where).name}.", "put the file there."))
        except _Unusable as error:
            _LOG.warning("%s: %s", where, error)
            problems.append(Problem(where, str(error), "replace or remove it."))
        except DataError as error:
            problems.extend(error.problems)
        except OSError as error:
            problems.append(Problem(where, f"{error.strerror or error}.", "make it readable."))
    raise DataError(f"The data set {name} was not found.", problems)


def _places(name: str, source: Source, download: bool) -> list[tuple[str, Reader]]:
    """Every place to look at, in order, with what reads it."""
    folder = os.environ.get(_ENVIRONMENT)
    given: list[tuple[str, Reader]] = [(f"${_ENVIRONMENT}", _unset)]
    if name in _GIVEN:
        file, reader = _GIVEN[name]
        return [(f"{folder}/{file}", lambda: reader(Path(folder, file), source))] if folder else given
    files = [CIFAR_FILE] if name == "cifar10" else list(_IDX_FILES.values())
    read = _read_cifar if name == "cifar10" else _read_idx_folder
    if folder:
        given = [(f"{folder}/{name}", lambda: read(Path(folder, name), source))]
        if name != "cifar10":
            given.insert(0, (f"{folder}/{name}.npz", lambda: _read_npz(Path(folder, f"{name}.npz"), source)))
    given.append((str(_DEBIAN / name), lambda: read(_DEBIAN / name, source)))
    cache = cache_folder() / name
    given.append((str(cache), lambda: read(cache, source)))
    if download:
        given.append(("internet", lambda: _download(cache, files, source, read)))
    return given


def cache_folder() -> Path:
    """Where downloads are kept: `$XDG_CACHE_HOME/secure_infer/datasets`, by default under `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    return root / "secure_infer" / "datasets"


def _unset() -> Arrays:
    raise _Unusable("The variable is not set.")


def _verified(arrays: Arrays, source: Source) -> Arrays:
    wrong = [
        part
        for part in _PARTS
        if hashlib.sha256(np.ascontiguousarray(arrays[part]).tobytes()).hexdigest() != source.sha256[part]
    ]
    if wrong:
        raise _Unusable(f"The SHA-256 of {', '.join(wrong)} is not that of the data set.")
    return arrays


def _read_npz(path: Path, source: Source) -> Arrays:
    return _verified(_load_npz(io.BytesIO(path.read_bytes()), _PARTS), source)


def _load_npz(file: io.BytesIO, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    try:
        with np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in names}
    except (KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _Unusable(f"Not such an npz file: {error}.") from error


def _read_idx_folder(folder: Path, source: Source) -> Arrays:
    return _verified({part: _parse_idx(_unpack(folder / file)) for part, file in _IDX_FILES.items()}, source)


def _unpack(path: Path) -> bytes:
    try:
        with gzip.open(path) as file:
            data = file.read(_IDX_LIMIT + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _Unusable(f"{path.name} is not a whole gzip file: {error}.") from error
    if len(data) > _IDX_LIMIT:
        raise _Unusable(f"{path.name} unpacks to more than {_IDX_LIMIT} bytes.")
    return data


def _checked_file(path: Path, source: Source) -> io.BytesIO:
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != source.sha256[path.name]:
        raise _Unusable(f"The SHA-256 of {path.name} is not that of the data set.")
    return io.BytesIO(data)


def _read_cifar(folder: Path, source: Source) -> Arrays:
    """The binary version: records of one label and 3072 pixels, 10,000 a file. The pickled version is never read."""
    with tarfile.open(fileobj=_checked_file(folder / CIFAR_FILE, source)) as archive:
        batches = [f"data_batch_{i}.bin" for i in range(1, 6)]
        train = np.concatenate([_records(archive, file) for file in batches])
        test = _records(archive, "test_batch.bin")
    return {
        "x_train": train[:, 1:].reshape(-1, 3, 32, 32),
        "y_train": train[:, 0],
        "x_test": test[:, 1:].reshape(-1, 3, 32, 32),
        "y_test": test[:, 0],
    }


def _records(archive: tarfile.TarFile, file: str) -> Pixels:
    member = archive.extractfile(f"cifar-10-batches-bin/{file}")
    if member is None:
        raise _Unusable(f"{file} is not a file in the archive.")
    return np.frombuffer(member.read(), dtype=np.uint8).reshape(-1, 3073)


def _read_jpegs(path: Path, source: Source) -> Arrays:
    try:
        from PIL import Image
    except ImportError:
        raise missing_extra("The data set cifar10-jpeg", "train", "PIL") from None
    names = [f"{kind}_{part}" for part in ("train", "test") for kind in ("jpeg", "offsets", "y")]
    stored = _load_npz(_checked_file(path, source), names)
    arrays: dict[str, Pixels] = {}
    for part in ("train", "test"):
        blob, ends = stored[f"jpeg_{part}"].tobytes(), stored[f"offsets_{part}"]
        spans = itertools.pairwise(ends)
        images = [np.asarray(Image.open(io.BytesIO(blob[start:end])).convert("RGB")) for start, end in spans]
        arrays[f"x_{part}"] = np.stack(images).transpose(0, 3, 1, 2)
        arrays[f"y_{part}"] = stored[f"y_{part}"]
    return arrays


def _read_faces(path: Path, source: Source) -> Arrays:
    """400 images of 112x92; 2 of the 10 of each person, drawn with seed 0, are held out."""
    stored = _load_npz(io.BytesIO(path.read_bytes()), ("x", "y"))
    if stored["y"].shape != stored["x"].shape[:1]:
        raise _Unusable(f"Shapes {stored['x'].shape} of images and {stored['y'].shape} of labels do not fit.")
    return _verified(_split(stored["x"], stored["y"], 0.2), source)


_GIVEN: Mapping[str, tuple[str, Callable[[Path, Source], Arrays]]] = {
    "cifar10-jpeg": ("cifar10-jpeg.npz", _read_jpegs),
    "orl": ("orl-faces.npz", _read_faces),
}
"""Data sets that lie in the folder of the environment variable or nowhere: their file, and what reads it."""


def _download(folder: Path, files: Sequence[str], source: Source, read: Callable[[Path, Source], Arrays]) -> Arrays:
    checksums = dict(zip(files, (source.md5 or {}).values(), strict=True))
    for file in files:
        fetch([url + file for url in source.urls], folder / file, checksums[file])
    return read(folder, source)


def _digits(source: Source) -> Arrays:
    """1,797 images of 8x8; a quarter of each class, drawn with seed 0, is held out."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise missing_extra("The data set digits", "train", "sklearn") from None
    bunch = load_digits()
    images, labels = bunch.images.astype(np.uint8), bunch.target.astype(np.uint8)
    if hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest() != source.sha256["all"]:
        raise DataError(
            "The digits are not those that the models were trained on.",
            [Problem("scikit-learn", "The SHA-256 of its digits differs.", "install scikit-learn 1.5 or newer.")],
        )
    return _split(images, labels, 0.25)


def _split(images: Pixels, labels: Pixels, share: float) -> Arrays:
    """Hold out a share of each class, drawn with seed 0."""
    random = np.random.default_rng(0)
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        held_out[members[: int(share * len(members))]] = True
    return {
        "x_train": images[~held_out],
        "y_train": labels[~held_out],
        "x_test": images[held_out],
        "y_test": labels[held_out],
    }
