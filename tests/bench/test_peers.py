from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from secure_infer.bench import run_case
from secure_infer.bench.cases import PEERS, Case, Entry
from secure_infer.bench.contender import Subject
from secure_infer.bench.peers import crypten_stock, load_peer, spu, squares, tenseal_vector
from secure_infer.errors import UnsupportedNetwork, UsageError
from secure_infer.graph import Graph, Node, Polynomial, interpret_real
from tests.bench.networks import binary_mlp, polynomial_cnn, subject
from tests.bench.test_runner import check_record


def run(net: Graph, protocol: str, peer: str, n: int) -> list[dict]:
    entries = (Entry(protocol, "tiny", n), Entry(protocol, "tiny", n, peer=peer))
    found = list(run_case(Case("duel", "t", entries), load=lambda name: subject(net)))
    for record in found:
        check_record(record)
        assert record["n_encrypted"] == n
    return found


def test_squares_form_is_the_same_function() -> None:
    graph = polynomial_cnn()
    x = subject(graph).x
    values = graph.quantize(x).reshape(len(x), -1) * graph.input.scale[0]
    for index, step in enumerate(squares.squares_form(graph)):
        values = (values**2 if index else values) @ step.matrix + step.bias
    np.testing.assert_allclose(values, graph.dequantize(interpret_real(graph, graph.quantize(x))), rtol=1e-9)


def test_networks_that_a_recipe_can_not_express_are_refused() -> None:
    with pytest.raises(UnsupportedNetwork, match="neither affine nor a quadratic"):
        squares.squares_form(binary_mlp())
    last = replace(polynomial_cnn().nodes[-1].op, weight=np.ones((4, 8), dtype=np.int64))
    graph = polynomial_cnn()
    branch = Graph(graph.input, (*graph.nodes[:-1], Node("side", last, ("hidden",))), "side")
    with pytest.raises(UnsupportedNetwork, match="side"):
        squares.squares_form(branch)
    straight = Polynomial(np.array([1, 2, 0]), 0)
    flat = Graph(graph.input, (graph.nodes[0], Node("p", straight, ("conv",)), *_after(graph, "p")), "last")
    with pytest.raises(UnsupportedNetwork, match="no square term"):
        squares.squares_form(flat)
    with pytest.raises(UnsupportedNetwork) as caught:
        crypten_stock._require_expressible(graph)
    assert {problem.where for problem in caught.value.problems} == {"square", "again"}


def _after(graph: Graph, source: str) -> tuple[Node, ...]:
    first, *rest = graph.nodes[2:]
    return (replace(first, inputs=(source,)), *rest)


@pytest.mark.parametrize(
    ("levels", "slots", "scale_bits", "degree"),
    [(6, 1024, 26, 8192), (6, 4608, 26, 16384), (6, 1024, 40, 16384), (10, 1024, 40, 32768)],
)
def test_tenseal_takes_the_smallest_secure_ring(levels: int, slots: int, scale_bits: int, degree: int) -> None:
    found, bits = tenseal_vector._parameters(levels, slots, scale_bits)
    assert found == degree and len(bits) == levels + 2
    with pytest.raises(UnsupportedNetwork):
        tenseal_vector._parameters(40, slots, scale_bits)


@pytest.mark.parametrize("options", [{"scale_bits": 30}, {"degree": 8192}])
def test_tenseal_refuses_other_options(options: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="26 or 40"):
        tenseal_vector._scale_bits(Entry("ckks", "tiny", 1, peer="tenseal", options=options))


def test_unknown_peer() -> None:
    with pytest.raises(UsageError, match=", ".join(PEERS)):
        load_peer("nobody")


@pytest.mark.full
def test_concrete_ml_refuses_what_it_can_not_import() -> None:
    pytest.importorskip("concrete.ml")
    entry = Entry("tfhe", "tiny", 1, peer="concrete-ml")
    with pytest.raises(UnsupportedNetwork, match="Concrete ML can't compile tiny"):
        load_peer("concrete-ml")(subject(binary_mlp()), entry)


def _without_windows() -> Graph:
    """The polynomial network with a convolution that im2col can't express."""
    graph = polynomial_cnn()
    conv = replace(graph.nodes[0].op, dilation=(2, 2), padding=(2, 2))
    return Graph(graph.input, (replace(graph.nodes[0], op=conv), *graph.nodes[1:]), "last")


@pytest.mark.full
@pytest.mark.parametrize("graph", [polynomial_cnn(), _without_windows()], ids=["im2col", "matrices"])
def test_tenseal_beside_ours(graph: Graph) -> None:
    ours, peer = run(graph, "ckks", "tenseal", 3)
    assert ours["fingerprint"] == peer["fingerprint"]
    assert ours["agreement"] == peer["agreement"] == 1
    assert ours["max_error"] < 0.01 and peer["max_error"] < 0.01
    assert ours["floor_s"] > 0 and peer["floor_s"] is None
    assert peer["bytes"]["evaluation_keys_sent"] > 1e6


@pytest.mark.full
def test_tenseal_on_digits() -> None:
    pytest.importorskip("torch")
    (record,) = run_case(Case("one", "t", (Entry("ckks", "digits-cnn-poly", 20, peer="tenseal"),)))
    check_record(record)
    assert record["n_encrypted"] == 20
    assert record["agreement"] == 1 and record["max_error"] < 0.02


