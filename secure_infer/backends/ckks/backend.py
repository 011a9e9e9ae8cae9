"""The backend `ckks`: compiles a graph to a plan, and bounds its error on the clear engine."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from secure_infer.backends.base import Guarantee, Program, Values, require_supported
from secure_infer.backends.ckks import run, server, store
from secure_infer.backends.ckks.arrange import INPUT_PLANS
from secure_infer.backends.ckks.batch import quiet_slots
from secure_infer.backends.ckks.clear import Cipher, ClearEngine, digit_power
from secure_infer.backends.ckks.client import CkksClient
from secure_infer.backends.ckks.half import ClientHalf
from secure_infer.backends.ckks.lower import Indices, Reals, lower
from secure_infer.backends.ckks.normalize import Normalized, normalize
from secure_infer.backends.ckks.packing import Layout, spread
from secure_infer.backends.ckks.parameters import HEADROOM_BITS, Parameters, choose, verify
from secure_infer.backends.ckks.plan import Plan, levels, make_plan
from secure_infer.backends.ckks.primitives import Stopwatch, measured
from secure_infer.backends.ckks.server import CkksServer
from secure_infer.errors import BundleError, InvalidInput, Problem, UsageError
from secure_infer.graph import INPUT, Graph
from secure_infer.graph.types import Integers
from secure_infer.wire import frame

DEVIATIONS = 8.0
"""The error bound is this many standard deviations of the worst output's predicted noise."""
UPLOADS = ("seeded", "expanded")
_CALIBRATION = 512
_SLOTS_AT_ONCE = 1 << 17
_SAMPLED = 64
_LEAKS = (
    "to the server: sizes, times and the number of inputs",
    "to the client: outputs, and parts of their sums in other slots; depth; from rotation keys, kernels and strides",
)
_TRUST = (
    "the server follows the protocol: nothing proves that a reply is right",
    "decrypted values are not handed back to the server: CKKS is not secure against a decryption oracle (IND-CPA-D)",
)


