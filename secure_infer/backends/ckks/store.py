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

from secure_infer.backends.ckks.packing import Split, Sums, Term
from secure_infer.backends.ckks.parameters import Parameters
from secure_infer.backends.ckks.plan import Body, Plan, Step, Vector, make_step
from secure_infer.errors import BundleError, Problem

SCHEMA = 3
_MALFORMED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, SafetensorError)


def plan_to_bytes(plan: Plan) -> tuple[bytes, bytes]:
    """The plan as JSON (structure) and safetensors (weights in position order)."""
    arrays: dict[str, npt.NDArray[Any]] = {"columns": np.ascontiguousarray(plan.columns, dtype=np.int32)}
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
                "sums": asdict(step.diagonals.sums) if step.explicit else None,
                "turn": step.affine.turn,
            }
        )
    head = {
        "schema": SCHEMA,
        "parameters": asdict(plan.parameters),
        "input": asdict(plan.input),
        "input_plan": plan.input_plan,
        "steps": steps,
    }
    return json.dumps(head).encode(), save(arrays)


def plan_from_bytes(head: bytes, weights: bytes) -> Plan:
    """The plan that `plan_to_bytes` wrote.

    Raises:
        BundleError: Not a plan, one of a newer schema, or one with further contents.
    """
    try:
        data, arrays = json.loads(head), load(weights)
        require_schema("ckks-server", data["schema"])
        parameters = parameters_from(data["parameters"])
        steps = tuple(_step(i, step, arrays, parameters) for i, step in enumerate(data["steps"]))
        columns = arrays.pop("columns").astype(np.int64)
        plan = Plan(parameters, Vector(**data["input"]), columns, steps, str(data["input_plan"]))
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


def require_schema(kind: str, schema: Any) -> None:
    """Raise BundleError for a half of another schema than the one that is written now."""
    if schema != SCHEMA:
        fix = "compile the model again." if isinstance(schema, int) and schema < SCHEMA else "upgrade secure_infer."
        age = "an older" if fix.startswith("compile") else "a newer"
        problem = Problem(kind, f"Its schema is {schema!r}; this version reads {SCHEMA}.", fix)
        raise BundleError(f"The CKKS program was written by {age} version.", [problem])


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
        Body(terms, _sums(data["sums"], parameters.slots), data["turn"]),
        arrays.pop(f"{i}.bias"),
        data["level"],
        data["power"],
        coefficients,
        parameters,
        Split(**data["split"]),
    )


def _sums(data: Mapping[str, Any] | None, slots: int) -> Sums | None:
    if data is None:
        return None
    sums = Sums(**data)
    if not all(type(number) is int and 0 < number <= slots for number in (sums.stride, sums.count)):
        raise ValueError("sums out of range")
    return sums
