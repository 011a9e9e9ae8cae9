"""A compiled circuit as a program: both halves, what it guarantees, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from secure_infer.backends.base import Guarantee, Program
from secure_infer.backends.tfhe.cost import look_up_seconds
from secure_infer.backends.tfhe.lookup import Bootstraps, Ladder, LookUp, Split
from secure_infer.backends.tfhe.options import Options
from secure_infer.backends.tfhe.plan import Plan, Step
from secure_infer.backends.tfhe.ranges import ROUNDED_SIGMAS, SIGMAS
from secure_infer.backends.tfhe.security import require_secure
from secure_infer.graph.graph import Graph
from secure_infer.graph.types import Integers
from secure_infer.wire import frame


@dataclass(frozen=True)
class Output:
    """How the result is encoded.

    Attributes:
        bits: Signed bits.
        center: Integers subtracted from it, shape of one output.
        safe: Whether no input can overflow it.
    """

    bits: int
    center: Integers
    safe: bool


def assemble(
    graph: Graph,
    plan: Plan,
    output: Output,
    options: Options,
    circuit: Any,
    settings: dict[str, Any],
    found: Mapping[str, Any],
) -> Program:
    """The program of a compiled circuit.

    Args:
        graph: The network.
        plan: How it is computed.
        output: How the result is encoded.
        options: What was chosen.
        circuit: The compiled circuit.
        settings: What the compiler was told.
        found: More parameters for reports: notes on the calibration set, plans that were looked at.

    Raises:
        ParametersError: Its keys or ciphertexts are less secure than asked for.
    """
    from concrete import fhe

    from secure_infer.backends.tfhe.keys import key_set
    from secure_infer.backends.tfhe.roles import CLIENT, SERVER, description, discard_files

    specs = description(circuit.client.specs)
    security = require_secure(specs, options.security)
    held = plan.result
    meta = {
        "key_set": key_set(specs),
        "input": {"shape": graph.input.shape, "low": graph.input.low, "high": graph.input.high},
        "output": {
            "shape": held.shape,
            "gain": held.gain,
            "parts": held.parts,
            "center": output.center.ravel().tolist(),
            "rest": (held.offset % held.gain).ravel().tolist(),
        },
    }
    server = frame.pack(SERVER, [circuit.mlir.encode(), specs], {"settings": settings, "version": fhe.__version__})
    look_ups = int(circuit.programmable_bootstrap_count)
    program = Program(
        (server,),
        frame.pack(CLIENT, [specs], meta),
        _guarantee(plan, output, options, look_ups),
        _parameters(plan, output, options, circuit, security) | dict(found),
        {"look_ups": look_ups},
    )
    discard_files(circuit.server)
    return program


def scheme() -> str:
    """The cryptosystem and the version of its library."""
    from concrete import fhe

    return f"TFHE (concrete-python {fhe.__version__})"


def _guarantee(plan: Plan, output: Output, options: Options, look_ups: int) -> Guarantee:
    flips = any(layer["approximate"] for layer in _layers(plan).values())
    trust = []
    sigmas = ROUNDED_SIGMAS if flips else SIGMAS
    if not output.safe or any(step.plan is not None and step.name not in plan.worst_case for step in plan.steps):
        trust.append(
            "Inputs must resemble the calibration set: an accumulator outside its calibrated range (what was "
            f"seen, or {sigmas:g} standard deviations) gives a wrong result without notice."
        )
    if flips:
        trust.append(
            "Rounding is approximate: thresholds move to the nearest step of a table, and values near them may fall "
            "on the other side. That is noise of the cryptosystem, not bounded by p_error; mode='simulate' draws it."
        )
    trust.append(
        "A decrypted result is not passed on to the server: with errors that depend on the key, results "
        "would help to find it (IND-CPA, not IND-CPA-D)."
    )
    return Guarantee(
        scheme=scheme(),
        security_bits=options.security,
        failure_probability=None if flips else min(1.0, look_ups * (options.p_error or 0.0)),
        error_bound=None,
        adversary="a server that follows the protocol but is curious; it may also lie about the result, unnoticed",
        leaks=(
            "to the server: the number and time of requests; nothing of the input or the output",
            "to the client: outputs in full precision, and the shapes and bit widths of input and output",
        ),
        trust=tuple(trust),
    )


def _parameters(
    plan: Plan, output: Output, options: Options, circuit: Any, security: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "security": options.security,
        "security_check": security,
        "p_error": options.p_error,
        "rounding": options.rounding,
        "output_bits": output.bits,
        "layers": _layers(plan),
        **costs(circuit.server),
    }


def costs(server: Any) -> dict[str, Any]:
    """What the parameters of a circuit are, and what they cost."""
    (name,) = server.program_info.function_list()
    sets = [
        {
            "polynomial_size": p.polynomial_size(),
            "glwe_dimension": p.glwe_dimension(),
            "lwe_dimension": p.input_lwe_dimension(),
            "look_ups": count,
        }
        for p, count in server.programmable_bootstrap_count_per_parameter(name).items()
    ]
    return {
        "cpu_seconds_estimate": look_up_seconds(server),
        "parameter_sets": sets,
        "complexity": float(server.complexity),
        "bytes": {
            "bootstrapping_keys": int(server.size_of_bootstrap_keys),
            "keyswitching_keys": int(server.size_of_keyswitch_keys),
        },
    }


def _layers(plan: Plan) -> dict[str, dict[str, Any]]:
    return {step.name: _layer(plan, step, step.plan) for step in plan.steps if step.plan is not None}


def _layer(plan: Plan, step: Step, look_up: Bootstraps) -> dict[str, Any]:
    whole, method = look_up, "table"
    if isinstance(look_up, Split):
        whole, method = look_up.base, "split"
    elif isinstance(look_up, Ladder):
        whole, method = max(look_up.rungs, key=lambda rung: rung.bits), "ladder"
    assert isinstance(whole, LookUp)
    if method == "table" and (whole.removed or whole.approximate):
        method = "approximate" if whole.approximate else "truncate"
    return {
        "bits": whole.bits,
        "removed": whole.removed,
        "method": method,
        "approximate": whole.approximate,
        "elements": int(np.prod(step.held.shape)),
        "any_input": step.name in plan.worst_case,
    }
