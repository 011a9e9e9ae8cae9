"""Polynomials close to an activation function on a range: least squares, and interpolation at Chebyshev nodes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from numpy.polynomial import chebyshev

from secure_infer.errors import Problem, UsageError

Reals: TypeAlias = npt.NDArray[np.float64]
Function: TypeAlias = Callable[[Reals], Reals]

FUNCTIONS: dict[str, Function] = {
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2,
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
}
"""Activation functions that can be approximated, by name."""


def _function(name: str | Function, degree: int, radius: float) -> Function:
    problems = []
    if isinstance(name, str) and name not in FUNCTIONS:
        problems.append(Problem("function", f"There is no {name!r}.", f"use one of {', '.join(FUNCTIONS)}."))
    if not 1 <= degree <= 31:
        problems.append(Problem("degree", f"Expected degree={degree} in [1, 31].", "use a lower degree."))
    if not 0 < radius < math.inf:
        problems.append(Problem("radius", f"Expected radius={radius} above 0.", "give the range of the inputs."))
    if problems:
        raise UsageError("The function can't be approximated.", problems)
    return FUNCTIONS[name] if isinstance(name, str) else name


def fit_polynomial(function: str | Function, degree: int, radius: float) -> Reals:
    """Least-squares fit of a function on `[-radius, radius]`, every x as likely as another.

    Returns:
        Coefficients of 1, x, x^2, ..., shape `(degree + 1,)`.
    """
    x = np.linspace(-1, 1, 2001)
    y = _function(function, degree, radius)(x * radius)
    coefficients = np.linalg.lstsq(np.vander(x, degree + 1, increasing=True), y, rcond=None)[0]
    return np.asarray(coefficients / radius ** np.arange(degree + 1))


def chebyshev_polynomial(function: str | Function, degree: int, radius: float) -> Reals:
    """Interpolation at the Chebyshev nodes of `[-radius, radius]`, nearly the best uniform fit (Trefethen, ATAP, 2013).

    Returns:
        Coefficients of 1, x, x^2, ..., shape `(degree + 1,)`.
    """
    exact = _function(function, degree, radius)
    series = chebyshev.chebinterpolate(lambda t: exact(t * radius), degree)  # type: ignore[no-untyped-call]
    powers = np.zeros(degree + 1)
    converted = chebyshev.cheb2poly(series)  # type: ignore[no-untyped-call]
    powers[: len(converted)] = converted
    return powers / radius ** np.arange(degree + 1)
