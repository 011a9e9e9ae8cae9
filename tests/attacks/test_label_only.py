"""Label-only attacks: budgets, the search of the boundary, curves, and how they compare with one another and a peer."""

import pytest
import torch
from torch import nn

from secure_infer import zoo
from secure_infer.attacks import Access, FunctionTarget, Goal, NetworkTarget
from secure_infer.attacks.curve import Curve
from secure_infer.attacks.frequency import LowFrequencies
from secure_infer.attacks.geoda import GeoDA
from secure_infer.attacks.hopskipjump import HopSkipJump, boundary_gradient
from secure_infer.attacks.line import Search, straight
from secure_infer.attacks.norms import size, unit
from secure_infer.attacks.surfree import SurFree, _Walk
from secure_infer.errors import InvalidInput, LimitExceeded
from secure_infer.nn.data import load_dataset

KINDS = [HopSkipJump, GeoDA, SurFree]


@pytest.fixture(scope="module")
def digits():
    """A trained network and 40 held-out images that it classifies rightly."""
    data, net = load_dataset("digits"), zoo.load_model("digits-cnn-float").eval().requires_grad_(False)
    x, y = torch.from_numpy(data.x_test), torch.from_numpy(data.y_test)
    right = (net(x).argmax(1) == y).nonzero().squeeze(1)[:40]
    return net, x[right], y[right]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def plane(offset: float = 0.6, features: int = 20) -> FunctionTarget:
    """Class 1 where the mean feature exceeds the offset."""
    return FunctionTarget(lambda x: (x.flatten(1).mean(1) > offset).long(), (features,), 2, access=Access.LABEL)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("queries", [1, 2, 37, 200])
def test_no_image_asks_more_than_its_budget_and_the_target_s_own_is_shared(kind, queries):
    target, x = plane(), 0.5 * torch.rand(5, 20)
    kind(queries=queries)(target, x, Goal(torch.zeros(5, dtype=torch.int64)))
    assert 5 <= target.meter.queries <= 5 * queries
    target.meter.queries, target.meter.budget = 0, 5 * 20
    kind(queries=1000)(target, x, Goal(torch.zeros(5, dtype=torch.int64)))
    assert 5 <= target.meter.queries <= 5 * 20
    target.meter.queries, target.meter.budget = 0, 4
    with pytest.raises(LimitExceeded, match="one query an image"):
        kind()(target, x, Goal(torch.zeros(5, dtype=torch.int64)))


@pytest.mark.parametrize("kind", KINDS)
def test_curves_never_rise_and_end_at_the_distance_that_is_returned(kind):
    target, x = plane(), 0.5 * torch.rand(6, 20)
    curve = Curve([1, 300, 20, 100, 10_000])
    found = kind(queries=300, curve=curve)(target, x, Goal(torch.zeros(6, dtype=torch.int64)))
    assert curve.at == (1, 20, 100, 300, 10_000)
    assert curve.distances[:, 0].isinf().all() and curve.distances[:, 1].isfinite().all()
    assert (curve.distances[:, 1:].diff(dim=1) <= 0).all()
    assert curve.distances[:, 3].mean() < curve.distances[:, 1].mean()
    torch.testing.assert_close(curve.distances[:, 4], size(found - x, "l2"))
    assert curve.medians()[4] == pytest.approx(float(curve.distances[:, 4].sort().values[2:4].mean()))


@pytest.mark.parametrize("kind", KINDS)
def test_distance_to_a_plane_is_found_within_a_tenth(kind):
    target, x = plane(), 0.3 + 0.2 * torch.rand(8, 20)
    found = kind(queries=1500)(target, x, Goal(torch.zeros(8, dtype=torch.int64)))
    exact = (0.6 - x.mean(1)) * 20**0.5
    ratio = size(found - x, "l2") / exact
    assert ratio.min() >= 1 - 1e-4 and ratio.median() < 1.1


@pytest.mark.parametrize("kind", [HopSkipJump, GeoDA])
def test_distance_to_a_plane_in_linf(kind):
    target, x = plane(), 0.3 + 0.2 * torch.rand(8, 20)
    found = kind(queries=1500, norm="linf")(target, x, Goal(torch.zeros(8, dtype=torch.int64)))
    ratio = size(found - x, "linf") / (0.6 - x.mean(1))
    assert ratio.min() >= 1 - 1e-4 and ratio.median() < 1.15


