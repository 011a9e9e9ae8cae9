"""What both owners agree on before they train: sizes, steps, precision; all of it is public."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from secure_infer.errors import BundleError, InvalidInput, Problem
from secure_infer.graph.types import Integers

Weights = list[Integers]
"""Of each layer the matrix, shape `(in, out)`, and the biases, shape `(out,)`; in units of the precision."""
_GREATEST = 1 << 10
_MOST_STEPS = 1_000_000


@dataclass(frozen=True)
class Task:
    """A perceptron with ReLUs, trained by stochastic gradient descent on the squared error of one-hot classes.

    Attributes:
        sizes: Features, hidden neurons, classes.
        steps: Mini-batches.
        batch: Samples of each.
        rate_bits: The learning rate is `2**-rate_bits`, for the gradient averaged over a batch.
        fraction_bits: Numbers are multiples of `2**-fraction_bits`.
        seed: Of the first weights and of the order of samples.
    """

    sizes: tuple[int, ...]
    steps: int
    batch: int = 32
    rate_bits: int = 4
    fraction_bits: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        limits = {"steps": _MOST_STEPS, "batch": 4096, "rate_bits": 16, "fraction_bits": 20, "seed": 1 << 31}
        problems = [
            Problem(name, f"Expected 0 to {most}, got {getattr(self, name)!r}.", "correct it.")
            for name, most in limits.items()
            if not isinstance(getattr(self, name), int) or not 0 <= getattr(self, name) <= most
        ]
        if self.batch < 1 or self.batch & (self.batch - 1):
            problems.append(Problem("batch", f"{self.batch} is no power of two.", "use 16, 32 or 64."))
        if len(self.sizes) < 2 or not all(isinstance(size, int) and 1 <= size <= 1 << 16 for size in self.sizes):
            problems.append(Problem("sizes", f"Got {self.sizes}.", "give features, hidden neurons, classes."))
        if problems:
            raise InvalidInput("The task can't be trained.", problems)

    def to_bytes(self) -> bytes:
        """The task as JSON."""
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Task:
        """The task that `to_bytes` wrote.

        Raises:
            BundleError: Not such a task.
        """
        try:
            entries: dict[str, Any] = json.loads(data)
            if set(entries) != {item.name for item in fields(cls)}:
                raise ValueError("other keys than those of a task")
            return cls(**{**entries, "sizes": tuple(entries["sizes"])})
        except (ValueError, TypeError, InvalidInput) as error:
            raise BundleError("The task can't be read.", [Problem("task", f"{error}.", "send it again.")]) from error

    def first_weights(self) -> Weights:
        """Random matrices (He et al., ICCV 2015) and zero biases: everybody knows them."""
        rng = np.random.default_rng(self.seed)
        weights: Weights = []
        for inputs, outputs in pairwise(self.sizes):
            weights.append(self.units(rng.normal(0, (2 / inputs) ** 0.5, (inputs, outputs))))
            weights.append(np.zeros(outputs, dtype=np.int64))
        return weights

    def batches(self, count: int) -> Iterator[Integers]:
        """Indices of the samples of each step, out of `count`; one pass after another in a new order."""
        rng = np.random.default_rng(self.seed + 1)
        order: list[int] = []
        for _ in range(self.steps):
            while len(order) < self.batch:
                order += rng.permutation(count).tolist()
            yield np.array(order[: self.batch], dtype=np.int64)
            order = order[self.batch :]

    def units(self, values: npt.NDArray[np.float64]) -> Integers:
        """Reals to multiples of the precision."""
        return np.asarray(np.rint(np.ldexp(values, self.fraction_bits)), dtype=np.int64)

    def reals(self, values: Integers) -> npt.NDArray[np.float64]:
        """Multiples of the precision to reals."""
        return np.ldexp(values.astype(np.float64), -self.fraction_bits)

    def samples(self, x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[Integers, Integers]:
        """An owner's features, `(n, features)`, and one-hot classes, `(n, classes)`, in units.

        Raises:
            InvalidInput: Wrong shapes, features that are not finite or too large, or classes that do not exist.
        """
        features, labels = np.asarray(x, dtype=np.float64), np.asarray(y)
        problems = []
        if features.ndim != 2 or features.shape[1] != self.sizes[0] or labels.shape != features.shape[:1]:
            shapes = f"{features.shape} and {labels.shape}"
            problems.append(Problem("data", f"Got shapes {shapes}.", f"give (n, {self.sizes[0]}) and (n,)."))
        elif not np.isfinite(features).all() or np.abs(features).max(initial=0) > _GREATEST:
            problems.append(Problem("data", f"Features exceed {_GREATEST}.", "normalize them."))
        if labels.dtype.kind not in "iu" or labels.size == 0 or labels.min() < 0 or labels.max() >= self.sizes[-1]:
            problems.append(Problem("labels", "They are not classes of the task.", "use 0 to classes - 1."))
        if problems:
            raise InvalidInput("An owner's data can't be used.", problems)
        return self.units(features), self.units(np.eye(self.sizes[-1])[labels])


def split(values: bytes, shapes: Sequence[tuple[int, ...]]) -> Weights:
    """Arrays of these shapes out of raw little-endian int64.

    Raises:
        BundleError: Another length.
    """
    flat, ends = np.frombuffer(values, dtype="<i8"), np.cumsum([int(np.prod(shape)) for shape in shapes])
    if not len(ends) or flat.size != ends[-1]:
        raise BundleError("Weights of another network.", [Problem("weights", "Their length differs.", "train again.")])
    return [part.reshape(shape).astype(np.int64) for part, shape in zip(np.split(flat, ends[:-1]), shapes, strict=True)]
