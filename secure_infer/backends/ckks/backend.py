"""The backend `ckks`: compiles a graph to a plan, and bounds its error on the clear engine."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from secure_infer.backends.base import Guarantee, Program, Values, require_supported
from secure_infer.backends.ckks import run, server, store
from secure_infer.backends.ckks.clear import Cipher, ClearEngine
from secure_infer.backends.ckks.client import CkksClient
from secure_infer.backends.ckks.half import ClientHalf
from secure_infer.backends.ckks.lower import Reals, lower
from secure_infer.backends.ckks.normalize import Normalized, normalize
from secure_infer.backends.ckks.packing import Layout, packed
from secure_infer.backends.ckks.parameters import HEADROOM_BITS, choose
from secure_infer.backends.ckks.plan import Plan, levels, make_plan
from secure_infer.backends.ckks.primitives import Stopwatch
from secure_infer.backends.ckks.server import CkksServer
from secure_infer.errors import BundleError, InvalidInput, Problem, UsageError
from secure_infer.graph import INPUT, Graph
from secure_infer.graph.types import Integers
from secure_infer.wire import frame

DEVIATIONS = 8.0
"""The error bound is this many standard deviations of the worst output's predicted noise."""
_CALIBRATION = 512
_SLOTS_AT_ONCE = 1 << 18
_LEAKS = (
    "to the server: sizes, times and the number of inputs",
    "to the client: outputs and depth; from the rotation keys also kernel sizes and strides of layers, but no weights",
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
        "rounding_bits": "bits above the noise to which decrypted values are rounded: 2 by default, 0 for no rounding",
    }

    def compile(self, graph: Graph, calibration: Integers, options: Mapping[str, Any]) -> Program:
        """Plan, choose parameters, and predict the noise of the calibration inputs."""
        require_supported(self, graph)
        rounding = self._rounding(options)
        x = _sample(graph, calibration)
        network = normalize(lower(graph), graph.input, x)
        runs = levels(network)
        squares = all(unit.coefficients is None for unit in network.units if unit.name in runs)
        parameters = choose(runs[INPUT], squares, options, _savings(network, runs))
        plan, layout = make_plan(network, parameters)
        counts, variance = _predict(plan, network.scale_input(x))
        positions, noise = _quietest_copy(plan, layout, variance)
        grid = 2.0 ** np.ceil(np.log2(noise * 2**rounding)) if rounding else 0.0
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
            graph.output_type.shape,
            last,
            positions,
            network.output_range,
            float(grid),
        )
        error = (DEVIATIONS * noise + grid / 2) * network.output_range * max(abs(s) for s in graph.output_type.scale)
        guarantee = Guarantee(
            "CKKS (Microsoft SEAL, by TenSEAL)",
            parameters.security,
            None,
            float(error),
            "a server that follows the protocol and looks at everything it sees",
            _LEAKS,
            _TRUST,
        )
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
        engine = ClearEngine(plan.parameters, np.random.default_rng(seed))
        compiled = run.Program(engine, plan)
        at_once = max(1, _SLOTS_AT_ONCE // plan.parameters.slots)
        values = (np.reshape(x, (len(x), int(np.prod(half.shape)))).astype(np.float64) - half.middle) / half.half
        parts = [
            np.concatenate([c.values for c in _run_clear(engine, compiled, plan, values[i : i + at_once])], axis=1)
            for i in range(0, len(x), at_once)
        ]
        slots = np.concatenate(parts) if parts else np.zeros((0, half.output.blocks * half.parameters.slots))
        result = slots[:, list(half.positions)]
        result = np.rint(result / half.grid) * half.grid if half.grid else result
        return np.asarray(result * half.output_range).reshape((-1, *half.output_shape))

    def primitives(self, program: Program) -> Mapping[str, float]:
        """Seconds of CPU for one of each operation in `program.counts`, at its level."""
        stopwatch = Stopwatch(ClientHalf.from_bytes(program.client))
        return {name: stopwatch.seconds(name) for name in program.counts}

    def _rounding(self, options: Mapping[str, Any]) -> int:
        problems = [
            Problem(name, "ckks has no such option.", f"use one of {', '.join(self.options)}.")
            for name in options
            if name not in self.options
        ]
        rounding = options.get("rounding_bits", 2)
        if isinstance(rounding, bool) or not isinstance(rounding, int) or not 0 <= rounding <= 20:
            problems.append(Problem("rounding_bits", f"Expected 0 to 20, got {rounding!r}.", "leave it out for 2."))
        if problems:
            raise UsageError("These options do not fit CKKS.", problems)
        return int(rounding)


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
    return store.plan_from_bytes(*opened.parts), str(opened.meta.get("model"))


def _predict(plan: Plan, values: Reals) -> tuple[dict[str, int], Reals]:
    """Operations of one inference, and the variance of each result slot, shape `(blocks, slots)`."""
    engine = ClearEngine(plan.parameters)
    compiled = run.Program(engine, plan)
    n = max(1, _SLOTS_AT_ONCE // plan.parameters.slots)
    outputs = _run_clear(engine, compiled, plan, values[:: -(-len(values) // n)])
    return dict(sorted(engine.counts.items())), np.stack([c.variance for c in outputs])


def _quietest_copy(plan: Plan, layout: Layout, variance: Reals) -> tuple[tuple[int, ...], float]:
    """Where the client reads the outputs, and their greatest standard deviation.

    A result repeats with its period, but a few slots are noisier than others, so one copy is better than the rest.
    """
    slots = plan.parameters.slots
    block, slot = np.divmod(layout.positions, layout.period)
    copies = [block * slots + slot + copy * layout.period for copy in range(slots // layout.period)]
    worst = [variance.reshape(-1)[copy].max() for copy in copies]
    best = int(np.argmin(worst))
    return tuple(int(p) for p in copies[best]), float(np.sqrt(worst[best]))


def _run_clear(engine: ClearEngine, compiled: run.Program[Any, Any], plan: Plan, values: Reals) -> list[Cipher]:
    """The result's blocks for normalized inputs `(n, inputs)`."""
    slots, source = plan.parameters.slots, plan.input
    blocks = packed(values.shape[1], slots).place(values)
    inputs = [np.tile(blocks[:, b], (1, slots // source.period)) for b in range(source.blocks)]
    return compiled.run([engine.encrypt(block, source.level, source.scale) for block in inputs])


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
        "input_ciphertexts": plan.input.blocks,
        "output_ciphertexts": half.output.blocks,
        "noise": noise,
        "rounded_to": half.grid,
        "headroom_bits": HEADROOM_BITS,
    }
