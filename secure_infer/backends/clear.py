"""No cryptography: the exact interpreter behind the backend's verbs; the reference, and a stand-in for tests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from secure_infer.backends.base import Guarantee, Keys, Program, Values, require_supported
from secure_infer.errors import BundleError, DecryptionError, Problem
from secure_infer.graph import OPS, store
from secure_infer.graph.graph import Graph
from secure_infer.graph.interpret import interpret
from secure_infer.graph.types import Integers
from secure_infer.wire import frame

_MAX_AXES = 8
_GUARANTEE = Guarantee(
    scheme="none (clear evaluation)",
    security_bits=None,
    failure_probability=0.0,
    error_bound=None,
    adversary="none: the server reads everything",
    leaks=("inputs and outputs to the server",),
)


class ClearClient:
    """Packs integers; there are no keys."""

    def keygen(self) -> Keys:
        """Empty keys."""
        return Keys(b"", b"")

    def encrypt(self, x: Integers, keys: Keys) -> tuple[bytes, ...]:
        """The integers themselves, as one message."""
        return (pack_integers(x),)

    def decrypt(self, replies: Sequence[bytes], keys: Keys) -> Values:
        """The integers of the reply."""
        try:
            (reply,) = replies
            return unpack_integers(reply)
        except (BundleError, ValueError) as error:
            raise DecryptionError("The reply can't be read.", getattr(error, "problems", ())) from error


@dataclass(frozen=True)
class NoKeys:
    """What takes the place of opened evaluation keys."""

    size: int = 0


class ClearServer:
    """Evaluates the graph with the interpreter."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def run(self, message: bytes, evaluation: bytes) -> bytes:
        """Evaluate a batch; see `answer`."""
        return self.answer(message, NoKeys())

    def open(self, evaluation: bytes) -> NoKeys:
        """There are no keys."""
        return NoKeys()

    def answer(self, message: bytes, keys: NoKeys) -> bytes:
        """Evaluate a batch.

        Raises:
            BundleError: The message is no batch of this model's inputs.
        """
        x, kind = unpack_integers(message), self._graph.input
        if x.shape[1:] != kind.shape or not x.ndim or (x.size and (x.min() < kind.low or x.max() > kind.high)):
            raise BundleError(
                "The message holds no inputs of this model.",
                [
                    Problem(
                        "message",
                        f"Expected integers in [{kind.low}, {kind.high}] of shape (n, *{kind.shape}).",
                        "encrypt with this model's client half.",
                    )
                ],
            )
        return pack_integers(interpret(self._graph, x))

    def close(self) -> None:
        """Nothing to release."""


class ClearBackend:
    """The backend `clear`."""

    name = "clear"
    ops = frozenset(OPS)
    exact = True
    parties = 1
    options: Mapping[str, str] = {}

    def compile(self, graph: Graph, calibration: Integers, options: Mapping[str, Any]) -> Program:
        """The graph itself is the server half."""
        require_supported(self, graph)
        return Program((frame.pack("clear-server", store.to_bytes(graph)),), b"", _GUARANTEE)

    def client(self, half: bytes) -> ClearClient:
        """The client role."""
        return ClearClient()

    def servers(self, halves: Sequence[bytes]) -> Sequence[ClearServer]:
        """The one server."""
        try:
            (half,) = halves
            head, weights = frame.unpack(half, "clear-server").parts
        except ValueError as error:
            raise BundleError("The server half does not hold one graph.") from error
        return [ClearServer(store.from_bytes(head, weights))]

    def simulate(self, graph: Graph, program: Program, x: Integers, seed: int) -> Values:
        """The interpreter's result."""
        return interpret(graph, x)

    def primitives(self, program: Program) -> Mapping[str, float]:
        """No primitive operations are counted."""
        return {}


def pack_integers(x: Integers) -> bytes:
    """An int64 array as a frame."""
    array = np.ascontiguousarray(x, dtype="<i8")
    return frame.pack("integers", [array.tobytes()], {"shape": list(array.shape)})


def unpack_integers(data: bytes) -> Integers:
    """The int64 array of a frame."""
    received = frame.unpack(data, "integers")
    shape = received.meta.get("shape")
    if not isinstance(shape, list) or not all(isinstance(s, int) and s >= 0 for s in shape) or len(received.parts) != 1:
        raise BundleError("The message holds no integer array.")
    if len(received.parts[0]) != 8 * math.prod(shape) or len(shape) > _MAX_AXES:
        raise BundleError("The message's array has another size than its shape.")
    return np.frombuffer(received.parts[0], dtype="<i8").reshape(shape).astype(np.int64)
