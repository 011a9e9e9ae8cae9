"""Decides where every vector lies and what the client sends: the cheapest way through a network that a search finds.

Each unit can be placed in several ways: the hybrid method, or sharing its work among the copies of its source; and if
only the first unit reads the input, the client may send rotated copies of it, or gather what each row of a sparse
matrix reads ("im2col"). A placement fixes what the next unit finds, so all units are decided together, by a beam search
over the cost that one inference has on the server.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from secure_infer.backends.ckks.copies import Sharing, Windows, contents, sent_copies, shared, sharings
from secure_infer.backends.ckks.lower import Indices, Matrix
from secure_infer.backends.ckks.normalize import Unit
from secure_infer.backends.ckks.packing import (
    Costs,
    Grid,
    Layout,
    Sums,
    Term,
    is_sparse,
    packed,
    positioned,
)
from secure_infer.backends.ckks.placement import choose_layouts
from secure_infer.errors import ParametersError, Problem
from secure_infer.graph import INPUT

BATCH = "batch"
INPUT_PLANS = ("auto", "raw", "im2col", "copies", BATCH)
_BEAM = 32
_KEPT_FIRST = 400
_KEPT_LAYOUTS = 4
_MOST_SENT = 128
_PARTS = (1, 2, 4, 8, 16)
_SENT = (2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, eq=False)
class Way:
    """One way to evaluate a unit.

    Attributes:
        cost: On the server.
        layout: Where its rows lie then.
        source: Where what it reads lies, for `sharing`.
        sharing: How copies share the work; None for the hybrid method, and for windows.
        windows: What the client gathers.
        parts: In how many parts it gathers each row.
        sent: How many neighboring rotations it sends; 0 if the input is not for this unit to decide.
    """

    cost: float
    layout: Layout
    source: Layout | None = None
    sharing: Sharing | None = None
    windows: Windows | None = None
    parts: int = 1
    sent: int = 0


@dataclass(frozen=True, eq=False)
class Placed:
    """A unit's matrices between positions.

    Attributes:
        layout: Where its rows lie.
        terms: The matrices; between slots if there are sums.
        sums: What is summed after its diagonals; None for what periods call for.
    """

    layout: Layout
    terms: tuple[Term, ...]
    sums: Sums | None


@dataclass(frozen=True, eq=False)
class _State:
    cost: float
    layouts: Mapping[str, Layout]
    ways: tuple[Way, ...]


def arrange(
    units: Sequence[Unit],
    inputs: int,
    image: tuple[int, int],
    costs: Mapping[str, Costs],
    slots: int,
    input_plan: str = "auto",
) -> tuple[str, Indices, list[Placed]]:
    """Place all units.

    Args:
        units: In topological order; the last one makes the output.
        inputs: Length of the input.
        image: Height and width of its channels.
        costs: Of operations at the level at which each runs.
        slots: Of a ciphertext.
        input_plan: Which of `INPUT_PLANS` the client follows.

    Returns:
        The input plan, none of them "auto"; which input each slot of the input's ciphertexts holds, shape
        `(period, ciphertexts)`; and the placed units.

    Raises:
        ParametersError: The network allows no such input plan.
    """
    search = _Search(units, image, costs, slots, input_plan)
    states = [_State(0.0, {INPUT: packed(inputs, slots)}, ())]
    for number, unit in enumerate(units):
        states = search.followed(number, unit, states)
    if not states:
        raise _impossible(input_plan)
    first = states[0].ways[0]
    gathers = first.windows is not None
    if input_plan == "auto":
        input_plan = "im2col" if gathers and first.parts > 1 else "copies" if gathers or first.sent > 1 else "raw"
    return input_plan, *_built(units, inputs, states[0], slots)


class _Search:
    def __init__(
        self,
        units: Sequence[Unit],
        image: tuple[int, int],
        costs: Mapping[str, Costs],
        slots: int,
        input_plan: str,
    ) -> None:
        self._costs, self._slots, self._plan = costs, slots, input_plan
        self._images = {INPUT: image, **{unit.name: unit.image for unit in units}}
        self._free = _reads_only_input(units[0]) and not any(INPUT in unit.affine.terms for unit in units[1:])
        self._hybrids: dict[tuple[str, tuple[int, ...]], list[Way]] = {}
        self._alive: list[Layout] = []  # their ids are keys

    def followed(self, number: int, unit: Unit, states: Sequence[_State]) -> list[_State]:
        """The best states after one more unit."""
        if not number and not self._free and self._plan not in ("auto", "raw"):
            return []
        found = [_after(state, unit, way) for state in states for way in self._ways(number, unit, state)]
        if not found and states and (number or self._plan in ("auto", "raw")):
            found = [_after(state, unit, way) for state in states[:4] for way in self._hybrid(unit, state)]
        best: dict[tuple[int, int, int, Grid | None], _State] = {}
        for state in sorted(found, key=lambda state: state.cost):
            layout = state.layouts[unit.name]
            best.setdefault((layout.period, layout.turn, -(-layout.extent * 16 // self._slots), layout.grid), state)
        return list(best.values())[: _BEAM if number else _KEPT_FIRST]

    def _ways(self, number: int, unit: Unit, state: _State) -> Iterator[Way]:
        matrices = _matrices(unit, state.layouts)
        costs = self._costs[unit.name]
        matrix = next(iter(matrices.values())) if len(matrices) == 1 else None
        dense = matrix is not None and len(matrix.values) > 0 and not is_sparse(matrices)
        if not number and self._free and matrix is not None and len(matrix.values):
            yield from self._arranged(unit, matrix, dense, costs)
        elif dense and matrix is not None:
            (source,) = (state.layouts[name] for name in matrices)
            if source.blocks == 1 and np.array_equal(source.positions, np.arange(len(source.positions))):
                for sharing in sharings(matrix.shape[0], source, self._slots):
                    yield Way(sharing.cost(costs), sharing.result, source, sharing)
        raw = number or self._plan in ("auto", "raw")
        if raw and all(state.layouts[name].plain for name in matrices):
            yield from self._hybrid(unit, state)

    def _arranged(self, unit: Unit, matrix: Matrix, dense: bool, costs: Costs) -> Iterator[Way]:
        """Ways of a first unit for which the client arranges the input."""
        if dense:
            wanted = {"auto": (1, *_SENT), "raw": (1,), "copies": _SENT}.get(self._plan, ())
            for source in contents(matrix.shape[1], self._slots) if matrix.shape[1] <= self._slots else []:
                for sharing in sharings(matrix.shape[0], source, self._slots):
                    for sent in (sent for sent in wanted if sent <= sharing.diagonals):
                        cost = sharing.cost(costs, sent) + sent * costs.load
                        yield Way(cost, sharing.result, source, sharing, sent=sent)
        elif self._plan != "raw":
            windows = Windows.of(matrix, unit.group)
            split = [] if self._plan == "copies" else list(self._gathered(windows, costs, _PARTS[1:]))
            yield from split
            if self._plan != "im2col" or not split:
                yield from self._gathered(windows, costs, _PARTS[:1])

    def _gathered(self, windows: Windows, costs: Costs, wanted: Sequence[int]) -> Iterator[Way]:
        """Ways of a first unit for which the client gathers what its rows read, each in some number of parts."""
        for parts in (parts for parts in wanted if -(-windows.most // parts) <= _MOST_SENT):
            for layout in windows.layouts(parts, self._slots):
                yield Way(windows.cost(parts, costs, layout.blocks), layout, windows=windows, parts=parts)

    def _hybrid(self, unit: Unit, state: _State) -> list[Way]:
        """The hybrid method in the cheapest layouts; of sources that are not plain, only the first copy is of use."""
        matrices, costs = _matrices(unit, state.layouts), self._costs[unit.name]
        used = [state.layouts[name] for name in matrices]
        key = (unit.name, tuple(map(id, used)))
        if key not in self._hybrids:
            self._alive += used
            layouts = {name: _flat(layout, self._slots) for name, layout in state.layouts.items()}
            loads = costs.load * (layouts[INPUT].blocks if INPUT in matrices else 0)
            priced = choose_layouts(unit, matrices, layouts, self._images, self._slots, costs)
            self._hybrids[key] = [Way(cost + loads, layout) for cost, layout in priced[:_KEPT_LAYOUTS]]
        return self._hybrids[key]


def _reads_only_input(unit: Unit) -> bool:
    return set(unit.affine.terms) == {INPUT}


def _matrices(unit: Unit, layouts: Mapping[str, Layout]) -> Mapping[str, Matrix]:
    return unit.affine.terms or {INPUT: _nothing(unit.size, len(layouts[INPUT].positions))}


def _flat(layout: Layout, slots: int) -> Layout:
    return layout if layout.plain else Layout(slots, 1, layout.positions)


def _after(state: _State, unit: Unit, way: Way) -> _State:
    return _State(state.cost + way.cost, {**state.layouts, unit.name: way.layout}, (*state.ways, way))


def _built(units: Sequence[Unit], inputs: int, state: _State, slots: int) -> tuple[Indices, list[Placed]]:
    raw = packed(inputs, slots)
    columns = np.arange(raw.length).reshape(raw.blocks, raw.period).T
    columns = np.where(columns < inputs, columns, -1)
    placed = []
    for unit, way in zip(units, state.ways, strict=True):
        matrices = _matrices(unit, state.layouts)
        name, matrix = next(iter(matrices.items()))
        if way.windows is not None:
            term, columns = way.windows.gathered(way.layout, way.parts, slots)
            sums = Sums(way.layout.period if way.parts > 1 else 1, way.parts)
            placed.append(Placed(way.layout, (term,), sums))
        elif way.sharing is not None and way.source is not None:
            if way.sent:
                columns = sent_copies(way.source, inputs, way.sent, slots)
            term = shared(matrix, way.source, way.sharing, slots, max(way.sent, 1))
            placed.append(Placed(way.layout, (replace(term, source=name),), way.sharing.sums))
        else:
            layouts = {name: _flat(layout, slots) for name, layout in state.layouts.items()}
            placed.append(Placed(way.layout, tuple(positioned(matrices, layouts, way.layout)), None))
    return columns, placed


def _nothing(rows: int, columns: int) -> Matrix:
    empty = np.zeros(0, dtype=np.int64)
    return Matrix(empty, empty, np.zeros(0), (rows, columns))


def _impossible(input_plan: str) -> ParametersError:
    return ParametersError(
        f"The network allows no input plan {input_plan!r}.",
        [
            Problem(
                "input_plan",
                "im2col needs a first layer that reads few inputs for each output, such as a convolution; copies a "
                "first layer alone in reading the input.",
                'leave it out, or pass "raw".',
            )
        ],
    )