def test_curve_counts_every_query_of_a_known_sequence():
    search = Search(plane(), torch.zeros(2, 20), Goal(torch.zeros(2, dtype=torch.int64)), "l2", 5, Curve([1, 2, 3, 4]))
    points = torch.tensor([1.0, 0.2, 0.8]).view(1, 3, 1).expand(2, 3, 20)
    search._own_labels()
    reached = search.reaches(torch.tensor([1]), points[:1])
    assert reached.tolist() == [[True, False, True]] and search.spent.tolist() == [1, 4]
    expected = torch.tensor([torch.inf, 1.0, 1.0, 0.8]) * 20**0.5
    torch.testing.assert_close(search.curve.distances[1], expected)
    assert search.curve.distances[0].isinf().all()


@pytest.mark.parametrize("parallel", [1, 3, 7])
def test_bisection_ends_just_behind_the_boundary(parallel):
    x = torch.zeros(3, 20)
    search = Search(plane(), x, Goal(torch.zeros(3, dtype=torch.int64)), "l2", 1000)
    path = straight(search, torch.full_like(x, 0.9))
    position = search.bisect(torch.arange(3), path, 1e-3, parallel)
    assert (position * 0.9 > 0.6).all() and (position * 0.9 < 0.6 + 1.1e-3).all()


def test_boundary_gradient_points_along_the_normal():
    x = torch.full((2, 20), 0.6)
    search = Search(plane(), x, Goal(torch.zeros(2, dtype=torch.int64)), "l2", 10_000)
    found = boundary_gradient(search, torch.arange(2), x, torch.full((2,), 0.1), 2000, torch.Generator().manual_seed(0))
    assert (unit(found).sum(1) / 20**0.5 > 0.98).all()


def smooth(side: int = 64, offset: float = 1.0) -> tuple[FunctionTarget, torch.Tensor]:
    """Class 1 beyond a plane whose normal is one of the lowest spatial frequencies; and that normal, of size 1."""
    space = LowFrequencies(torch.zeros(1, 1, side, side), 1.0)
    coefficients = torch.zeros(1, *space.shape)
    coefficients[0, 0, 1, 2] = 1
    normal = space.synthesize(coefficients)[0]
    target = FunctionTarget(
        lambda x: ((x - 0.5) * normal).flatten(1).sum(1).gt(offset).long(), normal.shape, 2, access=Access.LABEL
    )
    return target, normal


@pytest.mark.parametrize(("kind", "ratio"), [(GeoDA, 1.5), (SurFree, 1.4)])
def test_low_frequencies_are_found_in_large_images_too(kind, ratio):
    target, normal = smooth()
    x, starts = torch.full((6, *normal.shape), 0.5), (0.5 + 0.05 * torch.randn(6, *normal.shape) + 2 * normal)
    found = kind(queries=500, starts=starts.clamp(0, 1))(target, x, Goal(torch.zeros(6, dtype=torch.int64)))
    assert size(found - x, "l2").median() < ratio, "the plane is at a distance of 1"


def test_lower_counts_the_coefficients_below_each():
    lower = LowFrequencies(torch.zeros(1, 3, 10, 20), 0.5).lower()
    assert lower.shape == (3, 5, 10) and lower[0, 0, 0] == 0
    torch.testing.assert_close(lower[1, 2, 3], torch.tensor(3 * 2 * 4.0))
    assert int((lower < 24).sum()) == 3 * 2 * 4 and int((lower < 150).sum()) == lower.numel()
    assert not LowFrequencies(torch.zeros(1, 7), 0.5).lower().any()


def test_directions_are_unlike_the_last_ones_and_reach_higher_frequencies_one_by_one():
    target, normal = smooth()
    x = torch.full((2, *normal.shape), 0.5)
    search = Search(target, x, Goal(torch.zeros(2, dtype=torch.int64)), "l2", 10)
    search.start(torch.Generator().manual_seed(0), x + 2 * normal)
    attack = SurFree(lowest=30, growth=3, memory=12)
    walk = _Walk(attack, search, torch.arange(2), torch.Generator().manual_seed(0))
    made = [walk.past[:, 0].clone()]
    for plane in range(1, 20):
        walk._directions(torch.arange(2))
        made.append(walk.past[:, plane % 12].clone())
    products = torch.einsum("and,bnd->nab", torch.stack(made), torch.stack(made))
    distance = (torch.arange(20)[:, None] - torch.arange(20)).abs()
    torch.testing.assert_close(products[:, distance == 0], torch.ones(2, 20), atol=1e-4, rtol=0)
    assert products[:, (distance > 0) & (distance <= 12)].abs().max() < 1e-4
    assert products[:, distance > 12].abs().max() > 0.01, "older ones are forgotten"
    lower = walk.lower.flatten()
    reached = [lower[coefficients[0] != 0].max() for coefficients in made]
    assert all(top < 30 + 3 * plane for plane, top in enumerate(reached)) and reached[-1] > reached[0]


