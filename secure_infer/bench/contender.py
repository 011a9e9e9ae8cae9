"""The seam between the runner and whatever is measured: ours, or a peer's library on the same network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from secure_infer.bench.cases import Entry

Reals = npt.NDArray[np.float64]
PHASES = ("compile", "keygen", "encrypt", "run", "decrypt")


@dataclass(frozen=True, eq=False)
class Subject:
    """A model and the data it is measured on.

    Attributes:
        name: Name of the model.
        net: A torch network or a `Graph`.
        calibration: Typical inputs, reals, shape `(n, *input shape)`.
        x: Held-out inputs, as `calibration`.
        y: Their classes, shape `(n,)`.
        options: Compile options of each protocol that the recipe gives.
        trained: Whether its classes mean anything; random weights are measured for their latency alone.
    """

    name: str
    net: Any
    calibration: npt.NDArray[Any]
    x: npt.NDArray[Any]
    y: npt.NDArray[np.int64]
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    trained: bool = True


@dataclass(frozen=True, eq=False)
class Setup:
    """What happens once, before any image.

    Attributes:
        wall_s: Seconds to compile and to make keys; a phase that does not exist is absent.
        cpu_s: Seconds of CPU.
        evaluation_keys: Bytes of the evaluation keys in memory; None if unknown.
        evaluation_keys_sent: Bytes of the evaluation keys as uploaded; None if nothing is encrypted.
        parameters: Cryptographic parameters.
        counts: Primitive operations of one inference.
        libraries: Distributions that the figures depend on.
    """

    wall_s: Mapping[str, float]
    cpu_s: Mapping[str, float]
    evaluation_keys: int | None = None
    evaluation_keys_sent: int | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, float] = field(default_factory=dict)
    libraries: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Sample:
    """One request.

    Attributes:
        outputs: Reals, shape `(batch, classes)`.
        wall_s: Seconds by phase of the whole request: encrypt, run, decrypt.
        cpu_s: Seconds of CPU by phase.
        bytes: Bytes of the messages: input, output.
        statistics: What the parties counted.
    """

    outputs: Reals
    wall_s: Mapping[str, float]
    cpu_s: Mapping[str, float]
    bytes: Mapping[str, int]
    statistics: Mapping[str, float] = field(default_factory=dict)


class Contender(Protocol):
    """Something that predicts on ciphertexts and can be timed by phase."""

    setup: Setup

    def clear(self, x: npt.NDArray[Any]) -> Reals:
        """The result that `infer` should give, without encryption: `(n, *input shape)` to `(n, classes)`."""
        ...

    def infer(self, x: npt.NDArray[Any]) -> Sample:
        """One request."""
        ...

    def primitives(self) -> Mapping[str, float]:
        """CPU seconds of one of each counted primitive, measured now; empty if unknown."""
        ...

    def close(self) -> None:
        """Release processes and memory."""
        ...


class Maker(Protocol):
    """Builds a contender: compiles and makes keys."""

    def __call__(self, subject: Subject, entry: Entry) -> Contender:
        """The contender, ready for images."""
        ...
