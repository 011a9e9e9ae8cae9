"""Foolbox as an oracle: equal budgets on the same network give equal success and distortion, to 2 %."""

from typing import Any

import pytest
import torch

from secure_infer.attacks import attack
from secure_infer.attacks.norms import size
from tests.attacks.table import IMAGE, Problem, problem

foolbox = pytest.importorskip("foolbox")


@pytest.fixture(scope="module")
def case() -> Problem:
    whole = problem(IMAGE, n=121)
    return Problem(whole.net, whole.images[:-1], whole.labels[:-1])


def both(case: Problem, ours: Any, theirs: Any, epsilon: float | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    model = foolbox.PyTorchModel(case.net, bounds=(0, 1), device="cpu")
    return (
        ours(case.target(), case.images, case.goal("untargeted")),
        theirs(model, case.images, case.labels, epsilons=epsilon)[1],
    )


def fooled(case: Problem, x: torch.Tensor) -> torch.Tensor:
    return case.net(x).argmax(1) != case.labels


def middle(case: Problem, x: torch.Tensor, norm: str) -> float:
    return float(size(x - case.images, norm).masked_fill(~fooled(case, x), torch.inf).median())


@pytest.mark.parametrize(("norm", "name", "radius"), [("linf", "LinfPGD", 0.2), ("l2", "L2PGD", 1.1)])
def test_pgd(case, norm, name, radius):
    ours = attack("pgd")(radius=radius, norm=norm, steps=40, step=radius / 20, random_start=False, early_stop=False)
    theirs = getattr(foolbox.attacks, name)(steps=40, abs_stepsize=radius / 20, random_start=False)
    found = [float(fooled(case, x).float().mean()) for x in both(case, ours, theirs, radius)]
    assert 0.1 < found[0] < 0.9 and abs(found[0] - found[1]) <= 0.02


MINIMAL: list[tuple[str, dict, Any, str]] = [
    ("ddn", {"steps": 60}, foolbox.attacks.DDNAttack(steps=60), "l2"),
    ("fmn", {"steps": 60}, foolbox.attacks.L2FMNAttack(steps=60), "l2"),
    ("fmn", {"steps": 60, "norm": "linf"}, foolbox.attacks.LInfFMNAttack(steps=60), "linf"),
    ("deepfool", {}, foolbox.attacks.L2DeepFoolAttack(), "l2"),
    ("deepfool", {"norm": "linf"}, foolbox.attacks.LinfDeepFoolAttack(), "linf"),
    (
        "cw",
        {"searches": 4, "steps": 60, "rate": 0.05, "weight": 0.1},
        foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=4, steps=60, stepsize=0.05, initial_const=0.1),
        "l2",
    ),
]


@pytest.mark.parametrize(("name", "settings", "peer", "norm"), MINIMAL)
def test_least_distortion_is_at_most_that_of_the_oracle(case, name, settings, peer, norm):
    ours, theirs = both(case, attack(name)(**settings), peer)
    assert middle(case, ours, norm) <= 1.02 * middle(case, theirs, norm)
    assert fooled(case, ours).float().mean() >= fooled(case, theirs).float().mean() - 0.02
