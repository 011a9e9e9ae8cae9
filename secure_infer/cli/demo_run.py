"""What the demo runs: held-out digits, one at a time, under one protocol after another, all on real ciphertexts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from importlib import import_module
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from secure_infer import backends, bundle, compiler
from secure_infer.backends.base import Guarantee
from secure_infer.cli import networks
from secure_infer.client import Client, Stopwatch
from secure_infer.compiler import Compiled
from secure_infer.errors import Problem, SecureInferError, UsageError
from secure_infer.graph.interpret import interpret, interpret_real
from secure_infer.wire.transport import Answer, InProcess, Transport

ONCE, EACH = ("compile", "start", "keygen"), ("encrypt", "run", "decrypt")
"""Phases that happen once for a model, and for each image; "start" is the servers loading the program."""

PREFERRED = {
    "clear": "digits-mlp-bnn",
    "tfhe": "digits-mlp-bnn",
    "ckks": "digits-cnn-poly",
    "mpc": "digits-mlp-bnn",
}
_SEEN = 4096


@dataclass(frozen=True, eq=False)
class Digit:
    """A held-out image, float in [0, 1], shape `(8, 8)`, and what it shows."""

    pixels: npt.NDArray[np.float32]
    label: int


@dataclass(frozen=True)
class Reading:
    """One digit as one protocol read it.

    Attributes:
        predicted: The class of the decrypted scores.
        clear: The class that the same network gives in the clear; over the reals if the protocol is not exact.
        wall_s: Seconds by phase of `EACH`.
        traffic: Bytes: input, output.
        seen: The beginning of what each server received.
    """

    predicted: int
    clear: int
    wall_s: Mapping[str, float]
    traffic: Mapping[str, int]
    seen: tuple[bytes, ...]


@dataclass
class Run:
    """One protocol's part of the demo, as far as it has come.

    Attributes:
        protocol: Name of the protocol.
        model: Name of the zoo model.
        phase: What is going on: "waiting", a phase, "done" or "failed".
        wall_s: Seconds of the phases of `ONCE` that are over.
        evaluation_keys: Bytes of the evaluation keys.
        readings: One for each digit read so far.
        guarantee: What the protocol promises, once compiled.
        error: Why it failed.
    """

    protocol: str
    model: str = ""
    phase: str = "waiting"
    wall_s: dict[str, float] = field(default_factory=dict)
    evaluation_keys: int = 0
    readings: list[Reading] = field(default_factory=list)
    guarantee: Guarantee | None = None
    error: SecureInferError | None = None

    def correct(self, digits: Sequence[Digit]) -> int:
        """How many digits were read right."""
        return sum(reading.predicted == digit.label for reading, digit in zip(self.readings, digits, strict=False))

    def agreeing(self) -> int:
        """How many predictions equal those of the same network in the clear."""
        return sum(reading.predicted == reading.clear for reading in self.readings)

    def phases_s(self) -> dict[str, float]:
        """Seconds by phase; medians an image for the phases of `EACH`."""
        each = {phase: median(reading.wall_s[phase] for reading in self.readings) for phase in EACH if self.readings}
        return {**self.wall_s, **each}

    def sizes(self) -> dict[str, int]:
        """Evaluation keys once, and an image's traffic."""
        each = {
            name: int(median(r.traffic[name] for r in self.readings)) for name in ("input", "output") if self.readings
        }
        return {"evaluation_keys": self.evaluation_keys, **each}

    def as_dict(self, digits: Sequence[Digit]) -> dict[str, Any]:
        """The figures as plain JSON values."""
        return {
            "n": len(self.readings),
            "correct": self.correct(digits),
            "agree_with_clear": self.agreeing(),
            "phases_s": self.phases_s(),
            "bytes": self.sizes(),
            "model": self.model,
            "predicted": [reading.predicted for reading in self.readings],
            "guarantee": self.guarantee.as_dict() if self.guarantee else None,
        }


