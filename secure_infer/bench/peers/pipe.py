"""Messages to and from a peer in an environment of its own; run as a script, that peer's side.

A message is its length (8 bytes, little endian) and an npz file of plain arrays, of which `meta` holds JSON. The script
needs nothing but numpy and the library that the peer's adapter imports:

    python pipe.py ADAPTER.py    the adapter defines `Session(meta, arrays)` with `setup` and `infer(x)`
"""

from __future__ import annotations

import io
import json
import os
import runpy
import sys
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

Message = tuple[dict[str, Any], dict[str, Any]]
_LENGTH = 8
_MOST = 1 << 32


def write(stream: BinaryIO, meta: Mapping[str, Any], arrays: Mapping[str, Any] | None = None) -> None:
    """Send one message: `meta` in JSON, and numpy arrays by name."""
    body = io.BytesIO()
    np.savez(body, meta=np.array(json.dumps(meta)), **(arrays or {}))
    stream.write(body.getbuffer().nbytes.to_bytes(_LENGTH, "little") + body.getvalue())
    stream.flush()


def read(stream: BinaryIO) -> Message | None:
    """The next message; None where the stream ends.

    Raises:
        ValueError: What came is no message.
    """
    head = stream.read(_LENGTH)
    if len(head) < _LENGTH:
        return None
    length = int.from_bytes(head, "little")
    if length > _MOST:
        raise ValueError(f"a message of {length} bytes")
    with np.load(io.BytesIO(stream.read(length)), allow_pickle=False) as file:
        arrays = dict(file)
    return json.loads(str(arrays.pop("meta"))), arrays


def main(adapter: str) -> None:
    """Answer messages on standard input: the first makes a session, each other is one input."""
    # What the library prints must not get between the messages.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    first = read(sys.stdin.buffer)
    if first is None:
        return
    try:
        session = runpy.run_path(adapter)["Session"](*first)
    except ImportError as error:
        write(replies, {"missing": str(error)})
        return
    write(replies, session.setup)
    while (message := read(sys.stdin.buffer)) is not None:
        outputs, meta = session.infer(message[1]["x"])
        write(replies, meta, {"outputs": outputs})


if __name__ == "__main__":
    main(sys.argv[1])
