"""A plan and parameters as JSON and safetensors; reading back refuses anything but exactly those."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from secure_infer.backends.ckks.packing import Split, Term
from secure_infer.backends.ckks.parameters import Parameters
from secure_infer.backends.ckks.plan import Plan, Step, Vector, make_step
from secure_infer.errors import BundleError, Problem

SCHEMA = 1
_MALFORMED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, SafetensorError)


def plan_to_bytes(plan: Plan) -> tuple[bytes, bytes]:
    """The plan as JSON (structure) and safetensors (weights in position order)."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    steps = []
    for i, step in enumerate(plan.steps):
        arrays[f"{i}.bias"] = np.ascontiguousarray(step.bias)
        if step.coefficients is not None:
            arrays[f"{i}.coefficients"] = np.ascontiguousarray(step.coefficients)
        for j, term in enumerate(step.terms):
            arrays[f"{i}.{j}.rows"] = term.rows.astype(np.int32)
            arrays[f"{i}.{j}.cols"] = term.cols.astype(np.int32)
            arrays[f"{i}.{j}.values"] = np.ascontiguousarray(term.values)
        steps.append(
            {
                "name": step.name,
                "level": step.level,
                "power": step.power,
                "split": asdict(step.diagonals.split),
                "square": step.coefficients is None,
                "sources": [[term.source, term.period] for term in step.terms],
            }
        )
    head = {"schema": SCHEMA, "parameters": asdict(plan.parameters), "input": asdict(plan.input), "steps": steps}
    return json.dumps(head).encode(), save(arrays)


def plan_from_bytes(head: bytes, weights: bytes) -> Plan:
    """The plan that `plan_to_bytes` wrote.

    Raises:
        BundleError: Not a plan, one of a newer schema, or one with further contents.
    """
    try:
        data, arrays = json.loads(head), load(weights)
        if data["schema"] > SCHEMA:
            raise BundleError(
                "The CKKS program was written by a newer version.",
                [
                    Problem(
                        "ckks-server",
                        f"Its schema is {data['schema']}; this version reads up to {SCHEMA}.",
                        "upgrade secure_infer.",
                    )
                ],
            )
        parameters = parameters_from(data["parameters"])
        steps = tuple(_step(i, step, arrays, parameters) for i, step in enumerate(data["steps"]))
        plan = Plan(parameters, Vector(**data["input"]), steps)
    except _MALFORMED as error:
        raise BundleError(
            "The CKKS program can't be read.",
            [Problem("ckks-server", f"{type(error).__name__}: {error}.", "compile the model again.")],
        ) from error
    if arrays:
        raise BundleError(
            "The CKKS program holds more than a program.",
            [Problem("ckks-server", f"Unexpected contents {sorted(arrays)}.", "compile the model again.")],
        )
    return plan


def parameters_from(data: Mapping[str, Any]) -> Parameters:
    """Parameters from their JSON form; ValueError if they are no positive integers."""
    numbers = {name: value for name, value in data.items() if name != "primes"}
    if not all(type(number) is int and 0 < number < 1 << 62 for number in (*numbers.values(), *data["primes"])):
        raise ValueError("parameters out of range")
    return Parameters(**numbers, primes=tuple(data["primes"]))


def _step(i: int, data: Mapping[str, Any], arrays: dict[str, npt.NDArray[Any]], parameters: Parameters) -> Step:
    if not all(type(period) is int and 0 < period <= parameters.slots for _, period in data["sources"]):
        raise ValueError("periods out of range")
    terms = tuple(
        Term(
            source,
            period,
            arrays.pop(f"{i}.{j}.rows").astype(np.int64),
            arrays.pop(f"{i}.{j}.cols").astype(np.int64),
            arrays.pop(f"{i}.{j}.values"),
        )
        for j, (source, period) in enumerate(data["sources"])
    )
    coefficients = None if data["square"] else arrays.pop(f"{i}.coefficients")
    return make_step(
        data["name"],
        terms,
        arrays.pop(f"{i}.bias"),
        data["level"],
        data["power"],
        coefficients,
        parameters,
        Split(**data["split"]),
    )
