"""The seam between a network and a cryptosystem: four verbs with bytes in between.

A backend compiles a graph to server halves and a client half. The client half makes keys, encrypts and decrypts; a
server half runs. A protocol with several parties has one server half, one message and one reply for each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NoReturn, Protocol, runtime_checkable

import numpy.typing as npt

from secure_infer.errors import Problem, UnsupportedNetwork
from secure_infer.graph.graph import Graph
from secure_infer.graph.ops import Polynomial
from secure_infer.graph.text import underline
from secure_infer.graph.types import Integers

Values = npt.NDArray[Any]


@dataclass(frozen=True)
class Guarantee:
    """What a compiled network promises, against whom, and what it does not hide.

    Attributes:
        scheme: Cryptosystem and the library that implements it.
        security_bits: Computational security of keys and ciphertexts; None where nothing is encrypted.
        failure_probability: Chance that one inference differs from the exact integer result; None if not exact.
        error_bound: Greatest error of an output, in real units; None if the result is exact.
        adversary: Whom the guarantee holds against.
        leaks: What each side learns all the same.
        trust: Assumptions that a user has to accept, such as parties that do not collude.
    """

    scheme: str
    security_bits: int | None
    failure_probability: float | None
    error_bound: float | None
    adversary: str
    leaks: tuple[str, ...]
    trust: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Guarantee:
        """The guarantee that `as_dict` wrote.

        Raises:
            KeyError, TypeError, ValueError: It is malformed.
        """
        found = cls(**{**data, "leaks": tuple(data["leaks"]), "trust": tuple(data["trust"])})
        texts = (found.scheme, found.adversary, *found.leaks, *found.trust)
        numbers = (found.security_bits, found.failure_probability, found.error_bound)
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("the guarantee holds something else than text")
        if not all(number is None or (type(number) in (int, float) and 0 <= number < 1e300) for number in numbers):
            raise ValueError("the guarantee holds numbers that make no sense")
        return found

    def __str__(self) -> str:
        correct = "exact" if self.failure_probability is not None else "not exact, and with no bound on its errors"
        if self.failure_probability:
            correct = f"exact but with probability {self.failure_probability:.2g} an inference"
        if self.error_bound is not None:
            correct = f"within {self.error_bound:.2g} of the exact result"
        security = "no encryption" if self.security_bits is None else f"{self.security_bits}-bit security"
        lines = [f"{self.scheme}: {security}, {correct}", f"  adversary: {self.adversary}"]
        lines += [f"  trust: {line}" for line in self.trust] + [f"  leaks: {line}" for line in self.leaks]
        return "\n".join(lines)


@dataclass(frozen=True)
class Program:
    """A compiled network.

    Attributes:
        servers: One half for each server party: opaque to everyone but the backend; holds weights, never a secret key.
        client: The client's half: parameters and shapes, never weights.
        guarantee: What it promises.
        parameters: Cryptographic parameters, for reports.
        counts: Primitive operations of one inference (look-ups, rotations, rounds ...), for reports and floors.
    """

    servers: tuple[bytes, ...]
    client: bytes
    guarantee: Guarantee
    parameters: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)


class Keys:
    """A client's keys. They never print themselves and refuse to be pickled.

    Attributes:
        secret: Serialized secret key; stays with the client.
        evaluation: Serialized evaluation keys, for the server; empty where the protocol has none.
    """

    __slots__ = ("evaluation", "secret")

    def __init__(self, secret: bytes, evaluation: bytes) -> None:
        self.secret, self.evaluation = secret, evaluation

    def __repr__(self) -> str:
        return f"Keys(secret=hidden, evaluation={len(self.evaluation)} bytes)"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "Keys refuse to be pickled; secure_infer.client.write_keys keeps the secret in a file of mode 0600."
        )


class ClientRole(Protocol):
    """What the client does. Values are integers in units of the graph's scales."""

    def keygen(self) -> Keys:
        """Fresh keys from the operating system's random numbers."""
        ...

    def encrypt(self, x: Integers, keys: Keys) -> tuple[bytes, ...]:
        """One message for each server party from a batch of integers, shape `(n, *input shape)`."""
        ...

    def decrypt(self, replies: Sequence[bytes], keys: Keys) -> Values:
        """The batch of outputs, shape `(n, *output shape)`: int64 if the protocol is exact, float64 otherwise.

        Raises:
            DecryptionError: A reply that does not decrypt under these keys.
        """
        ...


