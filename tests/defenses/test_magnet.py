"""MagNet: it stops attacks that do not know of it, and falls to one that takes its gradient."""

import pytest
import torch

from secure_infer.attacks import Goal, NetworkTarget
from secure_infer.attacks.best_effort import best_effort
from secure_infer.attacks.boundary import BoundaryProjection
from secure_infer.attacks.carlini import CarliniWagner
from secure_infer.attacks.evaluate import evaluate, judge
from secure_infer.defenses import Data
from secure_infer.defenses.magnet import Guarded, MagNet, Undetected, jensen_shannon
from secure_infer.errors import InvalidInput
from tests.defenses.problem import CLASSES, problem


@pytest.fixture(scope="module")
def guarded() -> Guarded:
    case = problem()
    return MagNet(epochs=60, channels=4, noise=0.05, false_positives=0.02).fit(case.net, case.data)


def targets(guarded: Guarded) -> tuple[NetworkTarget, NetworkTarget]:
    shape = tuple(problem().images.shape[1:])
    return NetworkTarget(problem().net, shape), NetworkTarget(guarded, shape)


def test_rejects_few_clean_images_and_most_noise(guarded):
    case = problem()
    assert guarded.rejects(case.data.images).float().mean() < 0.2
    assert guarded.rejects(torch.rand_like(case.images)).float().mean() > 0.9


def test_the_last_class_wins_exactly_where_a_detector_fires(guarded):
    x = torch.cat([problem().images, torch.rand_like(problem().images)])
    rejected = guarded.rejects(x)
    assert torch.equal(guarded(x).argmax(1) == CLASSES, rejected) and 0 < rejected.sum() < len(x)


def test_stops_what_does_not_know_of_it_and_falls_to_what_does(guarded):
    case, (plain, defended) = problem(), targets(guarded)
    aim = Undetected(case.labels, rejected=CLASSES)
    cw = CarliniWagner(searches=5, steps=60, weight=0.1, rate=0.05)
    grey = evaluate(plain, cw, case.images, Goal(case.labels))
    assert grey.success > 0.9
    assert judge(defended, grey.images, aim).float().mean() < 0.5
    adaptive = best_effort(defended, [BoundaryProjection(steps=60), CarliniWagner(searches=5, steps=60, rate=0.05)],
                           case.images, aim)  # fmt: skip
    broken = judge(defended, adaptive.images, aim)
    assert broken.float().mean() > 0.8
    assert not guarded.rejects(adaptive.images[broken]).any()


def test_an_undetected_goal_is_reached_by_a_wrong_class_that_is_not_rejection():
    torch.manual_seed(0)
    logits, labels = torch.randn(300, 5), torch.randint(4, (300,))
    chosen = logits.argmax(1)
    for targets in (None, torch.randint(4, (300,))):
        goal = Undetected(labels, targets, rejected=4)
        expected = (chosen != labels) & (chosen != 4) if targets is None else chosen == targets
        assert torch.equal(goal.reached(logits), expected)
        assert torch.equal(goal.reached_by_labels(chosen), expected)
        assert torch.equal(goal.margin(logits) < 0, expected)
        half = torch.arange(0, 300, 2)
        for other in (goal.select(half), goal.repeat(2).select(half), goal.to("cpu").select(half)):
            assert torch.equal(other.reached(logits[half]), expected[half])


def test_jensen_shannon_is_that_of_its_definition():
    torch.manual_seed(0)
    a, b = torch.randn(2, 6, 4).double()
    p, q = a.div(3).softmax(1), b.div(3).softmax(1)
    m = (p + q) / 2
    expected = ((p * (p / m).log()).sum(1) + (q * (q / m).log()).sum(1)) / 2
    torch.testing.assert_close(jensen_shannon(a, b, 3.0), expected)
    torch.testing.assert_close(jensen_shannon(a, a, 3.0), torch.zeros(6).double(), atol=1e-12, rtol=0)


def test_sides_that_do_not_halve_are_taken():
    images = torch.rand(30, 2, 7, 5)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(70, 3))
    target = MagNet(epochs=1)(net, Data(images, torch.zeros(30).long()))
    assert target.query(images[:2]).scores.shape == (2, 4)


def test_too_few_images_are_refused():
    with pytest.raises(InvalidInput, match="MagNet"):
        MagNet(held_back=0.1)(problem().net, Data(problem().images[:2], problem().labels[:2]))