class Tap:
    """A transport that lets everything through and keeps the beginning of what each server receives."""

    def __init__(self, inner: Transport) -> None:
        self._inner = inner
        self.seen: tuple[bytes, ...] = ()

    def client_half(self) -> bytes:
        """The model's public half."""
        return self._inner.client_half()

    def upload(self, evaluation: bytes) -> str:
        """Pass evaluation keys on."""
        return self._inner.upload(evaluation)

    def infer(self, messages: Sequence[bytes], key_name: str) -> Answer:
        """Pass a request on."""
        self.seen = tuple(message[:_SEEN] for message in messages)
        return self._inner.infer(messages, key_name)

    def close(self) -> None:
        """Close the servers."""
        self._inner.close()


def held_out_digits(n: int) -> list[Digit]:
    """The first `n` digits of the held-out part.

    Raises:
        UsageError: More than there are, or none.
        MissingExtra: scikit-learn, which brings them, is not installed.
    """
    from secure_infer.cli.inputs import dataset

    data = dataset("digits")
    if not 1 <= n <= len(data.x_test):
        raise UsageError(
            f"Can't show {n} digits.", [Problem("--n", f"Expected 1 to {len(data.x_test)}.", "change it.")]
        )
    return [Digit(image[0], int(label)) for image, label in zip(data.x_test[:n], data.y_test[:n], strict=True)]


def choose_model(protocol: str) -> str:
    """The zoo's digits model to show a protocol with.

    Raises:
        UsageError: None is meant for it.
    """
    from secure_infer import zoo

    meant = [n for n in zoo.models() if zoo.recipe(n).dataset == "digits" and protocol in zoo.recipe(n).protocols]
    if not meant:
        raise UsageError(
            f"No digits model of the zoo is meant for {protocol}.",
            [Problem(protocol, "No recipe lists it.", "leave it out of --protocols.")],
        )
    return PREFERRED[protocol] if PREFERRED.get(protocol) in meant else meant[0]


def read(run: Run, digits: Sequence[Digit], changed: Callable[[], None]) -> None:
    """Read every digit under one protocol; what is known so far is in `run`, and `changed` is called at each step.

    An error of ours ends up in `run.error`, so that the other protocols still run.
    """

    def enter(phase: str) -> None:
        run.phase = phase
        changed()

    try:
        _read(run, digits, enter)
        enter("done")
    except SecureInferError as error:
        run.error = error
        enter("failed")


def _read(run: Run, digits: Sequence[Digit], enter: Callable[[str], None]) -> None:
    # Loading libraries is no part of what is timed.
    backend = backends.load(run.protocol)
    import_module("secure_infer.frontends")
    run.model = choose_model(run.protocol)
    network = networks.find(run.model)
    typical, watch = network.calibration(None), Stopwatch(run.wall_s)
    enter("compile")
    with watch.phase("compile"):
        compiled = compiler.compile(network.net, typical, run.protocol, **network.options.get(run.protocol, {}))
    run.guarantee = compiled.guarantee
    enter("start")
    with watch.phase("start"):
        half = bundle.pack_client_half(compiled.interface, compiled.program.client)
        tap = Tap(InProcess(half, backend.servers(compiled.program.servers)))
    with closing(tap), Client(tap) as client:
        enter("keygen")
        run.evaluation_keys = len(client.keys().evaluation)
        run.wall_s |= client.stopwatch.wall_s
        for position, digit in enumerate(digits):
            enter(f"digit {position + 1}")
            run.readings.append(_reading(compiled, client, tap, digit))


def _reading(compiled: Compiled, client: Client, tap: Tap, digit: Digit) -> Reading:
    x = digit.pixels.reshape(1, *compiled.interface.input.shape)
    answer = client.infer(x)
    graph = compiled.graph
    evaluate = interpret if backends.load(compiled.protocol).exact else interpret_real
    clear = graph.dequantize(evaluate(graph, graph.quantize(x)))
    return Reading(int(answer.outputs.argmax()), int(clear.argmax()), answer.wall_s, answer.bytes, tap.seen)
