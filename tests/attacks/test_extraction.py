"""Theft: budgets, access, and substitutes that are worth more than chance."""

import pytest
import torch
from torch import nn

from secure_infer import zoo
from secure_infer.attacks import Access, NetworkTarget
from secure_infer.attacks.extraction import Substitute, Training, assess, jacobian_substitute, knockoff
from secure_infer.errors import InvalidInput, LimitExceeded, NotApplicable
from secure_infer.nn.data import load_dataset

SHORT = Training(least_steps=300, rate=3e-3)


@pytest.fixture(scope="module")
def digits():
    data, net = load_dataset("digits"), zoo.load_model("digits-cnn-float").eval().requires_grad_(False)
    return net, torch.from_numpy(data.x_train), torch.from_numpy(data.x_test), torch.from_numpy(data.y_test)


def make() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def target(net: nn.Module, access: Access = Access.LABEL, budget: int | None = None) -> NetworkTarget:
    return NetworkTarget(net, (1, 8, 8), access=access, budget=budget)


def test_labels_alone_make_a_substitute_whose_examples_transfer_better_than_random_signs(digits):
    net, _, x, y = digits
    victim = target(net)
    stolen = jacobian_substitute(victim, x[-100:], make, queries=800, training=SHORT)
    assert stolen.queries == victim.meter.queries == 800 and victim.meter.gradients == 0
    theft = assess(stolen, victim, x[:300], y[:300], 0.25)
    shares = theft.shares()
    assert theft.n == 300 and 250 < theft.attacked <= 300
    assert shares["fidelity"][1][0] > 0.6
    assert min(shares[name][1][0] for name in ("transfer", "transfer_iterated")) > shares["random"][1][1]


def test_a_knockoff_from_probabilities_agrees_with_its_target(digits):
    net, pool, x, y = digits
    victim = target(net, Access.PROBABILITIES)
    stolen = knockoff(victim, pool, make, queries=400, training=SHORT)
    assert stolen.queries == victim.meter.queries == 400
    assert assess(stolen, victim, x, y, 0.25).shares()["fidelity"][1][0] > 0.8


def test_a_perfect_substitute_agrees_always(digits):
    net, _, x, y = digits
    theft = assess(Substitute(net, 0), target(net), x, y, 0.25)
    assert theft.agrees == theft.n and theft.right == theft.attacked


def test_augmentation_stays_within_bounds_and_spends_the_whole_budget_whatever_its_size(digits):
    asked = []

    class Watched(nn.Module):
        def forward(self, x):
            asked.append(x)
            return digits[0](x)

    stolen = jacobian_substitute(target(Watched()), digits[2][:7], make, queries=31, training=Training(1, 5))
    labeled = torch.cat(asked[1:])  # the first is the check of the outputs
    assert stolen.queries == len(labeled) == 31 and labeled.min() >= 0 and labeled.max() <= 1
    assert len(labeled.flatten(1).unique(dim=0)) > 20


def test_theft_without_access_budget_or_images_is_refused(digits):
    net, pool, x, _ = digits
    with pytest.raises(NotApplicable, match="knockoff"):
        knockoff(target(net), pool, make)
    with pytest.raises(LimitExceeded):
        jacobian_substitute(target(net, budget=50), x[:40], make, queries=80, training=Training(1, 1))
    with pytest.raises(InvalidInput, match="first images"):
        jacobian_substitute(target(net), x[:40], make, queries=39)
    with pytest.raises(InvalidInput) as caught:
        jacobian_substitute(target(net), x[:0], make, queries=0)
    assert [problem.where for problem in caught.value.problems] == ["queries", "seeds"]
