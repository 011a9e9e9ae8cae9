"""Files that are either whole or absent, and private where they hold secrets."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from secure_infer.errors import Problem, UsageError

PRIVATE = 0o600


def write(path: str | Path, data: bytes, mode: int | None = None) -> Path:
    """Write a file by way of a temporary one and a rename, so that nobody ever sees half of it.

    Args:
        path: Where to; its folder is made if it is absent.
        data: The whole content.
        mode: Permissions; the user's default if None.

    Raises:
        UsageError: The place can't be written to.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700 if mode == PRIVATE else 0o777)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise _unusable(target, error) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode if mode is not None else 0o666 & ~_umask())
        os.replace(temporary, target)
    except BaseException as error:  # an interrupt, too, must leave nothing behind
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _unusable(target, error) from error
        raise
    return target


def read(path: str | Path) -> bytes:
    """The whole content of a file.

    Raises:
        UsageError: It is absent or unreadable.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise _unusable(Path(path), error) from error


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Hold a folder against other processes that do the same; it is made, for its owner alone, if it is absent.

    Raises:
        UsageError: The folder can't be written to.
    """
    lock = Path(folder) / ".lock"
    try:
        lock.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, PRIVATE)
    except OSError as error:
        raise _unusable(lock, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _umask() -> int:
    # It can only be read by setting it; what other threads make meanwhile is then too private rather than too open.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _unusable(path: Path, error: OSError) -> UsageError:
    reason = error.strerror or type(error).__name__
    return UsageError(f"Can't use {path}.", [Problem(str(path), f"{reason}.", "give a path that you may use.")])
