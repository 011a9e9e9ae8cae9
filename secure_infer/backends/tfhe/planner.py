"""Searches the cheapest plan whose answers stay within a tolerance of the exact network's, on the calibration inputs.

In a rounded network, failure probability and kept bits are two handles on one thing: the noise at a look-up's input,
which is `2**-(keep + 2) / z(p_error)` of the torus. More bits kept at a greater p_error cost the same and place the
thresholds more finely, so the search goes up in bits at the greatest p_error that the network bears.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from secure_infer.backends.tfhe.evaluate import evaluate
from secure_infer.backends.tfhe.lookup import Bootstraps, LookUp
from secure_infer.backends.tfhe.options import MIXED_P_ERROR, MOST_MIXED_P_ERROR, ROUNDED_P_ERROR, Options
from secure_infer.backends.tfhe.plan import Plan, plan
from secure_infer.errors import ParametersError, Problem, UsageError
from secure_infer.graph.graph import Graph
from secure_infer.graph.interpret import interpret
from secure_infer.graph.types import Integers

_LOG = logging.getLogger(__name__)
Measure: TypeAlias = Callable[[Plan, Options, Integers], tuple[float, Integers]]
"""Compiles a plan; its seconds of CPU for an inference, and its simulated outputs for some inputs."""
ROUNDED = ((6, 0.9), (7, 0.9), (8, 0.9), (9, 0.9), (10, 0.9))
"""Bits and failure probability, from coarse to fine, where every look-up rounds."""
MIXED = ((4, 2.0**-10), (5, 2.0**-10), (6, 2.0**-10), (7, 2.0**-10))
"""The same where some tables read every bit, and have to be right."""
SAMPLES = 512
"""Calibration inputs on which agreement is measured."""
_GAIN = 0.97


@dataclass(frozen=True)
class Trial:
    """One plan that was looked at.

    Attributes:
        keep_bits: Bits kept by each rounded layer.
        p_error: Failure probability that parameters were, or would be, chosen for.
        agreement: Share of calibration inputs with the exact network's class: of the compiled circuit, simulated; of
            one that was not compiled, by our own model of the noise of look-ups.
        seconds: Estimate of CPU time for an inference; None where it was not compiled.
    """

    keep_bits: Mapping[str, int]
    p_error: float
    agreement: float
    seconds: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return {**self.__dict__, "keep_bits": dict(self.keep_bits)}


def settled(planned: Plan, options: Options) -> float:
    """The failure probability of a look-up: what the user chose, else what suits the plan.

    Raises:
        UsageError: One that is too great for look-ups that do not round.
    """
    kinds = {step.name: _rounds(step.plan) for step in planned.steps if step.plan is not None}
    mixed = options.rounding == "approximate" and not all(kinds.values())
    if options.p_error is None:
        return MIXED_P_ERROR if mixed else ROUNDED_P_ERROR
    if options.p_error > MOST_MIXED_P_ERROR and not (kinds and all(kinds.values())):
        names = ", ".join(name for name, rounds in kinds.items() if not rounds) or "the output"
        raise UsageError(
            "p_error is too great for this network.",
            [Problem("p_error", f"{names}: read in full, wrong that often.", "choose 2**-7 or less.")],
        )
    return options.p_error


def _rounds(look_up: Bootstraps) -> bool:
    return isinstance(look_up, LookUp) and look_up.approximate


def search(graph: Graph, calibration: Integers, options: Options, measure: Measure) -> tuple[Options, list[Trial]]:
    """The options to compile with, and all plans that were looked at.

    Args:
        graph: The network.
        calibration: Integers, shape `(n, *input shape)`.
        options: What the user chose; `tolerance` is the share of inputs whose class may change.
        measure: Compiles a plan and tries it.
    """
    return _Search(graph, calibration, options, measure).run()


class _Search:
    """First one noise level for all layers, then each layer by itself."""

    def __init__(self, graph: Graph, calibration: Integers, options: Options, measure: Measure) -> None:
        self.graph, self.calibration, self.options, self.measure = graph, calibration, options, measure
        self.sample = calibration[:SAMPLES]
        self.classes = _classes(graph, interpret(graph, self.sample))
        self.trials: list[Trial] = []

    def run(self) -> tuple[Options, list[Trial]]:
        """Search."""
        exact = replace(self.options, rounding="exact")
        best = self._uniform()
        if best is None:
            _LOG.info("no rounded plan keeps %.1f %% of the classes: exact", 100 * (1 - self.options.tolerance))
            return exact, self.trials
        best = self._by_layer(best)
        return _rounding(self.options, best.keep_bits, best.p_error), self.trials

    def _uniform(self) -> Trial | None:
        rounding = replace(self.options, rounding="approximate", keep_bits=8)
        planned = plan(self.graph, self.calibration, rounding)
        kinds = {step.name: _rounds(step.plan) for step in planned.steps if step.plan is not None}
        layers = [name for name, rounds in kinds.items() if rounds]
        if not layers:
            return None
        for keep, p_error in ROUNDED if all(kinds.values()) else MIXED:
            trial = self._try(dict.fromkeys(layers, keep), p_error)
            if trial is not None:
                return trial
        return None

    def _by_layer(self, best: Trial) -> Trial:
        for layer in best.keep_bits:
            for change in (-1, None) if best.p_error in {p for _, p in MIXED} else (-1, -2):
                bits = dict(best.keep_bits)
                kept = bits.pop(layer)
                if change is not None:
                    bits[layer] = max(1, kept + change)
                trial = self._try(bits, best.p_error) if bits else None
                if trial is not None and trial.seconds < _GAIN * best.seconds:  # type: ignore[operator]
                    best = trial
        return best

    def _try(self, bits: dict[str, int], p_error: float) -> Trial | None:
        """The trial, compiled, if it is new and within the tolerance."""
        if any(trial.keep_bits == bits and trial.p_error == p_error for trial in self.trials):
            return None
        options = _rounding(self.options, bits, p_error)
        try:
            planned = plan(self.graph, self.calibration, options)
            trial = Trial(bits, p_error, self._agreement(evaluate(planned, self.sample, p_error)))
            if self._bears(trial):
                seconds, outputs = self.measure(planned, options, self.sample)
                trial = replace(trial, agreement=self._agreement(outputs), seconds=seconds)
        except ParametersError:
            return None
        self.trials.append(trial)
        spent = "not compiled" if trial.seconds is None else f"{trial.seconds:.2f} s of CPU"
        _LOG.info("keep %s at %.2g: agreement %.3f, %s", bits, p_error, trial.agreement, spent)
        return trial if trial.seconds is not None and self._bears(trial) else None

    def _agreement(self, outputs: Integers) -> float:
        return float((_classes(self.graph, outputs) == self.classes).mean())

    def _bears(self, trial: Trial) -> bool:
        return 1 - trial.agreement <= self.options.tolerance


def _rounding(options: Options, bits: Mapping[str, int], p_error: float) -> Options:
    return replace(options, rounding="approximate", keep_bits=dict(bits), p_error=p_error)


def _classes(graph: Graph, outputs: Integers) -> Integers:
    """The greatest output's index; of a single output, on which side of zero it lies."""
    flat = graph.dequantize(outputs).reshape(len(outputs), -1)
    return np.asarray(flat.argmax(axis=1) if flat.shape[1] > 1 else flat[:, 0] > 0)


def look_up_failure(failure: float, look_ups: int) -> float:
    """The failure probability of one of `look_ups` look-ups for which a whole inference fails with `failure`."""
    return -math.expm1(math.log1p(-failure) / max(1, look_ups))
