"""The contests: which attacks, with which settings, against which calls of the other libraries."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from secure_infer.attacks import Attack, Goal, NetworkTarget, attack
from secure_infer.attacks.best_effort import best_effort
from secure_infer.attacks.hopskipjump import HopSkipJump
from secure_infer.bench import queries
from secure_infer.bench.attacks.contest import Contender, Contest, Field
from secure_infer.bench.attacks.peers import adv_lib, art, foolbox, only, quiet, torchattacks, torchattacks_in_turn

RADIUS = 0.03
"""Linf radius at which about half of the images of a plainly trained network can be fooled."""
QUERIES = 1200
"""What the peers' HopSkipJump asks for an image, nearly; `bench label-queries` has it to the query."""
_CW = {"searches": 5, "steps": 100, "rate": 0.01}


def contests(libraries: Mapping[str, str]) -> Iterator[Contest]:
    """All of them.

    Args:
        libraries: Versions of the peers that are installed.
    """
    yield _contest("pgd", {"radius": RADIUS, "steps": 40}, partial(_pgd, libraries), radius=RADIUS)
    yield _contest("apgd", {"radius": RADIUS, "steps": 100}, partial(_apgd, libraries), rounds=5, radius=RADIUS)
    yield _contest("ddn", {"steps": 100}, partial(_ddn, libraries))
    yield _contest("fmn", {"steps": 100}, partial(_fmn, libraries), rounds=3)
    yield _contest("cw", _CW, partial(_cw, libraries), images=50, rounds=3)
    yield _contest("deepfool", {"steps": 50}, partial(_deepfool, libraries), rounds=3)
    yield _contest("superdeepfool", {}, partial(_superdeepfool, libraries), rounds=3)
    asked = {"queries": QUERIES, "peers' steps": queries.STEPS}
    yield Contest("hopskipjump", asked, partial(_hopskipjump, libraries), images=20)
    yield _contest("bp", {"steps": 100}, _bp, rounds=1)
    yield _contest("autoattack", {"radius": RADIUS}, partial(_autoattack, libraries), rounds=1, radius=RADIUS)


def _contest(
    name: str, settings: Mapping[str, Any], peers: Callable[[Field], dict[str, Contender]], **kept: Any
) -> Contest:
    def contenders(ground: Field) -> dict[str, Contender]:
        return {"ours": ours(ground, attack(name)(**settings)), **peers(ground)}

    return Contest(name, settings, contenders, **kept)


def ours(ground: Field, chosen: Attack) -> Contender:
    """One of our attacks."""

    def run() -> Tensor:
        target = NetworkTarget(ground.net, tuple(ground.images.shape[1:]))
        return chosen(target, ground.images, Goal(ground.labels))

    return run


def _pgd(libraries: Mapping[str, str], ground: Field) -> dict[str, Contender]:
    step = 2.5 * RADIUS / 40
    every_step = attack("pgd")(radius=RADIUS, steps=40, early_stop=False)  # type: ignore[call-arg]
    return {
        "ours, all steps": ours(ground, every_step),
        **_floor(ground, 40),
        **only(
            libraries,
            foolbox=lambda: foolbox(ground, "LinfPGD", radius=RADIUS, steps=40, abs_stepsize=step),
            torchattacks=lambda: torchattacks(ground, "PGD", eps=RADIUS, alpha=step, steps=40),
            art=lambda: art(
                ground, "ProjectedGradientDescentPyTorch", norm=math.inf, eps=RADIUS, eps_step=step, max_iter=40
            ),
        ),
    }


def _floor(ground: Field, steps: int) -> dict[str, Contender]:
    """The gradients of an attack and nothing else."""
    return {f"{steps} forward and backward passes": partial(_passes, ground, steps)}


def _passes(ground: Field, steps: int) -> Tensor:
    x = ground.images.clone().requires_grad_()
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(ground.net(x), ground.labels, reduction="sum")
        torch.autograd.grad(loss, x)
    return ground.images