def test_a_targeted_attack_borrows_an_image_of_the_class_that_is_wanted(digits):
    net, x, y = digits
    target, wanted = NetworkTarget(net, tuple(x.shape[1:]), access=Access.LABEL), (y + 1) % 10
    assert set(wanted.tolist()) <= set(y.tolist()), "each class that is wanted is in the batch"
    found = SurFree(queries=200)(target, x, Goal(y, wanted))
    assert (net(found).argmax(1) == wanted).all()


def test_starts_are_used_and_must_fit():
    x = 0.5 * torch.rand(3, 20)
    goal, starts, curve = Goal(torch.zeros(3, dtype=torch.int64)), torch.full((3, 20), 0.7), Curve([2])
    HopSkipJump(queries=50, starts=starts, curve=curve)(plane(), x, goal)
    torch.testing.assert_close(curve.distances[:, 0], size(starts - x, "l2"))
    with pytest.raises(InvalidInput, match="starts"):
        HopSkipJump(starts=starts[:2])(plane(), x, goal)
    with pytest.raises(InvalidInput, match="curve"):
        Curve([0, 5])


@pytest.mark.full
def test_surfree_stays_below_hopskipjump_at_500_and_1000_queries():
    data, net = load_dataset("fashion-mnist"), zoo.load_model("fashion-cnn-float").eval().requires_grad_(False)
    x, y, medians = torch.from_numpy(data.x_test[:40]), torch.from_numpy(data.y_test[:40]), {}
    for kind in (HopSkipJump, SurFree):
        target, curve = NetworkTarget(net, tuple(x.shape[1:]), access=Access.LABEL), Curve([500, 1000])
        kind(queries=1000, curve=curve)(target, x, Goal(y))
        medians[kind] = curve.medians()
    assert all(ours < other for ours, other in zip(medians[SurFree], medians[HopSkipJump], strict=True)), medians


def beside_foolbox(net, x, y, norm):
    """Geometric mean distance of our HopSkipJump, and Foolbox's at as many queries from the same starts.

    Foolbox is asked image by image, as it comes less far in batches; means vary less than medians of so few images.
    """
    foolbox = pytest.importorskip("foolbox")
    search = Search(NetworkTarget(net, tuple(x.shape[1:]), access=Access.LABEL), x, Goal(y), "l2", 100)
    search.start(torch.Generator().manual_seed(0))
    theirs, rows = [], 0

    def count(module, inputs):
        nonlocal rows
        rows += len(inputs[0])

    handle = net.register_forward_pre_hook(count)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        peer = foolbox.attacks.HopSkipJumpAttack(steps=4, constraint=norm)
        model = foolbox.PyTorchModel(net, bounds=(0, 1))
        for image, label, start in zip(x.split(1), y.split(1), search.best.split(1), strict=True):
            theirs.append(peer(model, image, label, starting_points=start, epsilons=None)[1])
    handle.remove()
    curve = Curve([rows // len(x)])
    target = NetworkTarget(net, tuple(x.shape[1:]), access=Access.LABEL)
    HopSkipJump(norm=norm, queries=curve.at[0], starts=search.best, curve=curve)(target, x, Goal(y))
    return (float(distances.log().mean().exp()) for distances in (curve.distances, size(torch.cat(theirs) - x, norm)))


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.filterwarnings("ignore")
def test_hopskipjump_is_no_worse_than_foolbox_at_as_many_queries(digits, norm):
    ours, theirs = beside_foolbox(*digits, norm)
    assert ours <= 1.02 * theirs


@pytest.mark.filterwarnings("ignore")
def test_hopskipjump_is_no_worse_than_foolbox_on_large_images():
    net = nn.Sequential(nn.Flatten(), nn.Linear(112 * 92, 2)).requires_grad_(False)
    x = 0.3 + 0.4 * torch.rand(8, 1, 112, 92)
    net[1].bias += torch.stack([(net(x)[:, 1] - net(x)[:, 0]).amax() + 0.05, torch.tensor(0.0)])
    ours, theirs = beside_foolbox(net.eval(), x, net(x).argmax(1), "l2")
    assert ours <= 1.02 * theirs
