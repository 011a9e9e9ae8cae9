"""Score-based attacks: what they change, how they use their budget, and that they beat chance."""

import pytest
import torch

from secure_infer import zoo
from secure_infer.attacks import Access, FunctionTarget, Goal, NetworkTarget
from secure_infer.attacks.estimate import EstimatedPGD
from secure_infer.attacks.norms import size
from secure_infer.attacks.onepixel import OnePixel
from secure_infer.attacks.square import Square
from secure_infer.attacks.statistics import wilson
from secure_infer.nn.data import load_dataset


@pytest.fixture(scope="module")
def digits():
    """A trained network and the held-out images that it classifies rightly."""
    data, net = load_dataset("digits"), zoo.load_model("digits-cnn-float").eval().requires_grad_(False)
    x, y = torch.from_numpy(data.x_test), torch.from_numpy(data.y_test)
    right = net(x).argmax(1) == y
    return net, x[right], y[right]


def scores(net, x) -> NetworkTarget:
    return NetworkTarget(net, tuple(x.shape[1:]), access=Access.PROBABILITIES)


def share(net, found, y) -> int:
    return int((net(found).argmax(1) != y).sum())


@pytest.mark.parametrize("pixels", [1, 2])
def test_one_pixel_changes_as_many_pixels_of_all_channels(pixels):
    x, y = torch.rand(7, 3, 5, 4), torch.zeros(7, dtype=torch.int64)
    x[0] = 0.0
    x[1] = 1.0
    target = FunctionTarget(lambda x: torch.stack([x.flatten(1).sum(1), 0 * x[:, 0, 0, 0]], 1), (3, 5, 4), 2)
    found = OnePixel(radius=pixels, queries=90, population=30)(target, x, Goal(y))
    changed = (found != x).any(1).flatten(1).sum(1)
    assert (changed >= 1).all() and (changed <= pixels).all()
    assert target.meter.queries <= 7 * 90


def test_one_pixel_beats_random_pixels_by_their_intervals(digits):
    net, x, y = digits
    found = OnePixel(queries=600, population=60)(scores(net, x), x, Goal(y))
    assert ((found != x).flatten(1).sum(1) == 1).all()
    chance = OnePixel(queries=1, population=1)(scores(net, x), x, Goal(y))
    assert ((chance != x).flatten(1).sum(1) == 1).all()
    assert wilson(share(net, found, y), len(y))[0] > wilson(share(net, chance, y), len(y))[1]


@pytest.mark.parametrize(("norm", "radius"), [("linf", 0.15), ("l2", 0.8)])
def test_square_and_estimated_gradients_beat_random_signs_within_budget(digits, norm, radius):
    net, x, y = digits
    x, y = x[:60], y[:60]
    signs = 2.0 * torch.randint(2, x.shape, generator=torch.Generator().manual_seed(0)) - 1
    scale = radius if norm == "linf" else radius / x[0].numel() ** 0.5
    chance = share(net, (x + scale * signs).clamp(0, 1), y)
    for kind in (Square, EstimatedPGD):
        target = scores(net, x)
        found = kind(radius=radius, norm=norm, queries=300)(target, x, Goal(y))
        assert target.meter.queries <= 300 * len(x)
        assert size(found - x, norm).amax() <= radius * (1 + 1e-5)
        assert wilson(share(net, found, y), len(y))[0] > wilson(chance, len(y))[1], kind.name


@pytest.mark.parametrize("noise", ["normal", "signs"])
def test_estimated_gradient_points_along_the_true_one(noise):
    torch.manual_seed(0)
    net = torch.nn.Linear(30, 2)
    target, x = NetworkTarget(net, (30,), access=Access.LOGITS), torch.full((3, 30), 0.5)
    goal = Goal(torch.tensor([0, 1, 0]))
    found = EstimatedPGD(noise=noise)._gradient(target, x, goal, 600, torch.Generator().manual_seed(0))
    true = (net.weight[0] - net.weight[1]).detach() * torch.tensor([1.0, -1.0, 1.0])[:, None]
    assert (torch.cosine_similarity(found, true) > 0.95).all()


def test_square_is_as_strong_as_torchattacks(digits):
    torchattacks = pytest.importorskip("torchattacks")
    net, x, y = digits
    x, y = x[:100], y[:100]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = torchattacks.Square(net, norm="Linf", eps=0.12, n_queries=300, p_init=0.8, seed=0)(x, y)
    found = Square(radius=0.12, queries=300)(scores(net, x), x, Goal(y))
    assert share(net, found, y) >= share(net, theirs, y) - 5
