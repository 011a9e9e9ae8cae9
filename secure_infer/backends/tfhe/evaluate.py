"""A plan on plain integers, with thresholds where the plan puts them and, if asked for, Gaussian noise in look-ups."""

from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist

import numpy as np

from secure_infer.backends.tfhe.lookup import Bootstraps, Ladder, LookUp, Split
from secure_infer.backends.tfhe.plan import Plan, Step
from secure_infer.graph.graph import INPUT
from secure_infer.graph.interpret import apply
from secure_infer.graph.ops import Conv2d, Linear, Max
from secure_infer.graph.types import Integers


def evaluate(plan: Plan, x: Integers, p_error: float | None = None, seed: int = 0) -> Integers:
    """Outputs of a planned network.

    Args:
        plan: The plan.
        x: Inputs of the graph, shape `(n, *input shape)`.
        p_error: Failure probability that parameters are chosen for: each look-up's noise passes half of a step of its
            table, `2**-(keep + 2)` of the torus, with this probability. None for no noise.
        seed: Of the noise.

    Returns:
        Integers, shape `(n, *output shape)`.
    """
    rng = np.random.default_rng(seed)
    noise = 0.0 if p_error is None else 1.0 / NormalDist().inv_cdf(1 - p_error / 2)
    values = {INPUT: (x - plan.input.offset) // plan.input.gain}
    for step in plan.steps:
        values[step.name] = _step(step, [values[name] for name in step.inputs], noise, rng)
    held, t = plan.result, values[plan.output]
    return np.asarray((held.gain * t + held.offset) // held.parts)


def _step(step: Step, inputs: list[Integers], noise: float, rng: np.random.Generator) -> Integers:
    if step.plan is None:
        op = step.op
        if isinstance(op, Linear | Conv2d):
            op = replace(op, bias=np.zeros_like(op.bias))
        return apply(op, *inputs, use_float=True)  # exact: what a ciphertext can hold is far below 2**53
    if isinstance(step.op, Max):
        scale, add = step.before
        return apply(step.op, scale * inputs[0] + add)
    return look_up(step.plan, inputs[0], noise, rng)


def look_up(plan: Bootstraps, t: Integers, noise: float = 0.0, rng: np.random.Generator | None = None) -> Integers:
    """What a planned look-up makes of t, shape `(n, *shape)`, with noise in halves of a step of its table."""
    if isinstance(plan, Ladder):
        return np.asarray(sum(look_up(rung, t, noise, rng) for rung in plan.rungs))
    if isinstance(plan, Split):
        within = look_up(plan.within, t)
        return look_up(plan.base, t) + ((t - plan.base.shift) % (1 << plan.base.removed) >= within)
    a = (t if plan.factor is None else plan.factor * t) - plan.shift
    if plan.approximate and noise and rng is not None:
        a = np.floor(a + rng.normal(0.0, noise * (1 << plan.removed) / 2, a.shape)).astype(np.int64)
    return _entry(plan, a)


def _entry(plan: LookUp, a: Integers) -> Integers:
    """The table's entry for a; beyond the message, that is in the padding bit, the negated one."""
    size = 1 << plan.bits
    block = (a + size // 2) % (2 * size)
    value = plan.tables[plan.index, (block % size) >> plan.removed]
    return np.asarray(np.where(block < size, value, -value))
