"""The judge: asks again, measures itself, and believes no attack."""

import json
import math

import pytest
import torch

from secure_infer.attacks import Access, Attack, FunctionTarget, Goal, NetworkTarget
from secure_infer.attacks.best_effort import best_effort, half_distortion
from secure_infer.attacks.evaluate import Distortion, evaluate, judge, to_pixels
from secure_infer.attacks.noise import Noise
from secure_infer.errors import InvalidInput, LimitExceeded, NotApplicable

SHAPE = (1, 4, 4)


class Push(Attack):
    """Adds a constant to the first pixel; `steps` returns to it are counted as queries."""

    name, access, norms, minimal = "push", Access.LABEL, frozenset({"l2"}), True

    def __init__(self, by: float, minimal: bool = True) -> None:
        self.by, self.minimal = by, minimal

    def _run(self, target, images, goal, generator):
        target.query(images)
        moved = images.clone()
        moved[:, 0, 0, 0] += self.by
        return moved


def first_pixel(threshold: float = 0.5, **kwargs) -> FunctionTarget:
    """Class 1 where the first pixel is above a threshold."""
    return FunctionTarget(lambda x: (x[:, 0, 0, 0] > threshold).long(), SHAPE, 2, access=Access.LABEL, **kwargs)


def images(*values: float) -> torch.Tensor:
    x = torch.full((len(values), *SHAPE), 0.25)
    x[:, 0, 0, 0] = torch.tensor(values)
    return x


def test_distances_are_those_of_the_definitions():
    a, b = torch.rand(3, 2, 5, 5), torch.rand(3, 2, 5, 5)
    b[1] = a[1]
    b[2] = a[2]
    b[2, :, 0, 0] += 0.5
    found = Distortion.between(a, b)
    expected = (a - b).double().flatten(1).norm(dim=1)
    torch.testing.assert_close(found.l2, expected)
    torch.testing.assert_close(found.rmse, expected / 50**0.5)
    assert found.l0.tolist() == [25, 0, 1], "channels of one place are one pixel"
    assert found.linf[2] == pytest.approx(0.5)


def test_success_is_what_the_target_says_and_distances_of_failures_are_infinite():
    target = first_pixel()
    outcome = evaluate(target, Push(0.2), images(0.4, 0.1, 0.9), Goal(torch.tensor([0, 0, 0])))
    assert outcome.already.tolist() == [False, False, True]
    assert outcome.reached.tolist() == [True, False, True]
    assert outcome.distortion.l2.tolist() == [pytest.approx(0.2), math.inf, 0]
    assert (outcome.attacked, outcome.success, outcome.robust_accuracy) == (2, 0.5, pytest.approx(1 / 3))
    assert (outcome.spent.queries, target.meter.queries) == (2, 2), "neither the judge nor lost images are counted"


@pytest.mark.parametrize("by", [float("nan"), 2.0, -1.0])
def test_images_outside_the_bounds_are_no_success(by):
    outcome = evaluate(first_pixel(), Push(by), images(0.4), Goal(torch.tensor([0])))
    assert not outcome.reached.any() and outcome.robust_accuracy == 1
    assert torch.equal(outcome.images, images(0.4))


def test_images_of_another_shape_are_refused():
    class Crop(Push):
        def _run(self, target, images, goal, generator):
            return images[:, :, :2]

    with pytest.raises(InvalidInput, match="something else than images"):
        evaluate(first_pixel(), Crop(0), images(0.4), Goal(torch.tensor([0])))


def test_rounded_images_are_bit_exact_and_minimal_ones_are_pushed_just_past_the_border():
    start = to_pixels(images(0.4, 0.45), 255)
    outcome = evaluate(first_pixel(0.5), Push(0.1001), start, Goal(torch.tensor([0, 0])), levels=255)
    assert outcome.reached.all()
    grid = (torch.arange(256, dtype=torch.uint8).float() / 255).tolist()
    assert set(outcome.images.unique().tolist()) <= set(grid)
    assert outcome.images[0, 0, 0, 0] * 255 == 128, "0.5001 alone would be rounded to 127.5, and then maybe down"


def test_rounding_never_leaves_the_radius():
    start = to_pixels(torch.rand(50, *SHAPE) * 0.8, 255)
    radius = 0.1
    outcome = evaluate(first_pixel(-1), Push(radius, minimal=False), start, Goal(torch.ones(50).long()), levels=255)
    moved = (outcome.images - start).abs().amax()
    assert 25 / 255 - 1e-6 <= moved <= radius
    exact = evaluate(first_pixel(-1), Push(8 / 255, minimal=False), start, Goal(torch.ones(50).long()), levels=255)
    torch.testing.assert_close((exact.images - start)[:, 0, 0, 0] * 255, torch.full((50,), 8.0))


def test_target_answers_the_attack_within_its_budget_and_the_judge_beside_it():
    outcome = evaluate(first_pixel(budget=2), Push(0.2), images(0.4, 0.1), Goal(torch.tensor([0, 0])))
    assert outcome.spent.queries == 2 and outcome.spent.budget == 2
    with pytest.raises(LimitExceeded):
        evaluate(first_pixel(budget=1), Push(0.2), images(0.4, 0.1), Goal(torch.tensor([0, 0])))


