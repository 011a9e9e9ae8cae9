"""Networks as strangers bring them: dead channels, parameters in arithmetic, layers of several results, odd arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secure_infer as si
from secure_infer.errors import InvalidInput, UnsupportedNetwork, UsageError
from secure_infer.frontends import to_graph
from secure_infer.graph import interpret

RNG = np.random.default_rng(4)
IMAGES = np.abs(RNG.normal(size=(48, 1, 7, 7)))
ROWS = RNG.normal(size=(48, 6))


def _error(net: nn.Module, x: Any, protocol: str = "clear") -> float:
    graph = to_graph(net, x, protocol)
    with torch.no_grad():
        expected = net.eval().double()(torch.as_tensor(x)).numpy()
    found = graph.dequantize(interpret(graph, graph.quantize(x)))
    return float(np.abs(found - expected).mean() / expected.std())


@pytest.mark.parametrize("gain", [0.0, 1e-12])
@pytest.mark.parametrize("reader", [nn.Conv2d(4, 4, 3, padding=1), nn.AvgPool2d(3, 1, 1)])
def test_a_channel_without_gain_keeps_its_shift_off_the_zero_padding(reader: nn.Module, gain: float) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    with torch.no_grad():
        norm.weight[::2], norm.bias[:] = gain, torch.tensor([2.0, -1.0, -3.0, 1.0])
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), norm, reader, nn.Flatten(), nn.Linear(100, 3))
    assert _error(net, IMAGES) < 0.02
    with torch.no_grad():
        norm.weight[:] = gain
    # Then only the bias is left: the output is constant, and right.
    graph = to_graph(net, IMAGES, "clear")
    expected = net.eval().double()(torch.as_tensor(IMAGES)).detach().numpy()
    assert np.allclose(graph.dequantize(interpret(graph, graph.quantize(IMAGES))), expected, atol=1e-2)


class _Standardized(nn.Module):
    """Parameters and buffers of one number a feature, in plain arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.linspace(-1, 1, 6))
        self.register_buffer("deviation", torch.linspace(0.5, 2, 6)[None])
        self.layer, self.bias = nn.Linear(6, 3), nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer((x - self.mean) / self.deviation) + self.bias  # type: ignore[no-any-return]


def test_constants_of_one_number_a_feature() -> None:
    torch.manual_seed(0)
    assert si.check(_Standardized(), "clear", (6,)) == []
    assert _error(_Standardized(), ROWS) < 0.02


def test_a_vector_of_the_image_width_is_no_constant_of_channels() -> None:
    class Columns(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.tensor([0.0, 1.0, 2.0, 3.0])

    with pytest.raises(UnsupportedNetwork, match="constant"):
        to_graph(Columns(), RNG.normal(size=(8, 4, 4, 4)), "clear")


class _Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.norm, self.head = nn.LSTM(6, 4, batch_first=True), nn.LayerNorm(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.cell(x.unsqueeze(1))
        return self.head(self.norm(y.squeeze(1)))  # type: ignore[no-any-return]


def test_layers_of_several_results_are_named_and_so_is_what_follows() -> None:
    with pytest.raises(UnsupportedNetwork) as caught:
        to_graph(_Recurrent(), ROWS, "clear")
    assert [problem.where for problem in caught.value.problems] == ["cell", "norm"]
    assert [problem.where for problem in si.check(_Recurrent(), "clear")] == ["cell", "norm"]


class _Lambda(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(6, 6), function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.layer(x))


@pytest.mark.parametrize(
    "function",
    [
        lambda y: (y, y),
        lambda y: {"y": y},
        lambda y: y * torch.sigmoid(y),
        lambda y: 1 / y,
        lambda y: torch.add(y, y, alpha=2),
        lambda y: y**3,
        lambda y: y[:, :4],
        lambda y: torch.max(y, dim=1)[0],
        lambda y: torch.ones(3),
        torch.sign,
        nn.functional.dropout,
        lambda y: nn.functional.dropout(y, 0.5, True),
    ],
)
def test_check_finds_what_compile_refuses(function: Any) -> None:
    assert si.check(_Lambda(function), "clear")
    with pytest.raises(UnsupportedNetwork):
        to_graph(_Lambda(function), ROWS, "clear")


@pytest.mark.parametrize(
    "function",
    [
        lambda y: nn.functional.dropout(y, 0.5, False),
        lambda y: nn.functional.dropout(y, training=False),
        lambda y: y * y,
        lambda y: y.pow(2),
        lambda y: y.view(y.size(0), -1),
        lambda y: y.reshape(y.shape[0], y.shape[1]),
    ],
)
def test_check_accepts_what_compiles(function: Any) -> None:
    assert si.check(_Lambda(function), "clear", (6,)) == []
    to_graph(_Lambda(function), ROWS, "clear")


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2, ceil_mode=True), nn.AvgPool2d(2, ceil_mode=True)])
def test_check_finds_windows_over_the_edge(pool: nn.Module) -> None:
    assert [problem.where for problem in si.check(nn.Sequential(pool), "clear", (1, 7, 7))] == ["0"]
    assert si.check(nn.Sequential(pool), "clear", (1, 8, 8)) == []


