"""The attacks by gradient against formulas, plain loops, one another, and themselves image by image."""

import pytest
import torch
from torch import nn

from secure_infer.attacks import Attack, Bounds, Goal, NetworkTarget, attack
from secure_infer.attacks.apgd import TargetedAPGD, _checks
from secure_infer.attacks.fab import FAB
from secure_infer.attacks.losses import loss_of
from secure_infer.attacks.norms import onto_plane, project, size
from secure_infer.errors import InvalidInput
from tests.attacks.table import IMAGE, Problem, problem

ALONE = [
    ("bim", {"radius": 0.2}),
    ("pgd", {"radius": 0.2, "random_start": False}),
    ("apgd", {"radius": 0.2, "random_start": False, "steps": 20}),
    ("deepfool", {}),
    ("superdeepfool", {}),
    ("ddn", {"steps": 20}),
    ("fmn", {"steps": 20}),
    ("cw", {"searches": 2, "steps": 20, "rate": 0.1, "weight": 1.0}),
    ("bp", {"steps": 20}),
]


@pytest.fixture(scope="module")
def many() -> Problem:
    return problem(IMAGE, n=80)


def distances(case: Problem, found: Attack, norm: str = "l2") -> torch.Tensor:
    """Sizes of the disturbances of the images that are not fooled from the start; a failure is infinite."""
    goal = case.goal("untargeted")
    result = found(case.target(), case.images, goal)
    failed = ~goal.reached(case.net(result))
    return size(result - case.images, norm).masked_fill(failed, torch.inf)[:-1]


