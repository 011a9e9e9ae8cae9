"""Smoothing's certificate, transformations' values and gradients, and who may ask how often."""

import math

import pytest
import torch
from torch import nn

from secure_infer.attacks import Access, Bounds, Goal, NetworkTarget
from secure_infer.attacks.evaluate import evaluate
from secure_infer.attacks.noise import Noise
from secure_infer.attacks.statistics import clopper_pearson_lower, median, median_interval, quantile_of_normal, wilson
from secure_infer.defenses.budget import QueryBudget, TokenBucket
from secure_infer.defenses.smoothing import RandomizedSmoothing, Smoothed, certify
from secure_infer.defenses.transform import Transformed
from secure_infer.errors import InvalidInput, LimitExceeded, UsageError
from tests.defenses.problem import CLASSES, problem


def test_intervals_agree_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    for k, n, alpha in [(0, 10, 0.01), (3, 10, 0.05), (10, 10, 0.001), (990, 1000, 0.001), (99_000, 100_000, 0.001)]:
        expected = stats.beta.ppf(alpha, k, n - k + 1) if k else 0.0
        assert clopper_pearson_lower(k, n, alpha) == pytest.approx(expected, abs=1e-9)
    for k, n in [(0, 7), (3, 7), (500, 1000)]:
        low, high = stats.binomtest(k, n).proportion_ci(method="wilson")
        assert wilson(k, n) == pytest.approx((low, high), abs=1e-9)
    assert quantile_of_normal(0.975) == pytest.approx(1.959963984540054)
    with pytest.raises(InvalidInput):
        clopper_pearson_lower(3, 2)


def test_medians_take_the_middle_and_infinity_and_their_interval_covers():
    assert median(torch.tensor([3.0, 1.0, 2.0])) == 2 and median(torch.tensor([4.0, 1.0, 2.0, math.inf])) == 3
    hits = 0
    for seed in range(200):
        sample = torch.randn(51, generator=torch.Generator().manual_seed(seed))
        low, high = median_interval(sample, seed=seed, draws=300)
        hits += low <= 0 <= high
    assert 178 <= hits <= 199, "95 % of 200, within three standard deviations"


class Half(nn.Module):
    """Class 1 where the first value is above 0.5: under noise, its vote has a closed form."""

    def forward(self, x):
        return torch.stack([0.5 - x[:, 0], x[:, 0] - 0.5], 1)


def test_certified_radius_is_below_the_true_one_and_close():
    x = torch.tensor([[0.5 + d, 0.0] for d in (0.1, 0.2, 0.3, -0.2, 0.0)])
    found = certify(Smoothed(Half(), 0.25, 10), x, samples=20_000)
    assert found.labels[:4].tolist() == [1, 1, 1, 0] and found.labels[4] == -1
    true = torch.tensor([0.1, 0.2, 0.3, 0.2])  # the distance to the border, for a half-space
    assert (found.radii[:4] < true).all() and (found.radii[:4] > 0.85 * true).all()
    assert found.accuracy(torch.tensor([1, 1, 1, 1, 1]), 0.15) == pytest.approx(0.4)
    few = certify(Smoothed(Half(), 0.25, 10), x[2:3], samples=100)
    assert 0 < few.radii[0] < found.radii[2], "fewer votes certify less"


def test_smoothed_votes_have_the_expected_shares_and_their_gradient_points_away_from_the_border():
    target = RandomizedSmoothing(0.25, samples=5000, epochs=0)(Half(), problem_rows(), seed=1)
    x = torch.tensor([[0.75, 0.1], [0.5, 0.9]])
    shares = target.query(x).scores.exp()
    expected = torch.tensor([[0.1587, 0.8413], [0.5, 0.5]])
    torch.testing.assert_close(shares, expected, atol=0.03, rtol=0)
    logits, gradient = target.differentiate(x, lambda logits: logits[:, 1])
    assert (gradient[:, 0] > 0).all() and gradient[:, 1].abs().max() == 0
    torch.testing.assert_close(logits.exp(), expected, atol=0.03, rtol=0)


def problem_rows():
    from secure_infer.defenses import Data

    return Data(torch.rand(20, 2), torch.zeros(20).long())


def test_noisy_training_raises_certified_radii():
    case = problem()
    radii = []
    for epochs in (0, 20):
        base = RandomizedSmoothing(0.6, epochs=epochs).base(case.net, case.data)
        found = certify(Smoothed(base, 0.6, 10), case.images, samples=300)
        radii.append(float((found.radii * (found.labels == case.labels)).mean()))
    assert radii[1] > max(radii[0], 0.1)
    with pytest.raises(InvalidInput, match="certified"):
        certify(Smoothed(case.net, 0.3, 10), case.images, samples=0)


@pytest.mark.parametrize(("kind", "strength"), [("bits", 2), ("jpeg", 30), ("median", 3), ("blur", 2)])
def test_transformations_keep_constants_and_bounds_and_have_gradients(kind, strength):
    layer = Transformed(kind, strength, Bounds(-1, 3))
    flat = torch.full((1, 3, 9, 7), -1.0)
    torch.testing.assert_close(layer(flat), flat, atol=0.05, rtol=0)
    torch.manual_seed(0)
    x = (torch.rand(2, 3, 9, 7) * 4 - 1).requires_grad_()
    found = layer(x)
    assert found.shape == x.shape and found.min() >= -1 - 1e-5 and found.max() <= 3 + 1e-5
    assert not torch.equal(found, x)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    torch.testing.assert_close(gradient.sum(), torch.tensor(float(x.numel())), rtol=1e-4, atol=0)


def test_bits_and_median_are_those_of_their_definitions():
    x = torch.rand(1, 1, 5, 5)
    assert set(Transformed("bits", 1, Bounds())(x).unique().tolist()) <= {0.0, 1.0}
    middle = Transformed("median", 3, Bounds())(x)[0, 0, 2, 2]
    assert middle == x[0, 0, 1:4, 1:4].flatten().median()


def test_bucket_refills_and_keys_do_not_share():
    now = [0.0]
    bucket = TokenBucket(10, 0.5, lambda: now[0])
    bucket.take("a", 10)
    bucket.take("b", 10)
    with pytest.raises(LimitExceeded) as caught:
        bucket.take("a", 2)
    assert caught.value.retry_after == pytest.approx(4)
    now[0] = 4.0
    bucket.take("a", 2)
    with pytest.raises(LimitExceeded) as caught:
        bucket.take("a", 11)
    assert caught.value.retry_after is None
    now[0] = 1e6
    bucket.take("a", 10)
    with pytest.raises(LimitExceeded):
        bucket.take("a", 1)
    assert list(bucket._left) == ["a"], "full buckets are forgotten"


def test_budget_counts_keys_and_time_and_bounds_what_an_attack_gets():
    assert QueryBudget(10, per_second=0.5, keys=3, seconds=9).queries == 42
    case = problem()
    target = QueryBudget(60)(case.net, case.data, access=Access.LABEL)
    with pytest.raises(LimitExceeded):
        evaluate(target, Noise(draws=20), case.images, Goal(case.labels))
    assert target.meter.queries <= 60
    with pytest.raises(UsageError, match="white box"):
        QueryBudget()(case.net, case.data, access=Access.WHITE_BOX)
    with pytest.raises(UsageError, match="adversary"):
        QueryBudget(keys=0)


def test_the_problem_is_what_the_tests_take_it_for():
    case = problem()
    assert NetworkTarget(case.net, tuple(case.images.shape[1:])).classes == CLASSES
    assert (case.net(case.images).argmax(1) == case.labels).all()
