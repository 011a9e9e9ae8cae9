"""One client of a fault run, as a process that can be killed: deletes its keys, uploads them, asks, checks, repeats.

What it does goes line by line to its log: begin, upload (some of the keys have arrived), sent (all have), then answer,
wrong, or error with what it was told. It ends when there is a file called `stop` in its folder.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import httpx2
import numpy as np

from secure_infer.client import Client
from secure_infer.errors import SecureInferError
from secure_infer.wire import api
from secure_infer.wire.access import TOKEN_VARIABLE

ACCESS = {"retries": 6, "patience": 30.0, "timeout": 60.0, "chunk": 64 << 10}


class Log:
    """Lines that are in the file as soon as they are written."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def __call__(self, line: str) -> None:
        """Add a line."""
        os.write(self._file, f"{' '.join(line.split())}\n".encode())

    def sent(self, done: int, total: int) -> None:
        """Note how far an upload is."""
        self("sent" if done == total else "upload")


def main() -> None:
    """Ask until told to stop. Arguments: address, model, this client's folder, file of inputs and outputs."""
    url, model, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    with np.load(sys.argv[4]) as known:
        x, expected, bound = known["x"], known["expected"], float(known["bound"])
    log = Log(folder / "log")
    client: Client | None = None
    while not (folder / "stop").exists():
        log("begin")
        try:
            client = client or Client.connect(url, model=model, key_cache=folder, progress=log.sent, **ACCESS)
            _delete(url, hashlib.sha256(client.keys().evaluation).hexdigest())
            i = int.from_bytes(os.urandom(4), "little") % len(x)
            outputs = client.predict(x[i : i + 1])
            log("answer" if np.abs(outputs - expected[i : i + 1]).max() <= bound else "wrong")
        except SecureInferError as error:
            log(f"error {type(error).__name__}: {error}")
    if client is not None:
        client.close()


def _delete(url: str, name: str) -> None:
    """Delete the keys on the server, so that the next request uploads them again; it may be down just now."""
    headers = {"Authorization": f"Bearer {os.environ[TOKEN_VARIABLE]}"}
    try:
        httpx2.delete(f"{url}{api.KEYS}/{name}", headers=headers, timeout=60.0)
    except httpx2.HTTPError:
        return


if __name__ == "__main__":
    main()