def gradient(case: Problem, x: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    loss = nn.functional.cross_entropy(case.net(x), case.labels, reduction="sum")
    return torch.autograd.grad(loss, x)[0]


def test_fgsm_is_the_formula_bit_by_bit():
    case = problem()
    expected = (case.images + 0.1 * gradient(case, case.images).sign()).clamp(0, 1)
    assert torch.equal(attack("fgsm")(radius=0.1)(case.target(), case.images, case.goal("untargeted")), expected)


def test_fgsm_fools_more_the_greater_its_radius(many):
    goal = many.goal("untargeted")
    rates = []
    for radius in (0.02, 0.1, 0.2, 0.4):
        found = attack("fgsm")(radius=radius)(many.target(), many.images, goal)
        rates.append(float(goal.reached(many.net(found)).float().mean()))
    assert rates == sorted(rates) and rates[-1] > rates[0] + 0.3


def test_pgd_is_a_plain_loop_bit_by_bit():
    case, x = problem(), problem().images
    for _ in range(7):
        ahead = x + 0.05 * gradient(case, x).sign()
        x = (case.images + (ahead - case.images).clamp(-0.2, 0.2)).clamp(0, 1)
    found = attack("pgd")(radius=0.2, steps=7, step=0.05, random_start=False, early_stop=False)
    assert torch.equal(found(case.target(), case.images, case.goal("untargeted")), x)


def test_more_restarts_fool_more_and_stop_at_the_first_success(many):
    goal, fooled = many.goal("untargeted"), []
    for restarts in (1, 8):
        target = many.target()
        found = attack("pgd")(radius=0.18, steps=3, restarts=restarts)(target, many.images, goal)
        fooled.append(int(goal.reached(many.net(found)).sum()))
    assert fooled[1] > fooled[0]
    assert target.meter.gradients < 8 * 3 * len(many.images)


@pytest.mark.parametrize(("name", "settings"), ALONE)
def test_an_image_s_result_does_not_depend_on_its_batch(name, settings):
    case, found = problem(), attack(name)(**settings)
    goal = case.goal("untargeted")
    together = found(case.target(), case.images, goal)
    for i in range(len(case.images)):
        alone = found(case.target(), case.images[i : i + 1], goal.select(torch.tensor([i])))
        torch.testing.assert_close(alone[0], together[i], rtol=1e-3, atol=1e-3)


def test_auto_pgd_checks_at_the_times_of_the_paper():
    assert [at for at, _ in _checks(100)] == [22, 41, 57, 70, 80, 87, 93, 99]
    assert [at for at, _ in _checks(3)] == [1, 2, 3]


def test_dlr_ignores_scale_and_shift_and_needs_three_classes():
    logits, goal = torch.randn(20, 5), Goal(torch.arange(20) % 5, torch.arange(1, 21) % 5)
    for loss in (loss_of("dlr", goal), loss_of("dlr", Goal(goal.labels))):
        torch.testing.assert_close(loss(7 * logits + 3), loss(logits))
    with pytest.raises(InvalidInput, match="three classes"):
        loss_of("dlr", Goal(torch.tensor([0])))(torch.zeros(1, 2))


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_step_onto_a_plane_reaches_it_within_the_bounds_and_none_is_shorter(norm):
    torch.manual_seed(2)
    x, normal, bounds = torch.rand(50, 30).round(decimals=1), torch.randn(50, 30), Bounds()
    far = torch.rand(50) * 0.9 * (normal.abs() * torch.where(normal > 0, x, 1 - x)).sum(1)
    step = onto_plane(x, normal, far, norm, bounds)
    assert (x + step).amin() >= -1e-6 and (x + step).amax() <= 1 + 1e-6
    torch.testing.assert_close((normal * step).sum(1), -far, rtol=0.02, atol=1e-3)
    # By duality: the least step is the clipped one along the normal (or its sign), whose length is found by bisection.
    low, high = torch.zeros(50, 1), torch.full((50, 1), 1e3)
    speed = normal if norm == "l2" else normal.sign()
    for _ in range(60):
        middle = (low + high) / 2
        short = (normal * ((x - middle * speed).clamp(0, 1) - x)).sum(1, keepdim=True) > -far[:, None]
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    assert (size(step, norm) <= size((x - high * speed).clamp(0, 1) - x, norm) * 1.001 + 1e-6).all()
    beyond = onto_plane(x, normal, torch.full((50,), 1e6), norm, bounds)
    assert (x + beyond).amin() >= -1e-6 and (x + beyond).amax() <= 1 + 1e-6 and beyond.isfinite().all()


def test_projection_takes_one_radius_or_one_each():
    delta, radii = torch.randn(9, 2, 4), torch.linspace(0.1, 3, 9)
    for norm in ("l2", "linf"):
        assert (size(project(delta, norm, radii), norm) <= radii * (1 + 1e-6)).all()
        assert (size(project(delta, norm, 0.5), norm) <= 0.5 * (1 + 1e-6)).all()
        assert torch.equal(project(delta, norm, torch.full((9,), 1e9)), delta)


class _Saturated(nn.Module):
    """A network whose probabilities are 1 and 0 in floating point, as quantized ones are: no gradient by chance."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1e4 * self.net(x)


@pytest.mark.parametrize(("name", "settings"), [("bp", {}), ("fmn", {}), ("deepfool", {}), ("superdeepfool", {})])
def test_saturated_probabilities_hide_nothing(name, settings):
    case = problem()
    target = NetworkTarget(_Saturated(case.net), IMAGE)
    goal = case.goal("untargeted")
    assert goal.reached(case.net(attack(name)(**settings)(target, case.images, goal))).all()


@pytest.mark.parametrize("name", ["ddn", "fmn", "deepfool", "superdeepfool", "cw", "bp", "fab"])
def test_a_network_without_any_gradient_leaves_the_images_as_they_are(name):
    constant = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    nn.init.zeros_(constant[1].weight)
    constant[1].bias.data = torch.tensor([3.0, 2.0, 1.0, 0.0])
    images = problem().images
    result = attack(name)()(NetworkTarget(constant, IMAGE), images, Goal(torch.zeros(6, dtype=torch.int64)))
    assert torch.equal(result, images)


def test_boundary_projection_is_near_ddn_with_ten_times_the_gradients(many):
    projected = distances(many, attack("bp")(steps=100)).median()
    assert projected <= 1.05 * distances(many, attack("ddn")(steps=1000)).median()


def test_minimal_attacks_agree_on_the_least_distortion(many):
    best = distances(many, attack("ddn")(steps=300)).median()
    for name, settings in (("bp", {"steps": 100}), ("fmn", {}), ("superdeepfool", {})):
        assert distances(many, attack(name)(**settings)).median() <= 1.1 * best, name


def test_the_ensemble_leaves_no_more_than_its_members(many):
    goal = many.goal("untargeted")

    def left(name: str, **settings: object) -> int:
        found = attack(name)(radius=0.15, steps=20, **settings)
        return int((~goal.reached(many.net(found(many.target(), many.images, goal)))).sum())

    together = left("autoattack", queries=50)
    assert 0 < together <= min(left("apgd"), left("apgd-t"))
    nearest = distances(many, FAB("linf", steps=20, classes=3), "linf")
    assert together <= int((nearest > 0.15).sum())


def test_many_images_and_classes_go_in_parts_to_the_same_end(many, monkeypatch):
    """What is walked to several classes at once is cut where the batch grows too large."""
    whole = FAB(steps=5, classes=2)(many.target(), many.images, many.goal("untargeted"))
    monkeypatch.setattr("secure_infer.attacks.scores._AT_ONCE", 7 * 2 * many.images[0].numel())
    parts = FAB(steps=5, classes=2)(many.target(), many.images, many.goal("untargeted"))
    torch.testing.assert_close(parts, whole)
    found = TargetedAPGD(radius=0.4, steps=20)(many.target(), many.images, many.goal("untargeted"))
    assert many.goal("untargeted").reached(many.net(found)).all()
    assert (found - many.images).abs().max() <= 0.4 + 1e-6
