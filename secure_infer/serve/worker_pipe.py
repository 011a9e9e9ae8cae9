"""What front and workers say to one another: a JSON head and a body, each preceded by its length; never a pickle.

    offset  size  field
    0       4     length h of the head, little endian
    4       8     length b of the body
    12      h     head: a JSON object
    12+h    b     body: a message or a reply

The body has been received whole from a client, and is checked by its reader as a frame of its own.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Mapping
from typing import Any

LIMIT = 1 << 20
"""Bytes that a reader takes at once."""
_LENGTHS = struct.Struct("<IQ")
_MOST_HEAD, _MOST_BODY = 1 << 22, 1 << 31


class Closed(Exception):
    """The other end has closed the pipe."""


def send(pipe: socket.socket, head: Mapping[str, Any], body: bytes = b"") -> None:
    """Send a message from a process that does nothing else meanwhile.

    Raises:
        OSError: The other end is gone.
    """
    for piece in pieces(head, body):
        pipe.sendall(piece)


def receive(pipe: socket.socket) -> tuple[dict[str, Any], bytes]:
    """Wait for a message.

    Raises:
        Closed: The other end is gone.
    """
    head, body = _LENGTHS.unpack(_exactly(pipe, _LENGTHS.size))
    return json.loads(_exactly(pipe, head)), _exactly(pipe, body)


async def receive_async(reader: asyncio.StreamReader) -> tuple[dict[str, Any], bytes]:
    """Wait for a message without holding the event loop up.

    Raises:
        Closed: The other end is gone; or it says what no worker says, as one might that a request has taken over.
    """
    try:
        head, body = _LENGTHS.unpack(await reader.readexactly(_LENGTHS.size))
        if head > _MOST_HEAD or body > _MOST_BODY:
            raise Closed
        return dict(json.loads(await reader.readexactly(head))), await reader.readexactly(body)
    except (asyncio.IncompleteReadError, OSError, ValueError, TypeError, RecursionError) as error:
        raise Closed from error


def pieces(head: Mapping[str, Any], body: bytes) -> tuple[bytes, bytes]:
    """A message as the bytes to send, in order; the body is not copied."""
    text = json.dumps(head).encode()
    return _LENGTHS.pack(len(text), len(body)) + text, body


def _exactly(pipe: socket.socket, count: int) -> bytes:
    data = bytearray(count)
    view, at = memoryview(data), 0
    try:
        while at < count:
            got = pipe.recv_into(view[at:])
            if not got:
                raise Closed
            at += got
    except OSError as error:
        raise Closed from error
    return bytes(data)
