"""The rows of the matrix: each threat with what it is, and the function that measures it in one column."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from secure_infer.attacks.key_recovery import ToyCkks, curve
from secure_infer.bench.threats import ckks_range, evasion, extraction, view
from secure_infer.bench.threats.cells import Cell, Deployment, Settings, Threat
from secure_infer.targets import Subject

NAMES = (
    "evasion-white-box",
    "evasion-scores",
    "evasion-labels",
    "evasion-transfer",
    "extraction",
    "query-defense",
    "theft-defense",
    "input-view",
    "key-recovery",
    "overflow",
)
"""Every threat, in the order of the rows."""


@dataclass(frozen=True)
class Row:
    """One threat.

    Attributes:
        title: What it is called.
        about: Who attacks, with what, for what.
        measure: What measures it.
    """

    title: str
    about: str
    measure: Threat


def rows(surrogate: Subject) -> Mapping[str, Row]:
    """Every threat by name.

    Args:
        surrogate: The stand-in that transfer attacks use.
    """

    def transfer(deployment: Deployment, settings: Settings) -> Cell:
        if deployment.form == surrogate.form:
            return Cell(why_not="The stand-in is this very network: see stolen weights.")
        return evasion.transfer(deployment, settings, surrogate)

    return {
        "evasion-white-box": Row(
            "Evasion, weights stolen", "gradients of an own copy; one query delivers", evasion.white_box
        ),
        "evasion-scores": Row("Evasion by scores", "a client that sees scores (Square)", evasion.by_scores),
        "evasion-labels": Row("Evasion by labels", "a client that sees labels (SurFree)", evasion.by_labels),
        "evasion-transfer": Row("Evasion by transfer", f"gradients of {surrogate.name}; one query delivers", transfer),
        "extraction": Row(
            "Extraction", "a client that trains a substitute on the labels it is told", extraction.substitute
        ),
        "query-defense": Row(
            "Attack unnoticed by the server", "the server compares each query with earlier ones", view.query_defense
        ),
        "theft-defense": Row(
            "Theft unnoticed by the server", "the server tests a client's queries by PRADA", view.theft_defense
        ),
        "input-view": Row("Server tells inputs apart", "the server looks at messages and times", view.input_view),
        "key-recovery": Row("Key from shared decryptions", "the server is told what its client decrypts", key_recovery),
        "overflow": Row("Overflow", "a client sends what is far out of range", ckks_range.overflow),
    }


def key_recovery(deployment: Deployment, settings: Settings) -> Cell:
    """Solve for the secret key from what a client tells of its decryptions."""
    if not deployment.encrypted:
        return Cell(why_not="There is no key.")
    if deployment.protocol == "mpc":
        return Cell(why_not="There is no lasting key: every request is shared under fresh random numbers.")
    if deployment.protocol == "tfhe":
        return Cell(why_not="Decoding removes the noise; what failed look-ups tell of the key is not examined here.")
    from secure_infer.bench.threats.ckks_key import RELEASES, Request

    start, compiled = time.perf_counter(), deployment.weights.compiled("ckks")
    images = deployment.weights.images[: settings.keys].numpy()
    requests = [Request.make(compiled, images[i : i + 1]) for i in range(len(images))]
    found = {release: [request.leak(release) for request in requests] for release in RELEASES}
    lost = {release: sum(leak.key for leak in leaks) for release, leaks in found.items()}
    errors = [leak.input_error for leaks in found.values() for leak in leaks if leak.input_error is not None]
    toy = ToyCkks()
    bits = (-8, -6, -5, -4, -3, -2, -1, 0, 1, 2, 4)
    curves = [
        point.as_dict()
        for kind, releases in (("rounding", 1), ("flooding", 1), ("flooding", 64))
        for point in curve(toy, kind, bits, releases=releases, n=4 * settings.keys, seed=settings.seed)  # type: ignore[arg-type]
    ]
    return Cell(
        "keys found from what predict returns, and more: all slots on its grid",
        lost["rounded"],
        len(requests),
        access="the server's reply, and what the client tells",
        mode="executed",
        queries=1.0,
        per="client",
        seconds=time.perf_counter() - start,
        details={"keys_found": lost, "input_error_with_key": max(errors, default=None), "toy_curves": curves},
    )