def _apgd(libraries: Mapping[str, str], ground: Field) -> dict[str, Contender]:
    return only(
        libraries,
        torchattacks=lambda: torchattacks(ground, "APGD", eps=RADIUS, steps=100, loss="ce"),
        art=lambda: art(
            ground,
            "AutoProjectedGradientDescent",
            norm=math.inf,
            eps=RADIUS,
            eps_step=2 * RADIUS,
            max_iter=100,
            nb_random_init=1,
            loss_type="cross_entropy",
        ),
    )


def _ddn(libraries: Mapping[str, str], ground: Field) -> dict[str, Contender]:
    return {
        **_floor(ground, 100),
        **only(
            libraries,
            foolbox=lambda: foolbox(ground, "DDNAttack", steps=100),
            adv_lib=lambda: adv_lib(ground, "ddn", steps=100, levels=None),  # no other contender rounds to pixels
        ),
    }


def _fmn(libraries: Mapping[str, str], ground: Field) -> dict[str, Contender]:
    return only(libraries, foolbox=lambda: foolbox(ground, "L2FMNAttack", steps=100))


def _cw(libraries: Mapping[str, str], ground: Field) -> dict[str, Contender]:
    rate, steps, searches = _CW["rate"], _CW["steps"], _CW["searches"]
    return only(
        libraries,
        foolbox=lambda: foolbox(
            ground, "L2CarliniWagnerAttack", binary_search_steps=searches, steps=steps, stepsize=rate
        ),
        torchattacks=lambda: torchattacks(ground, "CW", c=1, steps=int(steps * searches), lr=rate),
    )


def _deepfool(libraries: Mapping[str, str], ground: Field) -> dict[str, Contender]:
    return only(
        libraries,
        foolbox=lambda: foolbox(ground, "L2DeepFoolAttack", steps=50, candidates=10),
        adv_lib=lambda: adv_lib(ground, "df", steps=50),
    )


def _superdeepfool(libraries: Mapping[str, str], ground: Field) -> dict[str, Contender]:
    return {
        "ours, best effort": partial(_best_effort, ground),
        **only(libraries, adv_lib=lambda: adv_lib(ground, "sdf")),
    }


def _best_effort(ground: Field) -> Tensor:
    """The nearest of what SuperDeepFool and BP find."""
    target = NetworkTarget(ground.net, tuple(ground.images.shape[1:]))
    return best_effort(target, [attack("superdeepfool")(), attack("bp")()], ground.images, ground.labels).images


def _hopskipjump(libraries: Mapping[str, str], ground: Field) -> dict[str, Contender]:
    """From the same first successes; the peers' settings are steps, which take about as many queries as ours has."""
    given = ground.images, ground.labels
    starts = queries.first_successes(ground.net, *given)
    return {
        "ours": ours(ground, HopSkipJump(queries=QUERIES, starts=starts)),
        **only(
            libraries,
            foolbox=lambda: quiet(partial(queries.foolbox, ground.net, "l2", *given, starts)),
            art=lambda: quiet(partial(queries.art, ground.net, "l2", *given, starts)),
        ),
    }


def _bp(ground: Field) -> dict[str, Contender]:
    """No library has it: against our own DDN with ten times the gradients, whose distortion it must nearly reach."""
    return {"our DDN, 1000 steps": ours(ground, attack("ddn")(steps=1000))}  # type: ignore[call-arg]


def _autoattack(libraries: Mapping[str, str], ground: Field) -> dict[str, Contender]:
    """The same four attacks with as many steps; the library's own ensemble makes 10 steps each."""
    steps = {"eps": RADIUS, "steps": 100}
    stages = (
        ("APGD", {**steps, "loss": "ce"}),
        ("APGDT", {**steps, "n_classes": 10}),
        ("FAB", {**steps, "multi_targeted": True, "n_classes": 10}),
        ("Square", {"eps": RADIUS, "n_queries": 5000}),
    )
    default = only(
        libraries, torchattacks=lambda: torchattacks(ground, "AutoAttack", norm="Linf", eps=RADIUS, n_classes=10)
    )
    return {
        **only(libraries, torchattacks=lambda: torchattacks_in_turn(ground, *stages)),
        **{f"{name}, its defaults": contender for name, contender in default.items()},
    }