@pytest.mark.full
def test_crypten_beside_ours() -> None:
    ours, peer = run(binary_mlp(), "mpc", "crypten", 5)
    assert ours["agreement"] == peer["agreement"] == 1
    assert ours["max_error"] == 0 and peer["max_error"] < 0.01
    assert ours["counts"]["rounds"] > 0 and peer["counts"]["rounds"] > 0
    assert ours["floor_s"] > 0


@pytest.mark.full
def test_tfhe() -> None:
    entry = Entry("tfhe", "tiny", 2)
    (record,) = run_case(Case("one", "t", (entry,)), load=lambda name: subject(binary_mlp()))
    check_record(record)
    assert record["agreement"] == 1 and record["max_error"] == 0 and record["floor_s"] > 0
    assert record["bytes"]["evaluation_keys"] >= record["bytes"]["evaluation_keys_sent"] > 1e6


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
def test_concrete_ml_on_a_brevitas_network() -> None:
    torch = pytest.importorskip("torch")
    from secure_infer.nn.quantizers import quant_identity, quant_linear, quant_relu

    torch.manual_seed(0)
    net = torch.nn.Sequential(
        quant_identity(2, signed=False, return_quant_tensor=True),
        torch.nn.Flatten(),
        quant_linear(36, 6, 2),
        quant_relu(2, return_quant_tensor=True),
        quant_linear(6, 4, 2),
    ).eval()
    rng = np.random.default_rng(0)
    x = rng.random((50, 1, 6, 6)).astype(np.float32)
    with torch.no_grad():
        net(torch.from_numpy(x))
    tiny = Subject("tiny", net, x, x, np.zeros(50, dtype=np.int64))
    (record,) = run_case(Case("one", "t", (Entry("tfhe", "tiny", 1, peer="concrete-ml"),)), load=lambda name: tiny)
    check_record(record)
    assert record["agreement"] == 1
    assert record["bytes"]["input"] > 0 and record["bytes"]["output"] > 0


def _binarized() -> Subject:
    torch = pytest.importorskip("torch")
    from secure_infer.nn import BinaryConv2d, BinaryLinear, Sign, quant_identity, quant_linear

    torch.manual_seed(0)
    net = torch.nn.Sequential(
        quant_identity(2, signed=False, scaling_impl_type="const", scaling_init=1.0),
        BinaryConv2d(1, 4, 3, bias=False),
        torch.nn.BatchNorm2d(4),
        Sign(),
        torch.nn.Flatten(),
        BinaryLinear(64, 6, bias=False, scaling="tensor"),
        torch.nn.BatchNorm1d(6),
        Sign(),
        quant_linear(6, 4, 2, bias=False),
    )
    x = np.random.default_rng(0).random((50, 1, 6, 6)).astype(np.float32)
    net(torch.from_numpy(x))
    return Subject("tiny", net.eval(), x, x, np.zeros(50, dtype=np.int64))


@pytest.mark.filterwarnings("ignore:Defining your `__torch_function__` as a plain method:UserWarning")
def test_a_binarized_network_in_two_bits_is_the_same_function() -> None:
    torch = pytest.importorskip("torch")
    from secure_infer.bench.peers.concrete_ml_form import readable

    tiny = _binarized()
    before = {name: value.clone() for name, value in tiny.net.state_dict().items()}
    form = readable(tiny)
    with torch.no_grad():
        expected, found = (net(torch.from_numpy(tiny.x)).numpy() for net in (tiny.net, form))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in tiny.net.state_dict().items())
    assert not any(hasattr(layer, "sign_scale") or hasattr(layer, "integer_weight") for layer in form)
    # A sign without a batch-norm before it has nothing that takes the gain.
    bare = replace(tiny, net=torch.nn.Sequential(tiny.net[0], tiny.net[1], tiny.net[3]))
    with pytest.raises(UnsupportedNetwork, match="batch-norm"):
        readable(bare)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
def test_concrete_ml_on_a_binarized_network() -> None:
    tiny = _binarized()
    entries = Entry("tfhe", "tiny", 1), Entry("tfhe", "tiny", 1, peer="concrete-ml", options={"p_error": 0.01})
    ours, peer = run_case(Case("duel", "t", entries), load=lambda name: tiny)
    for record in (ours, peer):
        check_record(record)
    assert ours["agreement"] == peer["agreement"] == 1
    assert ours["ratios"] is None and peer["ratios"]["run_cpu_s"] > 1 and peer["ratios"]["evaluation_keys_sent"] > 1


@pytest.mark.full
@pytest.mark.parametrize("batch", [1, 4])
def test_spu_beside_ours(batch: int) -> None:
    pytest.importorskip("spu")
    graph = binary_mlp()
    entry = Entry("mpc", "tiny", 4, peer="spu", batch=batch)
    peer = load_peer("spu")(subject(graph), entry)
    try:
        x = subject(graph).x[:batch]
        assert np.array_equal(peer.infer(x).outputs, peer.clear(x))
        assert peer.setup.parameters["ring_bits"] == (32 if batch == 1 else 64)
    finally:
        peer.close()


def test_spu_can_not_be_slowed_down() -> None:
    entry = Entry("mpc", "tiny", 1, peer="spu", network="lan")
    with pytest.raises(UnsupportedNetwork, match="can't be slowed down"):
        spu._plan(binary_mlp(), "ABY3", entry)
