"""Fetch one file from the first mirror that answers: capped, verified while it streams, and moved into place whole."""

from __future__ import annotations

import hashlib
import http.client
import os
import tempfile
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from secure_infer.errors import DataError, Problem

_CHUNK = 1 << 20
_LIMIT = 256 << 20


def fetch(urls: Sequence[str], target: Path, md5: str, *, limit: int = _LIMIT, timeout: float = 30.0) -> None:
    """Fetch a file unless `target` already holds it.

    Args:
        urls: Mirrors, tried in order.
        target: Where the file goes; its folder is made.
        md5: Published checksum of the file. It guards against damage; what must not be forged is checked by SHA-256
            after unpacking.
        limit: Most bytes to accept.
        timeout: Seconds without an answer after which a mirror is given up.

    Raises:
        DataError: No mirror gave a file with that checksum; each is listed with what it did.
    """
    if target.is_file() and hashlib.md5(target.read_bytes(), usedforsecurity=False).hexdigest() == md5:
        return
    problems = []
    for url in urls:
        try:
            _fetch_one(url, target, md5, limit, timeout)
            return
        except (OSError, ValueError, http.client.HTTPException) as error:
            what = str(error).rstrip(".") or type(error).__name__
            problems.append(Problem(url, f"{what}.", f"fetch it by hand and save it as {target}."))
    raise DataError(f"{target.name} could not be fetched.", problems)


def _fetch_one(url: str, target: Path, md5: str, limit: int, timeout: float) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file, urllib.request.urlopen(url, timeout=timeout) as reply:
            digest, size = hashlib.md5(usedforsecurity=False), 0
            while chunk := reply.read(_CHUNK):
                size += len(chunk)
                if size > limit:
                    raise ValueError(f"the file is larger than {limit} bytes")
                digest.update(chunk)
                file.write(chunk)
        if digest.hexdigest() != md5:
            raise ValueError(f"the MD5 is {digest.hexdigest()}, expected {md5}")
        Path(name).replace(target)
    finally:
        Path(name).unlink(missing_ok=True)
