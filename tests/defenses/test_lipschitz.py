"""The Lipschitz bound: exact where it says so, above every slope that is found, refused where none is known."""

import pytest
import torch
from torch import nn

from secure_infer.attacks import NetworkTarget
from secure_infer.attacks.ddn import DDN
from secure_infer.attacks.evaluate import evaluate
from secure_infer.attacks.goal import Goal
from secure_infer.defenses.lipschitz import greatest_slope, lipschitz_bound
from secure_infer.errors import UnsupportedNetwork
from tests.defenses.problem import problem


def matrix_norm(layer: nn.Module, shape: tuple[int, ...]) -> float:
    """Of a linear map, from its matrix, column by column."""
    basis = torch.eye(torch.Size(shape).numel(), dtype=torch.float64).view(-1, *shape)
    offset = layer(torch.zeros(1, *shape, dtype=torch.float64))
    return float(torch.linalg.matrix_norm((layer(basis) - offset).flatten(1), ord=2))


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize(("mode", "padding"), [("zeros", 0), ("zeros", 1), ("zeros", 3), ("circular", 1)])
@pytest.mark.parametrize("size", [(6, 6), (7, 9)])
def test_convolutions_are_never_below_their_norm_and_close_to_it(stride, groups, dilation, mode, padding, size):
    torch.manual_seed(stride)
    layer = nn.Conv2d(
        2, 4, 3, stride, padding, dilation, groups=groups, padding_mode=mode, dtype=torch.float64
    )  # fmt: skip
    with torch.no_grad():
        true = matrix_norm(layer, (2, *size))
        bound = lipschitz_bound(nn.Sequential(layer.float()), (2, *size)).total
    assert true * (1 - 1e-5) <= bound <= true * 4


@pytest.mark.parametrize("stride", [1, 2])
def test_circular_convolutions_are_exact(stride):
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 5, 3, stride, 1, padding_mode="circular", dtype=torch.float64)
    with torch.no_grad():
        true = matrix_norm(layer, (3, 8, 8))
        assert lipschitz_bound(nn.Sequential(layer), (3, 8, 8)).total == pytest.approx(true, rel=1e-6)


@pytest.mark.parametrize(
    "layer",
    [nn.AvgPool2d(2), nn.AvgPool2d(3, 1, 1), nn.AvgPool2d(3, 2), nn.BatchNorm2d(2), nn.Conv2d(2, 2, (3, 1), (1, 2))],
    ids=str,
)
def test_other_linear_layers_are_never_below_their_norm(layer):
    if isinstance(layer, nn.BatchNorm2d):
        layer.running_var.copy_(torch.tensor([0.1, 2.0]))
    net = nn.Sequential(layer.double().eval())
    with torch.no_grad():
        assert matrix_norm(layer, (2, 7, 7)) <= lipschitz_bound(net, (2, 7, 7)).total * (1 + 1e-6)


@pytest.mark.parametrize("layer", [nn.MaxPool2d(2), nn.MaxPool2d(3, 1), nn.LeakyReLU(2.0), nn.Sigmoid()], ids=str)
def test_other_layers_are_never_below_the_slopes_that_are_met(layer):
    torch.manual_seed(0)
    x, step = torch.randn(200, 2, 6, 6).double(), 0.01 * torch.randn(200, 2, 6, 6).double()
    bound = lipschitz_bound(nn.Sequential(layer), (2, 6, 6)).total
    slope = (layer(x + step) - layer(x)).flatten(1).norm(dim=1) / step.flatten(1).norm(dim=1)
    assert slope.max() <= bound * (1 + 1e-9)


def test_holds_on_a_trained_network_and_its_certificate_against_an_attack():
    case = problem()
    target = NetworkTarget(case.net, tuple(case.images.shape[1:]))
    bound = lipschitz_bound(case.net, target.shape)
    slopes = greatest_slope(target, case.data.images)
    assert slopes.max() <= bound.total <= 100 * slopes.max()
    radii = bound.certified_radius(target.query(case.images).scores, case.labels)
    found = evaluate(target, DDN(steps=100), case.images, Goal(case.labels)).distortion.l2
    assert (radii > 0).any() and (radii <= found + 1e-6).all()


def test_a_layer_that_is_used_twice_counts_twice():
    layer = nn.Linear(4, 4, bias=False)
    once, twice = (lipschitz_bound(nn.Sequential(*[layer] * k), (4,)).total for k in (1, 2))
    assert twice == pytest.approx(once**2)


def test_layers_without_a_bound_are_all_listed():
    net = nn.Sequential(nn.Softmax(1), nn.Sequential(nn.Linear(4, 4), nn.GELU()))
    with pytest.raises(UnsupportedNetwork) as caught:
        lipschitz_bound(net, (4,))
    assert [problem.where for problem in caught.value.problems] == ["0", "1.1"]
    odd = nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect")
    with pytest.raises(UnsupportedNetwork, match="Conv2d"):
        lipschitz_bound(nn.Sequential(odd), (1, 8, 8))
