"""The integer tensors that flow between operations: shape, exact range, scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Integers: TypeAlias = npt.NDArray[np.int64]
Shape: TypeAlias = tuple[int, ...]
Pair: TypeAlias = tuple[int, int]
Scale: TypeAlias = tuple[float, ...]

ACCUMULATOR_BITS = 62
MOST_ELEMENTS = 1 << 28
"""Of one value for one sample: two gigabytes, more than any protocol here can evaluate."""


def bits_of(low: int, high: int) -> int:
    """Bits of the narrowest integer that holds [low, high]; two's complement if `low` is negative."""
    signed = low < 0
    magnitude = max(int(high).bit_length(), int(-low - 1).bit_length() if signed else 0)
    return max(1, magnitude + signed)


@dataclass(frozen=True)
class TensorType:
    """A tensor of integers in [low, high].

    Attributes:
        shape: Shape of one sample: `(features,)` or `(channels, height, width)`.
        low: Least possible value.
        high: Greatest possible value.
        scale: One real for the tensor, or one for each index of the first axis.
    """

    shape: Shape
    low: int
    high: int
    scale: Scale = (1.0,)

    @property
    def signed(self) -> bool:
        """Whether a sign bit is needed."""
        return self.low < 0

    @property
    def bits(self) -> int:
        """Bits of the narrowest (two's complement, if signed) integer that holds the range."""
        return bits_of(self.low, self.high)

    @property
    def size(self) -> int:
        """Number of elements of one sample."""
        return int(np.prod(self.shape, dtype=np.int64))

    def scale_array(self) -> npt.NDArray[np.float64]:
        """The scale, shaped to broadcast against one sample."""
        trailing = (1,) * (len(self.shape) - 1)
        return np.asarray(self.scale, dtype=np.float64).reshape((-1, *trailing))

    def __str__(self) -> str:
        kind = "i" if self.signed else "u"
        return f"{kind}{self.bits}[{'x'.join(map(str, self.shape))}]"


class TypeProblem(Exception):
    """An operation does not fit its inputs; `graph.Graph` gathers these into one error."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.what, self.fix = what, fix


def channelwise(values: Integers, shape: Shape) -> Integers:
    """Shape per-channel rows `(channels | 1, k)` so that each of the k columns broadcasts against `shape`.

    Returns:
        Array of shape `(k, channels | 1, 1, ...)`.
    """
    rows = np.atleast_2d(values)
    return rows.T.reshape((rows.shape[1], rows.shape[0]) + (1,) * (len(shape) - 1))
