"""What a client makes of a row of reals before it encrypts, where one scale for all of them would not do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias, Union

import numpy as np
import numpy.typing as npt

from secure_infer.graph.types import Shape

Reals: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Affine:
    """`u_f = round((x_f - offset_f) / scale_f)`: each feature has a range of its own.

    Attributes:
        offset: Shape `(features,)`, in units of the feature.
        scale: Shape `(features,)`, above zero.
    """

    offset: Reals
    scale: Reals
    kind: ClassVar[str] = "affine"

    @property
    def shape(self) -> Shape:
        """Shape of one row of reals."""
        return self.offset.shape

    @property
    def coded(self) -> Shape:
        """Shape of what a row is made to."""
        return self.offset.shape

    def units(self, x: Reals) -> Reals:
        """Rows `(n, features)` in units of the grid, still to be rounded."""
        return np.asarray((x - self.offset) / self.scale)

    def problem(self) -> str | None:
        """What makes it unusable, if anything does."""
        if self.offset.ndim != 1 or self.offset.shape != self.scale.shape:
            return "shapes"
        usable = np.isfinite(self.offset) & np.isfinite(self.scale) & (self.scale > 0)
        return None if usable.all() else "numbers"


@dataclass(frozen=True, eq=False)
class Bins:
    """Bits `x_f >= edges_fk`, feature after feature: the comparisons of a tree, made before anything is encrypted.

    The edges come from the calibration data, not from the model, so that they say nothing about its trees.

    Attributes:
        edges: Shape `(features, levels)`, ascending along the last axis, in units of the feature.
    """

    edges: Reals
    kind: ClassVar[str] = "bins"

    @property
    def shape(self) -> Shape:
        """Shape of one row of reals."""
        return self.edges.shape[:1]

    @property
    def coded(self) -> Shape:
        """Shape of what a row is made to."""
        return (self.edges.size,)

    def units(self, x: Reals) -> Reals:
        """Rows `(n, features)` as bits, shape `(n, features * levels)`."""
        return (x[:, :, None] >= self.edges).reshape(len(x), -1).astype(np.float64)

    def problem(self) -> str | None:
        """What makes it unusable, if anything does."""
        if self.edges.ndim != 2 or not self.edges.size:
            return "shapes"
        return None if np.isfinite(self.edges).all() and (np.diff(self.edges) >= 0).all() else "numbers"


Encoding: TypeAlias = Union[Affine, Bins]


def to_dict(encoding: Encoding) -> dict[str, Any]:
    """The encoding as plain JSON values."""
    arrays = {name: getattr(encoding, name).tolist() for name in encoding.__dataclass_fields__ if name != "kind"}
    return {"kind": encoding.kind, **arrays}


def from_dict(data: Mapping[str, Any]) -> Encoding:
    """The encoding that `to_dict` wrote.

    Raises:
        KeyError, TypeError, ValueError: It is malformed.
    """
    encoding: type[Encoding] = {"affine": Affine, "bins": Bins}[data["kind"]]
    names = [name for name in encoding.__dataclass_fields__ if name != "kind"]
    found = encoding(**{name: np.asarray(data[name], dtype=np.float64) for name in names})
    if found.problem() is not None:
        raise ValueError(f"the encoding has {found.problem()} that make no sense")
    return found