def test_goal_on_confidence_is_judged_by_scores():
    torch.manual_seed(0)
    target = NetworkTarget(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)), SHAPE)
    x = torch.rand(20, *SHAPE)
    labels = target.query(x).labels
    shares = target.query(x).scores.softmax(1).amax(1)
    assert torch.equal(judge(target, x, Goal(labels, confidence=0.5)), shares < 0.5)


def test_records_are_json_and_intervals_hold_the_shares():
    for labels in ([0, 0, 0], [1, 1, 1]):
        outcome = evaluate(first_pixel(), Push(0.2), images(0.4, 0.1, 0.9), Goal(torch.tensor(labels)))
        record = json.loads(json.dumps(outcome.as_dict(), allow_nan=False))
        low, high = record["success_interval"]
        assert low <= record["success"] <= high and record["n"] == 3


def test_best_effort_is_the_minimum_over_attacks():
    target, labels = first_pixel(), torch.tensor([0, 0, 0, 1])
    x = images(0.45, 0.35, 0.1, 0.2)
    best = best_effort(target, [Push(0.2), Push(0.1), Push(0.3)], x, labels)
    assert best.distances.tolist() == [pytest.approx(0.1), pytest.approx(0.2), math.inf, 0]
    assert best.winner.tolist() == [1, 0, -1, -1]
    assert judge(target, best.images, Goal(labels)).tolist() == [True, True, False, True]
    assert best.clean_accuracy == 0.75
    json.dumps(best.as_dict(), allow_nan=False)


def test_accuracy_never_rises_with_the_distortion():
    x = torch.rand(200, *SHAPE)
    best = best_effort(first_pixel(), [Noise(), Noise("uniform", draws=2)], x, (x[:, 0, 0, 0] > 0.5).long())
    curve = best.accuracy(torch.linspace(0, 5, 30))
    assert (curve.diff() <= 0).all() and curve[0] == 1
    value, (low, high) = best.median()
    assert low <= value <= high
    assert best.accuracy(torch.tensor([best.half_distortion()], dtype=torch.float64)) <= 0.5
    assert best.accuracy(torch.tensor([best.half_distortion() - 1e-9], dtype=torch.float64)) > 0.5
    assert best.robust_accuracy(0)[0] == best.clean_accuracy


def test_half_distortion_is_exact_and_attacks_fewer_images():
    x = torch.rand(201, *SHAPE)
    labels = (x[:, 0, 0, 0] > 0.5).long()
    labels[:30] = 1 - labels[:30]
    attacks = [Noise("uniform"), Noise(), Push(0.3), Push(-0.2), Noise("uniform", draws=3)]
    value, runs = half_distortion(first_pixel(), attacks, x, labels)
    assert value == best_effort(first_pixel(), attacks, x, labels).half_distortion()
    assert runs < len(attacks) * 171


def test_half_distortion_of_what_can_t_be_broken_is_infinite():
    value, runs = half_distortion(first_pixel(2.0), [Push(0.1)], images(0.1, 0.2), torch.tensor([0, 0]))
    assert value == math.inf and runs == 2


def test_images_broken_within_the_radius_are_spared_further_attacks():
    target = first_pixel()
    best_effort(target, [Push(0.2), Push(0.3)], images(0.4, 0.1), torch.tensor([0, 0]), radius=0.25)
    assert target.meter.queries == 3


def test_attacks_without_access_are_listed_and_not_skipped_in_silence():
    class Inside(Push):
        name, access = "inside", Access.WHITE_BOX

    best = best_effort(first_pixel(), [Inside(0.2), Push(0.2)], images(0.4), torch.tensor([0]))
    assert list(best.refused) == ["inside"] and len(best.outcomes) == 1 and best.winner.tolist() == [0]
    with pytest.raises(NotApplicable, match="inside"):
        best_effort(first_pixel(), [Inside(0.2)], images(0.4), torch.tensor([0]))
    with pytest.raises(NotApplicable, match="Not every"):
        half_distortion(first_pixel(), [Push(0.2), Inside(0.2)], images(0.4), torch.tensor([0]))


@pytest.mark.parametrize("labels", [torch.tensor([7]), torch.tensor([0, 1]), torch.tensor([0.0])])
def test_labels_that_do_not_fit_are_refused(labels):
    with pytest.raises(InvalidInput, match="labels"):
        best_effort(first_pixel(), [Push(0.2)], images(0.4), labels)
    with pytest.raises(InvalidInput, match="labels"):
        evaluate(first_pixel(), Push(0.2), images(0.4), Goal(labels))


def test_nothing_to_measure_is_refused():
    with pytest.raises(InvalidInput, match="nothing to measure"):
        best_effort(first_pixel(), [], images(0.4), torch.tensor([0]))
    with pytest.raises(InvalidInput, match="levels"):
        evaluate(first_pixel(), Push(0.2), images(0.4), Goal(torch.tensor([0])), levels=0)
