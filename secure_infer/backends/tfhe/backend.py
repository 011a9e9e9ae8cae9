"""The backend `tfhe`: exact integers under programmable bootstrapping."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from secure_infer.backends.base import Program, Values, require_supported
from secure_infer.backends.tfhe import ranges
from secure_infer.backends.tfhe.assemble import Output, assemble
from secure_infer.backends.tfhe.calibration import review
from secure_infer.backends.tfhe.cost import look_up_seconds
from secure_infer.backends.tfhe.lookup import LookUp
from secure_infer.backends.tfhe.options import HELP, Options, parse
from secure_infer.backends.tfhe.plan import Plan, plan
from secure_infer.backends.tfhe.planner import look_up_failure, search, settled
from secure_infer.errors import InvalidInput, ParametersError, Problem
from secure_infer.graph import OPS
from secure_infer.graph.graph import Graph
from secure_infer.graph.types import Integers, bits_of

if TYPE_CHECKING:
    from secure_infer.backends.tfhe.roles import TfheClient, TfheServer
    from secure_infer.backends.tfhe.simulate import Simulation

Restriction: TypeAlias = tuple[list[int], list[int], list[int]]
RESTRICTIONS: tuple[Restriction, ...] = (([1, 2], [10, 11, 12], []), ([], [], []))
"""GLWE dimensions, logarithms of polynomial sizes and levels of decomposition to choose from. The first set halves the
bootstrapping keys, and most often runs faster than the compiler's own choice, which does not count their way from
memory; wide look-ups need the second."""
ROUNDED_RESTRICTIONS: tuple[Restriction, ...] = (
    ([3], [9], [1]),
    ([3], [9], []),
    ([1, 2], [10, 11, 12], []),
    ([], list(range(8, 17)), []),
)
"""The same where look-ups round. The first set has the smallest keys; the second the smallest ones that hold sums of
results without noise worth a word."""


class TfheBackend:
    """The backend `tfhe`."""

    name = "tfhe"
    ops = frozenset(OPS)
    exact = True
    parties = 1
    options: Mapping[str, str] = HELP

    def compile(self, graph: Graph, calibration: Integers, options: Mapping[str, Any]) -> Program:
        """Compile a graph; see `Backend.compile`.

        Raises:
            UsageError: Unknown options.
            InvalidInput: A calibration set that is not made of inputs.
            ParametersError: An accumulator that no look-up can hold, no secure parameters, or keys of another model
                that do not suffice.
        """
        require_supported(self, graph)
        chosen = parse(options)
        calibration = _checked(graph, calibration)
        found: dict[str, Any] = {"calibration": list(review(graph, calibration))}
        if chosen.rounding == "auto":
            chosen, trials = search(graph, calibration, chosen, partial(_measure, graph, calibration))
            found["search"] = [trial.as_dict() for trial in trials]
        planned = plan(graph, calibration, chosen)
        chosen = replace(chosen, p_error=settled(planned, chosen))
        output, circuit, settings = _build(graph, calibration, planned, chosen)
        if chosen.failure is not None:
            chosen = replace(chosen, p_error=look_up_failure(chosen.failure, circuit.programmable_bootstrap_count))
            output, circuit, settings = _build(graph, calibration, planned, chosen)
        return assemble(graph, planned, output, chosen, circuit, settings, found)

    def client(self, half: bytes) -> TfheClient:
        """The client role for a program's client half."""
        from secure_infer.backends.tfhe.roles import TfheClient

        return TfheClient(half)

    def servers(self, halves: Sequence[bytes]) -> Sequence[TfheServer]:
        """The one server, compiled from the half's MLIR text."""
        from secure_infer.backends.tfhe.roles import TfheServer

        return [TfheServer(half) for half in halves]

    def rebuild(self, program: Program) -> Program:
        """The same circuit for this machine's concrete-python, which needs new keys; see `compiler.rebuild`."""
        from secure_infer.backends.tfhe.rebuild import rebuild

        return rebuild(program)

    def simulate(self, graph: Graph, program: Program, x: Integers, seed: int) -> Values:
        """Outputs with concrete's noise drawn for each look-up. The library draws it: `seed` has no effect."""
        return self.simulation(program)(x, seed)

    def simulation(self, program: Program) -> Simulation:
        """The simulation of a program, for many batches."""
        from secure_infer.backends.tfhe.simulate import Simulation

        return Simulation(program)

    def primitives(self, program: Program) -> Mapping[str, float]:
        """Mean seconds of CPU of one look-up of this circuit's kinds."""
        from secure_infer.backends.tfhe.measure import look_up_seconds

        return look_up_seconds(program)