def test_two_inputs_are_named() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return x + mask

    with pytest.raises(UnsupportedNetwork, match="x, mask"):
        to_graph(Two(), ROWS, "clear")
    assert [problem.where for problem in si.check(Two(), "clear")] == ["input"]


def test_weights_that_are_no_numbers() -> None:
    net = nn.Sequential(nn.Linear(6, 2))
    with torch.no_grad():
        net[0].weight[0, 0] = float("nan")
    with pytest.raises(UnsupportedNetwork, match="NaN"):
        to_graph(net, ROWS, "clear")


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_tensors_of_any_kind(kind: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.tensor(ROWS, dtype=kind, requires_grad=True)
    net = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    compiled = si.compile(net, x, protocol="clear")
    assert compiled.predict(x, mode="clear").shape == (48, 2)
    assert si.check(si.fix(net, "ckks", x), "ckks") == []


@pytest.mark.parametrize("x", [[[1.0, 2.0], [3.0]], torch.empty(4, 6, device="meta")])
def test_no_array(x: Any) -> None:
    net = nn.Sequential(nn.Linear(6, 2), nn.ReLU())
    for call in (lambda: si.compile(net, x, protocol="clear"), lambda: si.fix(net, "ckks", x)):
        with pytest.raises(InvalidInput):
            call()
    with pytest.raises(InvalidInput):
        si.compile(net, ROWS, protocol="clear").predict(x, mode="clear")


@pytest.mark.parametrize("x", [ROWS * np.nan, ROWS[:0], np.array(["a"])])
def test_fix_refuses_calibration_data_without_a_range(x: Any) -> None:
    with pytest.raises(UsageError, match="calibration"):
        si.fix(nn.Sequential(nn.Linear(6, 2), nn.ReLU()), "ckks", x)


@pytest.mark.parametrize("options", [{"degree": 2.5}, {"degree": "2"}, {"radius": "3"}])
def test_fix_refuses_what_is_no_number(options: Any) -> None:
    with pytest.raises(UsageError):
        si.fix(nn.Sequential(nn.Linear(6, 2), nn.ReLU()), "ckks", **options)


@pytest.mark.parametrize("bits", ["8", 3.0, [3]])
def test_bits_that_are_no_number(bits: Any) -> None:
    with pytest.raises(UsageError, match="n_bits"):
        to_graph(nn.Linear(6, 2), ROWS, "clear", bits)


@pytest.mark.parametrize(
    "function",
    [
        lambda y: torch.nn.functional.hardtanh(y, -2.0, 2.0),
        lambda y: y.clamp(min=0),
        lambda y: y.clamp(-1, 1),
        lambda y: torch.clamp(y, max=1.0),
        torch.nn.functional.celu,
        torch.nn.functional.hardsigmoid,
        torch.nn.functional.softsign,
        torch.nn.functional.logsigmoid,
    ],
)
def test_fix_replaces_every_call_of_an_activation(function: Any) -> None:
    fixed = si.fix(_Lambda(function), "ckks", ROWS)
    assert si.check(fixed, "ckks", (6,)) == []
    to_graph(fixed, ROWS, "ckks")


@pytest.mark.parametrize("layer", [nn.SiLU(inplace=True), nn.Hardswish(inplace=True), nn.ReLU(inplace=True)])
def test_activations_in_place_see_what_they_read(layer: nn.Module) -> None:
    torch.manual_seed(0)
    assert _error(nn.Sequential(nn.Linear(6, 16), layer, nn.Linear(16, 3)), ROWS) < 0.03


class _InPlace(nn.Module):
    def __init__(self, late: bool) -> None:
        super().__init__()
        self.late, self.first, self.second, self.relu = late, nn.Linear(6, 6), nn.Linear(6, 6), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x -= 0.5
        h = self.first(x)
        y = self.second(self.relu(h)) if self.late else self.second(h)
        y += h
        return self.relu(y)  # type: ignore[no-any-return]


def test_a_value_read_after_it_was_overwritten_is_refused() -> None:
    with pytest.raises(UnsupportedNetwork, match="overwritten in place"):
        to_graph(_InPlace(late=True), ROWS, "clear")


def test_other_work_in_place_is_right_and_leaves_the_data_alone() -> None:
    torch.manual_seed(0)
    before = ROWS.copy()
    si.fix(_InPlace(late=False).double(), "ckks", ROWS)
    graph = to_graph(_InPlace(late=False), ROWS, "clear")
    assert (before == ROWS).all()
    assert graph.input.high * graph.input.scale[0] == pytest.approx(np.abs(ROWS).max())


def test_a_trace_that_misses_work_in_place_is_refused() -> None:
    class Alias(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            z = y
            z += 1
            return y

    with pytest.raises(UnsupportedNetwork, match="something else"):
        to_graph(Alias(), ROWS, "clear")


def test_check_refuses_a_shape_that_is_no_tuple() -> None:
    with pytest.raises(UsageError, match="input_shape"):
        si.check(nn.Linear(6, 2), "clear", 6)  # type: ignore[arg-type]