class CkksBackend:
    """The backend `ckks`."""

    name = "ckks"
    ops = frozenset({"Linear", "Conv2d", "Add", "Sum", "Reshape", "Polynomial"})
    exact = False
    parties = 1
    options: Mapping[str, str] = {
        "poly_modulus_degree": "ring dimension: 4096, 8192, 16384 or 32768; chosen by depth if left out",
        "scale_bits": "bits of a value's scale, and of each level; as many as fit, up to 31, if left out",
        "security": "bits of security: 128 (default), 192 or 256",
        "input_plan": "what the client sends: auto (default: fastest for the server), raw, im2col, copies or batch",
        "upload": "seeded (default: half the bytes) or expanded (the server reads it faster)",
        "measure_costs": "true to plan by times measured on this machine, not by SEAL's usual ones; false by default",
        "rounding_bits": "bits above the noise to which decrypted values are rounded: 2 by default, 0 for no rounding",
        "flooding_bits": "bits above the noise up to which decrypted values are made noisy by the client: 0 by default",
    }

    def compile(self, graph: Graph, calibration: Integers, options: Mapping[str, Any]) -> Program:
        """Plan, choose parameters, and predict the noise of the calibration inputs."""
        require_supported(self, graph)
        rounding, flooding_bits, input_plan, expanded = self._chosen(options)
        x = _sample(graph, calibration)
        network = normalize(lower(graph), graph.input, x)
        runs = levels(network)
        squares = all(unit.coefficients is None for unit in network.units if unit.name in runs)
        parameters = choose(runs[INPUT], squares, options, _savings(network, runs))
        seconds = measured(parameters, expanded) if options.get("measure_costs") else None
        plan, layout = make_plan(network, parameters, input_plan, seconds)
        counts, variance = _predict(plan, network.scale_input(x))
        positions, noise = _quietest_copy(plan, layout, variance)
        # Powers of two, as the client learns them, and they depend on weights.
        scale = 2.0 ** np.ceil(np.log2(noise))
        flooding = float(scale * 2**flooding_bits) if flooding_bits else 0.0
        grid = float(scale * 2**rounding) if rounding else 0.0
        body = store.plan_to_bytes(plan)
        model = hashlib.sha256(b"".join(body)).hexdigest()
        last = plan.steps[-1].result
        half = ClientHalf(
            model,
            parameters,
            tuple(sorted(plan.rotations())),
            plan.multiplies,
            graph.input.shape,
            graph.input.low,
            graph.input.high,
            network.middle,
            network.half,
            plan.input,
            plan.columns,
            graph.output_type.shape,
            last,
            positions,
            network.output_range,
            grid,
            plan.batch,
            flooding,
            expanded,
        )
        unit = network.output_range * max(abs(s) for s in graph.output_type.scale)
        guarantee = _guarantee(parameters, (DEVIATIONS * noise + flooding + grid / 2) * unit)
        return Program(
            (frame.pack(server.KIND, body, {"model": model}),),
            half.to_bytes(),
            guarantee,
            _described(plan, half, noise),
            counts,
        )

    def client(self, half: bytes) -> CkksClient:
        """The client role."""
        return CkksClient(ClientHalf.from_bytes(half))

    def servers(self, halves: Sequence[bytes]) -> Sequence[CkksServer]:
        """The one server."""
        return [CkksServer(*_plan(half)) for half in halves]

    def simulate(self, graph: Graph, program: Program, x: Integers, seed: int) -> Values:
        """Run the same plan on vectors with drawn noise, operation by operation."""
        plan, _ = _plan(program.servers[0])
        half = ClientHalf.from_bytes(program.client)
        slots = quiet_slots(plan.parameters.poly_modulus_degree) if plan.batch else None
        engine = ClearEngine(plan.parameters, np.random.default_rng(seed), slots)
        compiled = run.Program(engine, plan)
        values = (np.reshape(x, (len(x), int(np.prod(half.shape)))).astype(np.float64) - half.middle) / half.half
        at_once = engine.slots if plan.batch else max(1, _SLOTS_AT_ONCE // engine.slots)
        parts = [
            _outputs(_run_clear(engine, compiled, plan, values[i : i + at_once]), plan, half.positions)
            for i in range(0, len(x), at_once)
        ]
        result = np.concatenate([np.zeros((0, len(half.positions))), *parts])[: len(x)]
        result = result + half.flooding * np.random.default_rng(seed).uniform(-1, 1, result.shape)
        result = np.rint(result / half.grid) * half.grid if half.grid else result
        return np.asarray(result * half.output_range).reshape((-1, *half.output_shape))

    def primitives(self, program: Program) -> Mapping[str, float]:
        """Seconds of CPU for one of each operation in `program.counts`, at its level."""
        half = ClientHalf.from_bytes(program.client)
        stopwatch = Stopwatch(half.parameters, half.multiplies, half.expanded)
        return {name: stopwatch.seconds(name) for name in program.counts}

    def _chosen(self, options: Mapping[str, Any]) -> tuple[int, int, str, bool]:
        """Rounding bits, flooding bits, input plan, and whether ciphertexts are sent whole."""
        problems = [
            Problem(name, "ckks has no such option.", f"use one of {', '.join(self.options)}.")
            for name in options
            if name not in self.options
        ]
        bits = {"rounding_bits": options.get("rounding_bits", 2), "flooding_bits": options.get("flooding_bits", 0)}
        problems += [
            Problem(name, f"Expected 0 to 20, got {value!r}.", "leave it out for the default.")
            for name, value in bits.items()
            if type(value) is not int or not 0 <= value <= 20
        ]
        if type(options.get("measure_costs", False)) is not bool:
            problems.append(Problem("measure_costs", "Expected true or false.", "leave it out for false."))
        input_plan = options.get("input_plan", "auto")
        if input_plan not in INPUT_PLANS:
            expected = f"Expected one of {', '.join(INPUT_PLANS)}, got {input_plan!r}."
            problems.append(Problem("input_plan", expected, "leave it out to have it chosen."))
        upload = options.get("upload", UPLOADS[0])
        if upload not in UPLOADS:
            expected = f"Expected one of {', '.join(UPLOADS)}, got {upload!r}."
            problems.append(Problem("upload", expected, "leave it out for half the bytes."))
        if problems:
            raise UsageError("These options do not fit CKKS.", problems)
        return bits["rounding_bits"], bits["flooding_bits"], str(input_plan), upload == UPLOADS[1]


def _guarantee(parameters: Parameters, error: float) -> Guarantee:
    return Guarantee(
        "CKKS (Microsoft SEAL, by TenSEAL)",
        parameters.security,
        None,
        float(error),
        "a server that follows the protocol and looks at everything it sees",
        _LEAKS,
        _TRUST,
    )


def _sample(graph: Graph, calibration: Integers) -> Reals:
    """At most a few hundred of the calibration inputs, evenly spread, as float64."""
    x = np.asarray(calibration)
    if x.shape[1:] != graph.input.shape or not len(x):
        raise InvalidInput(
            "The calibration inputs can't be used.",
            [
                Problem(
                    "calibration",
                    f"Expected shape (n > 0, {', '.join(map(str, graph.input.shape))}), got {x.shape}.",
                    "pass a batch of typical inputs.",
                )
            ],
        )
    return x[:: -(-len(x) // _CALIBRATION)].astype(np.float64)


def _plan(half: bytes) -> tuple[Plan, str]:
    opened = frame.unpack(half, server.KIND)
    if len(opened.parts) != 2:
        raise BundleError(
            "The server half is malformed.",
            [Problem(server.KIND, f"Expected 2 parts, got {len(opened.parts)}.", "compile the model again.")],
        )
    plan = store.plan_from_bytes(*opened.parts)
    verify(plan.parameters)
    return plan, str(opened.meta.get("model"))


def _predict(plan: Plan, values: Reals) -> tuple[dict[str, int], Reals]:
    """Operations of one inference, and the variance of each result slot, shape `(blocks, slots)`."""
    slots = quiet_slots(plan.parameters.poly_modulus_degree) if plan.batch else None
    # In a batch all quiet slots do the same: a few stand for all, the one that is least quiet among them.
    engine = ClearEngine(plan.parameters, slots=slots if slots is None else _loudest(plan.parameters, slots))
    compiled = run.Program(engine, plan)
    n = engine.slots if plan.batch else max(1, _SLOTS_AT_ONCE // engine.slots)
    outputs = _run_clear(engine, compiled, plan, values[:: -(-len(values) // n)])
    counts = {f"inputs@{plan.input.level}": plan.input.blocks, **engine.counts}
    return dict(sorted(counts.items())), np.stack([c.variance for c in outputs])


def _loudest(parameters: Parameters, slots: Indices) -> Indices:
    return np.asarray(slots[np.argsort(-digit_power(parameters.poly_modulus_degree)[slots])[:_SAMPLED]])


def _quietest_copy(plan: Plan, layout: Layout, variance: Reals) -> tuple[tuple[int, ...], float]:
    """Where the client reads the outputs, and their greatest standard deviation.

    A result repeats with its period, but a few slots are noisier than others, so one copy is better than the rest. It
    is chosen by the noise of the last sums alone, lest the choice tell of weights.
    """
    slots = plan.parameters.slots
    if plan.batch:
        return tuple(int(p) * slots for p in layout.positions), float(np.sqrt(variance.max()))
    digits = digit_power(plan.parameters.poly_modulus_degree)
    first = noise = digits
    for steps, doubles in plan.steps[-1].diagonals.sums.chain():
        noise = noise + np.roll(noise if doubles else first, -steps) + digits
    block, slot = np.divmod(layout.positions, layout.period)
    extent = layout.extent or slots
    starts = [k for k in range(0, extent, layout.period) if k + slot.max() < extent]
    best = min(starts, key=lambda start: float(noise[slot + start].max()))
    positions = block * slots + slot + best
    return tuple(int(p) for p in positions), float(np.sqrt(variance.reshape(-1)[positions].max()))


def _run_clear(engine: ClearEngine, compiled: run.Program[Any, Any], plan: Plan, values: Reals) -> list[Cipher]:
    """The result's blocks for normalized inputs `(n, inputs)`; the samples of a batch lie in the slots."""
    source = plan.input
    known = np.pad(values, ((0, 0), (0, 1)))
    if plan.batch:
        wide = values[np.minimum(np.arange(engine.slots), len(values) - 1)]
        inputs = (column[None] for column in wide.T)
    else:
        inputs = (spread(known[:, column], plan.parameters.slots, 0) for column in plan.columns.T)
    return compiled.run([engine.encrypt(block, source.level, source.scale) for block in inputs])


def _outputs(blocks: Sequence[Cipher], plan: Plan, positions: Sequence[int]) -> Reals:
    """The results in the clear, shape `(n, outputs)`."""
    if plan.batch:
        return np.concatenate([c.values for c in blocks]).T
    return np.concatenate([c.values for c in blocks], axis=1)[:, list(positions)]


def _savings(network: Normalized, runs: Mapping[str, int]) -> list[Problem]:
    """Where levels go, the most expensive first."""
    used = sorted((unit for unit in network.units if unit.name in runs), key=lambda unit: -unit.levels)
    return [
        Problem(
            unit.name,
            f"Degree {unit.degree} spends {unit.levels} of the levels, the layers before it one.",
            f"degree {max(2, 2 ** (unit.levels - 1) - 1)} would save one."
            if unit.levels > 1
            else "without this activation there would be two fewer.",
        )
        for unit in used
    ]


def _described(plan: Plan, half: ClientHalf, noise: float) -> dict[str, Any]:
    parameters = plan.parameters
    return {
        "poly_modulus_degree": parameters.poly_modulus_degree,
        "modulus_bits": [prime.bit_length() for prime in (*parameters.primes, parameters.special)],
        "total_bits": parameters.total_bits,
        "scale_bits": parameters.scale_bits,
        "security": parameters.security,
        "depth": parameters.depth,
        "rotation_keys": len(half.rotations),
        "input_plan": plan.input_plan,
        "samples_per_ciphertext": len(quiet_slots(parameters.poly_modulus_degree)) if plan.batch else 1,
        "input_ciphertexts": plan.input.blocks,
        "upload": UPLOADS[half.expanded],
        "output_ciphertexts": half.output.blocks,
        "noise": noise,
        "rounded_to": half.grid,
        "flooded_to": half.flooding,
        "headroom_bits": HEADROOM_BITS,
    }
