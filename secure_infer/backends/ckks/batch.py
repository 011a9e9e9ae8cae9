"""Throughput: a ciphertext for each element, and in its slots the samples of a batch (Gilad-Bachrach et al. 2016).

No rotations, so no Galois keys; every entry of a matrix is one product with a constant. A batch of a few samples costs
as much as a full one. SEAL's key switch is far noisier in a few slots near the root 1 (see `clear`), and here each slot
matters, so the client leaves those empty.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from secure_infer.backends.ckks.arrange import Placed
from secure_infer.backends.ckks.lower import Indices, Reals
from secure_infer.backends.ckks.normalize import Unit
from secure_infer.backends.ckks.packing import Layout, positioned
from secure_infer.errors import ParametersError, Problem
from secure_infer.graph import INPUT

MOST_ELEMENTS = (1 << 15) - 1
_LEFT_EMPTY = 1 / 64


def quiet_slots(degree: int) -> Indices:
    """The slots that hold samples: those whose root of unity is not close to 1, nearly all."""
    exponents = np.array([pow(3, slot, 2 * degree) for slot in range(degree // 2)])
    return np.flatnonzero(np.minimum(exponents, 2 * degree - exponents) > _LEFT_EMPTY * degree)


def ciphertexts_of(samples: int, degree: int) -> int:
    """Into how many ciphertexts an element of so many samples goes."""
    return -(-samples // len(quiet_slots(degree)))


def chunks(values: Reals, degree: int) -> Iterator[Reals]:
    """The slots of each element of some samples `(n, elements)`: arrays `(elements, slots)`, one for each chunk.

    Slots without a sample repeat the last one, so that they stay within range.
    """
    quiet = quiet_slots(degree)
    for start in range(0, len(values), len(quiet)):
        chunk = values[start : start + len(quiet)]
        slots = np.tile(chunk[-1][:, None], (1, degree // 2))
        slots[:, quiet[: len(chunk)]] = chunk.T
        yield slots


def unchunked(slots: Reals, count: int, degree: int) -> Reals:
    """The samples `(count, elements)` of decrypted slots `(chunks, elements, slots)`."""
    quiet = quiet_slots(degree)
    return np.asarray(slots[..., quiet].transpose(0, 2, 1).reshape(-1, slots.shape[1])[:count])


def place_elements(units: Sequence[Unit], inputs: int) -> tuple[Indices, list[Placed]]:
    """As `arrange`: every element a ciphertext of its own.

    Raises:
        ParametersError: There are too many elements.
    """
    sizes: Mapping[str, int] = {INPUT: inputs, **{unit.name: unit.size for unit in units}}
    if max(sizes.values()) > MOST_ELEMENTS:
        problem = (
            f"A layer has {max(sizes.values())} elements, each of which would be a ciphertext; {MOST_ELEMENTS} go."
        )
        raise ParametersError(
            "The network is too wide for batches.", [Problem("input_plan", problem, "use another input plan.")]
        )
    layouts = {name: Layout(1, size, np.arange(size)) for name, size in sizes.items()}
    placed = [
        Placed(layouts[unit.name], tuple(positioned(unit.affine.terms, layouts, layouts[unit.name])), None)
        for unit in units
    ]
    return np.arange(inputs)[None], placed