def _checked(graph: Graph, calibration: Integers) -> Integers:
    x = np.asarray(calibration)
    kind = graph.input
    if x.ndim != len(kind.shape) + 1 or x.shape[1:] != kind.shape or not len(x) or x.dtype.kind not in "bui":
        raise InvalidInput(
            "The calibration set is not usable.",
            [
                Problem(
                    "calibration",
                    f"Expected integers of shape (n, {', '.join(map(str, kind.shape))}) with n > 0, "
                    f"got {x.dtype} of shape {x.shape}.",
                    "pass quantized inputs.",
                )
            ],
        )
    if x.min() < kind.low or x.max() > kind.high:
        raise InvalidInput(
            "The calibration set is not usable.",
            [
                Problem(
                    "calibration",
                    f"Expected values in [{kind.low}, {kind.high}], got [{x.min()}, {x.max()}].",
                    "quantize it with the graph's own scale.",
                )
            ],
        )
    return x.astype(np.int64)


def _output(graph: Graph, planned: Plan, calibration: Integers, options: Options) -> Output:
    """The narrowest encoding of the result; for every input if that costs no bit more than for likely ones."""
    held, worst, sigmas = planned.result, ranges.worst_case(graph), ranges.of(options.rounding)
    likely = worst if options.ranges == "worst_case" else ranges.calibrated(graph, calibration, worst, sigmas)
    found = []
    for reach in (worst[graph.output], likely[graph.output]):
        low, high = (held.parts * side // held.gain for side in (reach.low, reach.high))
        center = (low + high + 1) // 2  # of each output: the classes' ranges need not be alike
        found.append((max(2, bits_of(int((low - center).min()), int((high - center).max()))), center))
    safe = found[0][0] <= found[1][0]
    return Output(*found[0 if safe else 1], safe)


def _measure(
    graph: Graph, calibration: Integers, planned: Plan, options: Options, x: Integers
) -> tuple[float, Integers]:
    """What a plan costs, and its simulated outputs: compiled, tried, and thrown away."""
    from secure_infer.backends.tfhe.simulate import Simulation

    output, circuit, settings = _build(graph, calibration, planned, options)
    program = assemble(graph, planned, output, options, circuit, settings, {})
    return program.parameters["cpu_seconds_estimate"], Simulation(program)(x)


def _build(graph: Graph, calibration: Integers, planned: Plan, options: Options) -> tuple[Output, Any, dict[str, Any]]:
    """How the result is encoded, the circuit, and its settings."""
    output = _output(graph, planned, calibration, options)
    return output, *_compiled(planned, output, options, calibration[0] - graph.input.low)


def _restrictions(planned: Plan) -> Iterable[Restriction]:
    """What to choose parameters from. An entry of a rounded table needs two coefficients, or simulation aborts."""
    plans = [step.plan for step in planned.steps]
    bits = [plan.bits - plan.removed for plan in plans if isinstance(plan, LookUp) and plan.approximate]
    if not bits:
        return RESTRICTIONS
    allowed = [
        (dims, [size for size in sizes if size > max(bits)], levels) for dims, sizes, levels in ROUNDED_RESTRICTIONS
    ]
    return [choice for choice in allowed if choice[1]]


def _compiled(planned: Plan, output: Output, options: Options, sample: Integers) -> tuple[Any, dict[str, Any]]:
    """The circuit and its settings under the restriction that suits it best."""
    from secure_infer.backends.tfhe.circuit import emit, trace
    from secure_infer.backends.tfhe.roles import configuration, require_keys, specs_of

    wanted = None if options.keys_of is None else specs_of(options.keys_of)
    found: list[tuple[Any, dict[str, Any]]] = []
    failure = ParametersError("No secure parameters were tried.")
    for dimensions, log_sizes, levels in _restrictions(planned) if wanted is None else [([], [], [])]:
        settings: dict[str, Any] = {
            "p_error": options.p_error,
            "security": options.security,
            "dimensions": dimensions,
            "log_sizes": log_sizes,
            "levels": levels,
            "shared": wanted is not None,
        }
        try:
            circuit = trace(emit(planned, output.center, output.bits), sample, configuration(**settings, specs=wanted))
            found.append((circuit, settings))
        except ParametersError as error:
            failure = error
    if not found:
        raise failure
    if wanted is not None:
        require_keys(found[0][0], wanted)
    return min(found, key=lambda candidate: look_up_seconds(candidate[0].server))
