"""Post-training quantization, CKKS, precision options, and what is refused, with all problems at once."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secure_infer.errors import InvalidInput, UnsupportedNetwork, UsageError
from secure_infer.frontends import to_graph
from secure_infer.graph import INPUT, interpret, interpret_real
from secure_infer.nn import PolynomialActivation, Square, quant_identity, quant_relu, range_penalty
from secure_infer.nn.fix import fix
from tests.frontends.networks import error, outputs, randomized

Data = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def digits() -> Data:
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    x, y = (data.images[order] / 16)[:, None], data.target[order]
    return x[:1200], y[:1200], x[1200:], y[1200:]


def train(net: nn.Module, digits: Data, epochs: int, rate: float = 3e-3) -> nn.Module:
    x, y = torch.from_numpy(digits[0]).float(), torch.from_numpy(digits[1])
    optimizer = torch.optim.Adam(net.parameters(), rate)
    net.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(64):
            loss = F.cross_entropy(net(x[batch]), y[batch]) + 0.1 * range_penalty(net)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval()


@pytest.fixture(scope="module")
def stranger(digits: Data) -> nn.Module:
    """A small float network trained without any thought of encryption."""
    torch.manual_seed(0)
    return train(
        nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(64, 10),
        ),
        digits,
        epochs=10,
    )


def accuracy(net: nn.Module, digits: Data) -> float:
    with torch.no_grad():
        return float((net(torch.from_numpy(digits[2]).float()).argmax(1).numpy() == digits[3]).mean())


def graph_accuracy(net: nn.Module, digits: Data, protocol: str, **options: object) -> float:
    graph = to_graph(net, digits[0][:300], protocol, **options)
    evaluate = interpret_real if "Polynomial" in graph.kinds else interpret
    found = graph.dequantize(evaluate(graph, graph.quantize(digits[2])))
    return float((found.argmax(axis=1) == digits[3]).mean())


@pytest.mark.parametrize(
    ("protocol", "n_bits", "points"),
    [("tfhe", None, 3), ("mpc", None, 2), ("clear", None, 2), ("tfhe", 4, 4), ("tfhe", 5, 2), ("tfhe", 6, 2)],
)
def test_quantization_after_training_costs_few_points(
    stranger: nn.Module, digits: Data, protocol: str, n_bits: int | None, points: int
) -> None:
    exact = accuracy(stranger, digits)
    assert exact > 0.95
    assert graph_accuracy(stranger, digits, protocol, n_bits=n_bits) >= exact - points / 100


def test_the_path_to_ckks(stranger: nn.Module, digits: Data) -> None:
    net = train(fix(stranger, "ckks", digits[0][:300]), digits, epochs=3, rate=1e-3)
    exact = accuracy(net, digits)
    assert exact > 0.93
    for protocol in ("ckks", "mpc"):
        assert graph_accuracy(net, digits, protocol) >= exact - 0.01
    assert graph_accuracy(net, digits, "tfhe", n_bits=6) >= exact - 0.04


@pytest.mark.parametrize("activation", [PolynomialActivation, Square])
@pytest.mark.parametrize("depth", [1, 2])
def test_wide_polynomial_networks_stay_inside_62_bits(activation: type[nn.Module], depth: int) -> None:
    torch.manual_seed(0)
    x = np.random.default_rng(0).uniform(0, 1, (64, 1, 28, 28))
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs in (784, 64)[:depth]:
        layers += [nn.Linear(inputs, 64), nn.BatchNorm1d(64), activation()]
    net = nn.Sequential(*layers, nn.Linear(64, 10))
    for _ in range(30):
        net(torch.from_numpy(x).float())
    assert error(net.eval(), x, "ckks") < 0.01


def test_deep_polynomial_network() -> None:
    torch.manual_seed(0)
    x = np.random.default_rng(0).uniform(0, 1, (32, 1, 12, 12))
    layers: list[nn.Module] = []
    for channels in (1, 6, 6):
        layers += [nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6), PolynomialActivation(), nn.AvgPool2d(2)]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(6, 4))
    for _ in range(30):
        net(torch.from_numpy(x).float())
    assert error(net.eval(), x, "ckks") < 0.01


def test_too_high_a_degree_is_refused_rather_than_wrong() -> None:
    torch.manual_seed(0)
    x = np.random.default_rng(0).uniform(0, 1, (32, 784))
    net = nn.Sequential(
        *(
            layer
            for size in (784, 64, 64)
            for layer in (nn.Linear(size, 64), PolynomialActivation((0, 1, 0, 0, 0, 0.3)))
        )
    )
    with pytest.raises(UnsupportedNetwork, match="leave no precision"):
        to_graph(net.eval(), x, "ckks")


def test_residual_network_with_functional_calls() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.norm1, self.norm2, self.down = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.norm1(self.conv1(x)))
            y = F.relu(self.norm2(self.conv2(x)) + x)
            z = F.relu(self.down(y) + y)
            return self.head(F.adaptive_avg_pool2d(z, 1).flatten(1))

    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(64, 2, 8, 6))
    net = randomized(Net(), x)
    assert error(net, x, "clear", n_bits=10) < 0.02
    assert error(net, x, "tfhe") < 0.5
    quantized = nn.Sequential(quant_identity(4), nn.Conv2d(2, 4, 3), quant_relu(3), nn.Flatten(), nn.Linear(96, 2))
    assert error(randomized(quantized, x), x, "mpc") < 0.1


def test_the_input_follows_the_data_and_the_network() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 2)).eval()
    x = np.random.default_rng(0).uniform(0, 3, (20, 6))
    assert (to_graph(net, x, "tfhe").input.low, to_graph(net, x, "tfhe").input.bits) == (0, 4)
    assert to_graph(net, x - 1, "mpc").input.low < 0
    assert to_graph(net, x, "tfhe", n_bits={"input": 3}).input.bits == 3
    own = randomized(nn.Sequential(nn.Flatten(), quant_identity(4, signed=False), nn.Linear(6, 2)), x)
    graph = to_graph(own, x, "clear")
    assert (graph.input.low, graph.input.high) == (0, 15)
    assert graph.users(INPUT)[0].kind == "Linear"


def test_agreement_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="secure_infer"):
        to_graph(nn.Linear(3, 2).eval(), np.random.default_rng(0).normal(size=(9, 3)), "clear")
    assert "same greatest output" in caplog.text


def test_the_network_is_left_as_it_was() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.Linear(4, 2)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    to_graph(net, np.zeros((4, 3)), "clear")
    assert net.training
    assert all(
        torch.equal(value, before[name]) and value.dtype == torch.float32 for name, value in net.state_dict().items()
    )


def test_all_problems_are_listed() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.act, self.pool = nn.GroupNorm(1, 2), nn.ReLU(), nn.MaxPool2d(2)

        def forward(self, x: Tensor) -> Tensor:
            return torch.softmax(torch.sin(self.pool(self.act(self.norm(x)))), 1).flatten(1) * 2

    with pytest.raises(UnsupportedNetwork) as caught:
        to_graph(Net(), np.zeros((3, 2, 4, 4)), "ckks")
    assert [problem.where for problem in caught.value.problems] == ["norm", "act", "pool", "sin"]
    assert all(problem.fix for problem in caught.value.problems)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("net", "x", "expected"),
    [
        (nn.Linear(3, 2), np.zeros((4, 5)), InvalidInput),
        (nn.Linear(3, 2), np.full((4, 3), np.nan), InvalidInput),
        (nn.Linear(3, 2), np.zeros((0, 3)), InvalidInput),
        (nn.Linear(3, 2), np.array([["a", "b", "c"]]), InvalidInput),
        (nn.Linear(3, 2), np.zeros((4, 7, 3)), InvalidInput),
        (Branching(), np.zeros((4, 3)), UnsupportedNetwork),
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), np.zeros((4, 1, 5, 5)), UnsupportedNetwork),
        (nn.AdaptiveAvgPool2d(2), np.zeros((4, 1, 5, 5)), UnsupportedNetwork),
        (nn.AvgPool2d(2, ceil_mode=True), np.zeros((4, 1, 5, 5)), UnsupportedNetwork),
        (nn.AvgPool2d(2, padding=1, count_include_pad=False), np.zeros((4, 1, 6, 6)), UnsupportedNetwork),
        (nn.MaxPool2d(2, dilation=2), np.zeros((4, 1, 5, 5)), UnsupportedNetwork),
        (nn.BatchNorm1d(3, track_running_stats=False), np.zeros((4, 3)), UnsupportedNetwork),
        (nn.Sequential(nn.Softmax(1), nn.Linear(3, 2)), np.zeros((4, 3)), UnsupportedNetwork),
        (nn.Linear(3, 2), np.zeros((4, 1, 2, 3)), UnsupportedNetwork),
        (nn.LSTM(3, 2), np.zeros((4, 3)), UnsupportedNetwork),
        ("a string", np.zeros((4, 3)), UnsupportedNetwork),
    ],
)
def test_refused(net: nn.Module, x: np.ndarray, expected: type[Exception]) -> None:
    with pytest.raises(expected) as caught:
        to_graph(net, x, "tfhe")
    assert caught.value.problems


@pytest.mark.parametrize(
    "options",
    [
        {"protocol": "rsa"},
        {"n_bits": 0},
        {"n_bits": 40},
        {"n_bits": {"bias": 3}},
        {"n_bits": {"input": True}},
        {"n_bits": {"weights": "4"}},
    ],
)
def test_wrong_options(options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        to_graph(nn.Linear(3, 2), np.zeros((4, 3)), **{"protocol": "tfhe", **options})


def test_a_subclass_with_its_own_forward_is_not_mistaken_for_its_base() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    x = np.random.default_rng(0).normal(size=(30, 3))
    net = Doubled(3, 2).eval()
    expected, found, spread = outputs(net, to_graph(net, x, "clear"), x)
    assert np.abs(found - expected).max() < 0.02 * spread
