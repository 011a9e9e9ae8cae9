"""What `check` lists and what `fix` replaces, for each protocol."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secure_infer.errors import UsageError
from secure_infer.nn import ChebyshevActivation, PolynomialActivation, Sign, Square, quant_identity, quant_relu
from secure_infer.nn.check import check
from secure_infer.nn.fix import fix

PROTOCOLS = ("clear", "tfhe", "ckks", "mpc")
X = np.random.default_rng(0).normal(size=(16, 2, 6, 6))


def around(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), layer, nn.Flatten(), nn.LazyLinear(3))


CASES = [
    (nn.ReLU, "ckks"),
    (nn.SiLU, "ckks"),
    (lambda: nn.MaxPool2d(2), "ckks"),
    (Sign, "ckks"),
    (lambda: quant_relu(3), "ckks"),
    (lambda: quant_identity(3), "ckks"),
    (lambda: nn.AvgPool2d(2), ""),
    (Square, ""),
    (PolynomialActivation, ""),
    (lambda: ChebyshevActivation("relu", 3, 2.0), ""),
    (nn.Dropout, ""),
    (lambda: nn.BatchNorm2d(2), ""),
    (lambda: nn.GroupNorm(1, 2), "clear tfhe ckks mpc"),
    (nn.PReLU, "clear tfhe ckks mpc"),
    (lambda: nn.BatchNorm2d(2, track_running_stats=False), "clear tfhe ckks mpc"),
    (lambda: nn.Softmax(1), "clear tfhe ckks mpc"),
    (lambda: nn.AdaptiveAvgPool2d(4), "clear tfhe ckks mpc"),
    (lambda: nn.AvgPool2d(2, padding=1, count_include_pad=False), "clear tfhe ckks mpc"),
    (lambda: nn.MaxPool2d(2, dilation=2), "clear tfhe ckks mpc"),
]


@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning", "ignore:Named tensors:UserWarning")
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("case", CASES)
def test_check(case, protocol) -> None:
    make, refused = case
    net = around(make())
    net(torch.from_numpy(X).float())
    problems = check(net, protocol, (2, 6, 6))
    assert bool(problems) == (protocol in refused.split())
    assert all(problem.where == "1" and problem.what and problem.fix for problem in problems)
    assert net.training


class Stranger(nn.Module):
    """A network with modules, shared modules and functional calls."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.relu = self.same = nn.ReLU(inplace=True)
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.conv1(x)))
        x = F.max_pool2d(F.dropout(F.gelu(self.same(self.conv2(x))), 0.2, self.training), kernel_size=3)
        return torch.log_softmax(self.head(torch.flatten(x, 1)), 1)


def test_fix_makes_a_network_compile_and_leaves_the_original_alone() -> None:
    net = Stranger()
    kept = copy.deepcopy(net.state_dict())
    assert [problem.where for problem in check(net, "ckks")] == ["relu", "pool", "same", "gelu", "max_pool2d"] or [
        problem.where for problem in check(net, "ckks")
    ] == ["relu", "pool", "relu", "gelu", "max_pool2d"]
    fixed = fix(net, "ckks", X)
    assert check(fixed, "ckks", (2, 6, 6)) == []
    assert check(net, "ckks")
    assert all(torch.equal(value, kept[name]) for name, value in net.state_dict().items())
    kinds = [type(layer).__name__ for layer in fixed.modules()]
    assert kinds.count("PolynomialActivation") == 2 and kinds.count("AvgPool2d") == 2
    assert kinds.count("Dropout") == 1 and fixed.training
    F.nll_loss(fixed(torch.from_numpy(X).float()), torch.zeros(16, dtype=torch.long)).backward()


def test_fixed_network_stays_close_on_the_calibrated_range() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.SiLU(), nn.Linear(8, 3)).eval()
    x = np.random.default_rng(0).normal(size=(200, 6))
    data = torch.from_numpy(x).float()
    fixed = [fix(net, "ckks", x, degree=degree) for degree in (2, 4, 8)]
    errors = [float((each(data) - net(data)).abs().max().detach()) for each in fixed]
    assert errors[0] < 0.2 and errors[2] < 0.01 and errors == sorted(errors, reverse=True)


def test_radius_comes_from_the_calibration_data() -> None:
    net = nn.Sequential(nn.ReLU())
    assert fix(net, "ckks", np.array([[1.0, -5.0]]))[0].radius == pytest.approx(5.5)
    assert fix(net, "ckks", radius=7.0)[0].radius == 7
    assert isinstance(fix(net, "ckks", degree=6)[0], ChebyshevActivation)
    assert isinstance(fix(nn.ReLU(), "ckks"), PolynomialActivation)


@pytest.mark.filterwarnings("ignore:Named tensors:UserWarning")
def test_brevitas_activations_become_polynomials() -> None:
    fixed = fix(nn.Sequential(quant_identity(4), nn.Linear(2, 3), quant_relu(3)), "ckks")
    assert [type(layer) for layer in fixed] == [nn.Identity, nn.Linear, PolynomialActivation]


@pytest.mark.parametrize("protocol", ["clear", "tfhe", "mpc"])
def test_only_what_must_change_changes(protocol) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.PReLU(init=0.3), nn.RReLU(), nn.Linear(4, 2)).eval()
    x = torch.randn(9, 3)
    fixed = fix(net, protocol)
    assert [type(layer).__name__ for layer in fixed] == ["Linear", "GELU", "LeakyReLU", "LeakyReLU", "Linear"]
    torch.testing.assert_close(fixed(x), net(x))
    assert check(fixed, protocol, (3,)) == []


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_untraceable_and_misshapen_networks_are_problems() -> None:
    (problem,) = check(Branching(), "tfhe")
    assert "traced" in problem.what and problem.fix
    (problem,) = check(nn.Linear(3, 2), "tfhe", (4,))
    assert problem.where == "input"
    (problem,) = check(nn.Linear(3, 2), "tfhe", (2, 2, 3))
    assert "flatten" in problem.fix


@pytest.mark.parametrize(
    "call",
    [
        lambda: check(nn.Linear(2, 2), "rsa"),
        lambda: fix(nn.Linear(2, 2), "rsa"),
        lambda: check("net", "tfhe"),
        lambda: fix("net", "tfhe"),
        lambda: fix(nn.ReLU(), "ckks", degree=1),
        lambda: fix(nn.ReLU(), "ckks", radius=0),
        lambda: fix(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), "ckks", np.zeros((4, 5))),
    ],
)
def test_wrong_use(call) -> None:
    with pytest.raises(UsageError):
        call()
