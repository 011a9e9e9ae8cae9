"""Evasion by access: stolen weights, scores, labels, or a stand-in; success is judged on the deployed model."""

from __future__ import annotations

import torch
from torch import Tensor

from secure_infer.attacks import Access, Attack, Goal, Target, attack
from secure_infer.attacks.evaluate import Outcome, evaluate
from secure_infer.bench.threats.cells import Cell, Deployment, Settings, median_of
from secure_infer.targets import Subject

_FOOLED = "images misclassified within the radius"


def white_box(deployment: Deployment, settings: Settings) -> Cell:
    """Disturb images on an own copy of the weights by their gradients, then send each to the deployed model once.

    Attacks take turns, each on the images that the earlier ones left standing: what rounds its values has gradients
    that lead one of them astray and not another.
    """
    images, labels = deployment.right(settings.n)
    copy = deployment.own_copy()
    least = evaluate(copy, attack("ddn")(), images, Goal(labels), settings.seed)
    within, by = _strongest(copy, images, labels, deployment.radius, least, settings.seed)
    details: dict[str, object] = {"attack": "pgd, then others on what is left", "fooled_copy": by, "norm": "l2"}
    details["least_by"] = "ddn"
    details |= {"radius": deployment.radius, "on": copy.name}
    details["median_least_l2"] = median_of(least.distortion.l2[~least.already])
    return _delivered(deployment, settings, images, within, labels, "WHITE_BOX", details)


def transfer(deployment: Deployment, settings: Settings, surrogate: Subject) -> Cell:
    """Disturb images on another network for the same task, then send each to the deployed model once."""
    images, labels = deployment.right(settings.n)
    stand_in = surrogate.target(surrogate.form)
    within = _pgd(stand_in, images, labels, deployment.radius, settings.seed)
    details = {"attack": "pgd", "norm": "l2", "radius": deployment.radius, "on": stand_in.name}
    return _delivered(deployment, settings, images, within, labels, "NONE (one query to deliver)", details)


def by_scores(deployment: Deployment, settings: Settings) -> Cell:
    """Square attack by the scores that the client decrypts."""
    chosen = attack("square")(norm="l2", radius=deployment.radius, queries=settings.queries)  # type: ignore[call-arg]
    return _asked(deployment, settings, chosen, Access.LOGITS)


def by_labels(deployment: Deployment, settings: Settings) -> Cell:
    """SurFree by the labels alone."""
    chosen = attack("surfree")(queries=settings.queries)  # type: ignore[call-arg]
    return _asked(deployment, settings, chosen, Access.LABEL)


def _asked(deployment: Deployment, settings: Settings, chosen: Attack, access: Access) -> Cell:
    """Run an attack that asks often; whoever runs it averages errors out, and uses all of the radius."""
    images, labels = deployment.right(settings.n_queries)
    target = deployment.deployed(access, settings.seed, deployment.repeats)
    outcome = evaluate(target, chosen, images, Goal(labels), settings.seed)
    far = _pushed(target, outcome, images, labels, deployment.radius)
    once = deployment.deployed(Access.LABEL, settings.seed + 1)
    within = torch.linalg.vector_norm((far - images).flatten(1), dim=1) <= deployment.radius * (1 + 1e-6)
    fooled = (once.query(far).labels != labels) & ~outcome.already & within
    summary = outcome.as_dict()
    details = {"attack": outcome.attack, "norm": "l2", "radius": deployment.radius, "settings": summary["settings"]}
    details |= {"median_l2": summary["median"]["l2"], "asked_each": deployment.repeats}
    return Cell(
        _FOOLED,
        int(fooled.sum()),
        outcome.attacked,
        access=access.name,
        mode=deployment.mode,
        queries=summary["queries_per_image"] * deployment.repeats,
        seconds=outcome.spent.seconds,
        details=details,
    )


def _pushed(target: Target, outcome: Outcome, images: Tensor, labels: Tensor, radius: float) -> Tensor:
    """Images moved on from the boundary out to the radius where that still fools, so that errors do not undo it."""
    delta = outcome.images - images
    length = torch.linalg.vector_norm(delta.flatten(1), dim=1).clamp_min(1e-9).view(-1, *(1,) * (images.ndim - 1))
    far = target.bounds.clamp(images + delta * (radius / length).clamp_min(1))
    fools = target.query(far).labels != labels
    return torch.where(fools.view_as(length), far, outcome.images)


def _pgd(target: Target, images: Tensor, labels: Tensor, radius: float, seed: int) -> Tensor:
    # Walking on after the first success leaves a margin, which noise and other weights eat.
    strong = attack("pgd")(norm="l2", radius=radius, steps=50, early_stop=False, loss="margin")  # type: ignore[call-arg]
    return strong(target, images, Goal(labels), seed=seed)


def _strongest(
    target: Target, images: Tensor, labels: Tensor, radius: float, least: Outcome, seed: int
) -> tuple[Tensor, dict[str, int]]:
    """Images within the radius that fool the target, where one of several attacks finds one; and how many each did."""
    found = _pgd(target, images, labels, radius, seed)
    left = target.query(found).labels == labels
    by = {"pgd on the margin": int((~left).sum())}
    near = _pushed(target, least, images, labels, radius)
    fits = torch.linalg.vector_norm((near - images).flatten(1), dim=1) <= radius * (1 + 1e-6)
    kept = left & fits & least.reached
    found[kept] = near[kept]
    by["ddn"] = int(kept.sum())
    others = {
        "pgd on cross-entropy": attack("pgd")(norm="l2", radius=radius, steps=50, restarts=3, early_stop=False),  # type: ignore[call-arg]
        "apgd": attack("apgd")(norm="l2", radius=radius),  # type: ignore[call-arg]
        "apgd-t": attack("apgd-t")(norm="l2", radius=radius),  # type: ignore[call-arg]
    }
    for name, chosen in others.items():
        left = target.query(found).labels == labels
        found[left] = chosen(target, images[left], Goal(labels[left]), seed=seed)
        by[name] = int((target.query(found[left]).labels != labels[left]).sum())
    return found, by


def _delivered(
    deployment: Deployment,
    settings: Settings,
    images: Tensor,
    disturbed: Tensor,
    labels: Tensor,
    access: str,
    details: dict[str, object],
) -> Cell:
    """Send clean and disturbed images; those that the deployed model gets wrong as they are do not count."""
    target = deployment.deployed(Access.LABEL, settings.seed)
    right = target.query(images).labels == labels
    fooled = (target.query(disturbed).labels != labels) & right
    details["median_l2"] = median_of(torch.linalg.vector_norm((disturbed - images).flatten(1), dim=1)[fooled])
    return Cell(
        _FOOLED,
        int(fooled.sum()),
        int(right.sum()),
        access=access,
        mode=deployment.mode,
        queries=1.0,
        seconds=target.meter.seconds,
        details=details,
    )
