"""Both owners and the dealer on one machine, for trials: three processes, each owner's samples in its own alone."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from secure_infer.backends.mpc.training.task import Task, Weights, split
from secure_infer.backends.parties.messages import QUERY
from secure_infer.backends.parties.seam import Setup
from secure_infer.backends.parties.session import Session
from secure_infer.errors import InvalidInput, Problem, ProtocolError
from secure_infer.graph.types import Integers
from secure_infer.wire import frame
from secure_infer.wire.frame import Frame

Samples = tuple[npt.ArrayLike, npt.ArrayLike]
"""An owner's features, shape `(n, features)`, and classes, shape `(n,)`."""
DEFAULT_TIMEOUT = 60.0


@dataclass(frozen=True, eq=False)
class Trained:
    """What both owners have in the end.

    Attributes:
        task: What was trained.
        weights: In units of the task's precision; see `task.Weights`.
        statistics: Rounds and bytes between the owners, and seconds.
    """

    task: Task
    weights: Weights
    statistics: Mapping[str, float]

    def logits(self, x: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Outputs in floating point for features `x`, shape `(n, features)`."""
        values = np.asarray(x, dtype=np.float64)
        for layer in range(0, len(self.weights), 2):
            matrix, bias = (self.task.reals(part) for part in self.weights[layer : layer + 2])
            values = (values if layer == 0 else np.maximum(values, 0)) @ matrix + bias
        return values


def train(task: Task, owners: Sequence[Samples], timeout: float = DEFAULT_TIMEOUT) -> Trained:
    """Train a perceptron on the samples of two owners, who see shares of each other's samples only.

    The weights are those that training on all samples in the clear, with the same integers, would give, bit for bit.
    As in `mpc`, owners and dealer must not collude, and follow the protocol. Both owners get the weights, which may
    tell of the samples; nothing is done against that.

    Args:
        task: What to train; public.
        owners: The samples of party 0 and of party 1.
        timeout: Seconds that an owner waits for another at each message; training may take 20 times as long.

    Raises:
        InvalidInput: Samples that do not fit the task.
        ProtocolError: A process failed, or the owners disagree.
        MissingExtra: CrypTen is not installed.
    """
    from secure_infer.backends.mpc.backend import require_crypten

    require_crypten()
    if len(owners) != 2:
        raise InvalidInput("Two owners train.", [Problem("owners", f"Got {len(owners)}.", "give two.")])
    halves = [(task.to_bytes(), *map(_raw, task.samples(*samples))) for samples in owners]
    session = Session(Setup("secure_infer.backends.mpc.training.party", timeout))
    try:
        session.load(halves)
        answers = _run(session)
    finally:
        session.close()
    if answers[0].parts != answers[1].parts:
        raise ProtocolError("The owners have different weights.", [Problem("owners", "They diverged.", "train again.")])
    layers = list(pairwise(task.sizes))
    shapes = [shape for inputs, outputs in layers for shape in ((inputs, outputs), (outputs,))]
    return Trained(task, split(answers[0].parts[0], shapes), dict(answers[0].meta))


def _run(session: Session) -> list[Frame]:
    start = frame.pack(QUERY, [], {"session": os.urandom(16).hex()})
    waits = [session.ask(party, start) for party in (0, 1)]
    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(lambda wait: wait(), waits))


def _raw(values: Integers) -> bytes:
    return np.ascontiguousarray(values, dtype="<i8").tobytes()