class ServerRole(Protocol):
    """What one server party does."""

    def run(self, message: bytes, evaluation: bytes) -> bytes:
        """The reply to a message. A party of several talks to its peers meanwhile, so all must be run together."""
        ...

    def close(self) -> None:
        """Release processes and memory."""
        ...


class OpenedKeys(Protocol):
    """Evaluation keys that a server party has read, checked and unpacked."""

    @property
    def size(self) -> int:
        """Bytes of memory that they take."""
        ...


@runtime_checkable
class SoleServer(ServerRole, Protocol):
    """A server party that needs no other, so that one of many equal processes can answer for it.

    `run(message, evaluation)` is `answer(message, open(evaluation))`, but for what it remembers of keys.
    """

    def open(self, evaluation: bytes) -> OpenedKeys:
        """Evaluation keys as `answer` takes them; whoever calls keeps them for as long as it likes.

        Raises:
            BundleError: Keys that are damaged or malformed.
            KeyMismatch: Keys of another model.
        """
        ...

    def answer(self, message: bytes, keys: Any) -> bytes:
        """The reply to a message under keys that this party opened."""
        ...


class Backend(Protocol):
    """A cryptosystem.

    Attributes:
        name: Name of the protocol.
        ops: Names of the operations that it can evaluate.
        exact: Whether outputs equal the integer interpreter's (up to the guarantee's failure probability).
        parties: Number of servers.
        options: Names of the keyword options that `compile` takes, each with one line of help.
    """

    name: str
    ops: frozenset[str]
    exact: bool
    parties: int
    options: Mapping[str, str]

    def compile(self, graph: Graph, calibration: Integers, options: Mapping[str, Any]) -> Program:
        """Compile a graph.

        Args:
            graph: A network whose operations are all in `ops`.
            calibration: Inputs, shape `(n, *input shape)`, that show the range of every accumulator.
            options: Values for `options`.

        Raises:
            UnsupportedNetwork: Something the protocol can't evaluate.
            ParametersError: No secure parameters fit.
        """
        ...

    def client(self, half: bytes) -> ClientRole:
        """The client role for a program's client half."""
        ...

    def servers(self, halves: Sequence[bytes]) -> Sequence[ServerRole]:
        """Every server party on this machine; parties of a multi-party protocol run in processes of their own.

        Raises:
            BundleError: A half that is malformed or holds a secret.
        """
        ...

    def simulate(self, graph: Graph, program: Program, x: Integers, seed: int) -> Values:
        """What `decrypt(run(encrypt(x)))` would give, with the cryptosystem's errors drawn but nothing encrypted."""
        ...

    def primitives(self, program: Program) -> Mapping[str, float]:
        """Seconds of CPU for one of each primitive operation in `program.counts`, measured now on this machine."""
        ...


@runtime_checkable
class Rebuilding(Protocol):
    """A backend whose halves depend on the version of its library, and can be made anew without the network."""

    def rebuild(self, program: Program) -> Program:
        """The same program for the library of this machine.

        Raises:
            BundleError: This library can't read it.
        """
        ...


@runtime_checkable
class Simulating(Protocol):
    """A backend whose simulation takes long to set up, and is kept for many batches."""

    def simulation(self, program: Program) -> Callable[[Integers, int], Values]:
        """What `simulate` does with a program, as a function of inputs and seed."""
        ...


def require_supported(backend: Backend, graph: Graph) -> None:
    """Raise one error that lists and underlines every node the backend can't evaluate."""
    problems = [
        Problem(node.name, f"{backend.name} can't evaluate {node.kind}.", _substitute(backend.name, node.kind))
        for node in graph.nodes
        if node.kind not in backend.ops
    ]
    problems += [
        Problem(node.name, "Shares can't be clipped to a bound.", "trace the network for this protocol.")
        for node in graph.nodes
        if backend.parties > 1 and isinstance(node.op, Polynomial) and node.op.bound is not None
    ]
    if problems:
        raise UnsupportedNetwork(
            f"The network does not run under {backend.name}.", problems, underline(graph, problems)
        )


def _substitute(protocol: str, kind: str) -> str:
    if protocol == "ckks":
        return (
            "replace max-pooling by average pooling"
            if kind == "Max"
            else "replace the activation by a PolynomialActivation"
        ) + " with secure_infer.fix(net, 'ckks'), then train."
    return "use another protocol for this network, or express the layer by supported ones."
