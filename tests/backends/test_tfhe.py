"""TFHE: every operation on real ciphertexts, the plans behind them, and what must be refused."""

import subprocess
import sys
from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from secure_infer.backends.base import Keys
from secure_infer.backends.tfhe import TfheBackend, ranges
from secure_infer.errors import (
    BundleError,
    DecryptionError,
    InvalidInput,
    KeyMismatch,
    ParametersError,
    UsageError,
)
from secure_infer.graph import (
    Add,
    Conv2d,
    Graph,
    Linear,
    Lookup,
    Max,
    Node,
    Polynomial,
    QuantRelu,
    Reshape,
    Sign,
    Sum,
    TensorType,
    interpret,
)
from secure_infer.graph.interpret import trace
from secure_infer.wire import frame
from tests.strategies import EXACT_OPS, graphs, inputs_for

BACKEND = TfheBackend()
RNG = np.random.default_rng(7)


def weights(*shape, low=-1, high=1):
    return np.random.default_rng(sum(shape)).integers(low, high + 1, shape)


def zeros(n):
    return np.zeros(n, dtype=np.int64)


def chain(kind, *ops):
    """A graph of operations, each of which reads the one before."""
    names = ["input", *(f"n{i}" for i in range(len(ops)))]
    nodes = tuple(Node(names[i + 1], op, (names[i],)) for i, op in enumerate(ops))
    return Graph(kind, nodes, names[-1])


def images():
    """Padding, stride, groups, dilation, signs, pooling by sum and by maximum of bits, residual, reshape."""
    nodes = (
        Node("conv", Conv2d(weights(2, 2, 2, 2), np.array([1, -1]), stride=(2, 1), padding=(1, 0)), ("input",)),
        Node("sign", Sign(np.array([1, -1])), ("conv",)),
        Node("groups", Conv2d(weights(2, 1, 2, 2), zeros(2), padding=(1, 1), dilation=(2, 2), groups=2), ("sign",)),
        Node("relu", QuantRelu(np.array([[0, 2], [-1, 1]]), low=-1), ("groups",)),
        Node("residual", Add((2, 2)), ("relu", "relu")),
        Node("sum", Sum((1, 2), (1, 1)), ("residual",)),
        Node("max", Max((2, 2), (2, 1), (1, 0)), ("sign",)),
        Node("flat", Reshape((4,)), ("max",)),
        Node("flatsum", Reshape((4,)), ("sum",)),
        Node("left", Linear(weights(3, 4), np.array([5, -3, 0])), ("flat",)),
        Node("right", Linear(2 * weights(3, 4), zeros(3), (2.0,)), ("flatsum",)),
        Node("out", Add((1, 1)), ("left", "right")),
    )
    return Graph(TensorType((2, 3, 3), 0, 1), nodes, "out")


def functions():
    """Maximum of integers, tables for each channel, a polynomial."""
    return chain(
        TensorType((2, 2, 2), -2, 1),
        QuantRelu(np.array([-1, 0, 1])),
        Max((2, 1), (1, 1)),
        Lookup(np.array([[2, 0, -3, 1], [0, 1, 0, 5]])),
        Sum((1, 2), (1, 1)),
        Polynomial(np.array([[4, 2, 1], [0, -3, 1]]), shift=2),
        Reshape((2,)),
        Linear(weights(2, 2), zeros(2)),
    )


def wide(activation, high=3):
    """A sum of seven bits and more under one activation."""
    return chain(
        TensorType((24,), 0, high),
        Linear(weights(4, 24, low=-3, high=3), zeros(4)),
        activation,
        Linear(weights(3, 4), zeros(3)),
    )


def uneven():
    return QuantRelu(np.array([[-41, -20, 3, 30], [-40, -9, 17, 60], [-33, 1, 20, 45], [-30, -11, 14, 44]]))


@cache
def program(name, **options):
    graph = {
        "images": images,
        "functions": functions,
        "signs": lambda: wide(Sign(np.array([-3, 2, 0, 5]))),
        "uneven": lambda: wide(uneven()),
        "far": lambda: wide(QuantRelu(np.array([-400, 20, 250])), 63),
    }[name]()
    return graph, BACKEND.compile(graph, inputs_for(graph, 300, 1), options)


@cache
def keyed(name):
    """Roles and keys of a program: making keys takes seconds, so that tests share them."""
    _, compiled = program(name)
    client = BACKEND.client(compiled.client)
    return client, BACKEND.servers(compiled.servers)[0], client.keygen()


def encrypted(name, x):
    client, server, keys = keyed(name)
    (message,) = client.encrypt(x, keys)
    return client.decrypt([server.run(message, keys.evaluation)], keys)


@pytest.mark.parametrize(("name", "n"), [("images", 2), ("functions", 2), ("signs", 1), ("uneven", 1)])
def test_real_ciphertexts_give_the_interpreters_integers(name, n):
    graph, _ = program(name)
    x = inputs_for(graph, n, 5)
    y = encrypted(name, x)
    assert y.dtype == np.int64
    np.testing.assert_array_equal(y, interpret(graph, x))


@pytest.mark.parametrize("name", ["images", "functions", "signs", "uneven", "far"])
def test_simulation_gives_the_interpreters_integers(name):
    graph, compiled = program(name)
    x = inputs_for(graph, 50, 6)
    np.testing.assert_array_equal(BACKEND.simulate(graph, compiled, x, 0), interpret(graph, x))


@given(graphs(ops=EXACT_OPS | {"Polynomial"}, max_layers=3, max_bits=2))
@settings(
    max_examples=8, deadline=None, phases=[Phase.generate], derandomize=True, suppress_health_check=list(HealthCheck)
)
def test_any_network_equals_the_interpreter_on_all_inputs(graph):
    compiled = BACKEND.compile(graph, inputs_for(graph, 20, 1), {})
    x = inputs_for(graph, 25, 2)
    np.testing.assert_array_equal(BACKEND.simulate(graph, compiled, x, 0), interpret(graph, x))


def test_an_empty_batch_is_a_batch():
    graph, _ = program("signs")
    assert encrypted("signs", inputs_for(graph, 0)).shape == (0, 3)


def test_wide_sums_are_cut_into_narrow_look_ups():
    layer = program("signs")[1].parameters["layers"]["n1"]
    assert layer["method"] == "truncate" and layer["bits"] - layer["removed"] == 4
    assert program("uneven")[1].parameters["layers"]["n1"]["method"] == "split"
    assert program("far")[1].parameters["layers"]["n1"]["method"] == "ladder"


def test_look_ups_are_counted_and_bound_the_failure_probability():
    _, compiled = program("signs")
    removed = compiled.parameters["layers"]["n1"]["removed"]
    assert compiled.counts == {"look_ups": 4 * (removed + 1)}
    assert compiled.guarantee.failure_probability == compiled.counts["look_ups"] * 2.0**-40
    assert compiled.guarantee.security_bits == 128


def test_approximate_rounding_is_one_look_up_and_says_that_it_may_flip():
    graph, compiled = program("signs", rounding="approximate", keep_bits=1, p_error=2.0**-10, security=132)
    assert compiled.counts == {"look_ups": 4}
    assert compiled.parameters["complexity"] < program("signs")[1].parameters["complexity"]
    guarantee = compiled.guarantee
    assert guarantee.failure_probability is None and guarantee.security_bits == 132
    assert any("approximate" in line for line in guarantee.trust) and "not exact" in str(guarantee)
    x = inputs_for(graph, 200, 3)
    simulated = BACKEND.simulate(graph, compiled, x, 0)
    sums, threshold = trace(graph, x)["n0"], np.array([-3, 2, 0, 5])
    clear = np.all(np.abs(sums - threshold) > 12, axis=1)  # far from every threshold
    assert clear.sum() > 10
    np.testing.assert_array_equal(simulated[clear], interpret(graph, x)[clear])
    assert np.any(simulated != interpret(graph, x))


def test_approximate_ciphertexts_agree_far_from_the_thresholds():
    graph, compiled = program("signs", rounding="approximate", keep_bits=5)
    x = inputs_for(graph, 200, 3)
    far = np.all(np.abs(trace(graph, x)["n0"] - np.array([-3, 2, 0, 5])) > 12, axis=1)
    client, (server,) = BACKEND.client(compiled.client), BACKEND.servers(compiled.servers)
    keys = client.keygen()
    (message,) = client.encrypt(x[far][:2], keys)
    np.testing.assert_array_equal(
        client.decrypt([server.run(message, keys.evaluation)], keys), interpret(graph, x[far][:2])
    )


def test_a_look_up_is_timed():
    (seconds,) = BACKEND.primitives(program("functions")[1]).values()
    assert 1e-3 < seconds < 10


@given(graphs(ops=EXACT_OPS | {"Polynomial"}))
@settings(max_examples=60, deadline=None)
def test_no_input_leaves_the_worst_case(graph):
    worst = ranges.worst_case(graph)
    for name, values in trace(graph, inputs_for(graph, 40, 3)).items():
        assert np.all(values >= worst[name].low) and np.all(values <= worst[name].high), name


def test_calibrated_ranges_hold_what_was_seen_and_never_exceed_the_worst_case():
    graph = wide(Sign())
    x = inputs_for(graph, 400, 2)
    worst = ranges.worst_case(graph)
    seen, reach = trace(graph, x)["n0"], ranges.calibrated(graph, x, worst)["n0"]
    assert np.all(reach.low <= seen.min(axis=0)) and np.all(reach.high >= seen.max(axis=0))
    assert np.all(reach.low >= worst["n0"].low) and np.all(reach.high <= worst["n0"].high)
    assert ranges.calibrated(graph, x[:20], worst) is worst


def test_the_halves_hold_no_secret_and_the_client_half_no_weights():
    _, compiled = program("signs")
    _, _, keys = keyed("signs")
    secret = frame.unpack(keys.secret, "tfhe-secret").parts[0]
    assert len(secret) < 1 << 17  # without the evaluation keys of megabytes
    for half in (*compiled.servers, compiled.client, keys.evaluation):
        assert secret[200:400] not in half
    assert b"dense<" in compiled.servers[0] and b"dense<" not in compiled.client
    with pytest.raises(BundleError):
        BACKEND.servers([keys.secret])


def test_keys_are_fresh_and_ciphertexts_are_random():
    client, _, keys = keyed("signs")
    x = inputs_for(program("signs")[0], 1)
    assert client.encrypt(x, keys) != client.encrypt(x, keys)
    again = BACKEND.client(program("signs")[1].client)
    assert again.encrypt(x, keys) != client.encrypt(x, keys)


def test_a_reply_for_other_keys_is_refused():
    client, server, keys = keyed("signs")
    x = inputs_for(program("signs")[0], 0)
    other = Keys(
        *(
            frame.pack(kind, frame.unpack(part, kind).parts, {**frame.unpack(part, kind).meta, "keys": "0" * 32})
            for kind, part in (("tfhe-secret", keys.secret), ("tfhe-evaluation", keys.evaluation))
        )
    )
    (message,) = client.encrypt(x, keys)
    with pytest.raises(DecryptionError):
        client.decrypt([server.run(message, keys.evaluation)], other)
    with pytest.raises(KeyMismatch):
        server.run(message, other.evaluation)


def test_keys_of_another_circuit_are_refused():
    client, server, _ = keyed("signs")
    _, _, keys = keyed("images")
    x = inputs_for(program("signs")[0], 1)
    with pytest.raises(KeyMismatch):
        client.encrypt(x, keys)
    with pytest.raises(KeyMismatch):
        client.decrypt([b""], keys)
    (message,) = client.encrypt(x, keyed("signs")[2])
    with pytest.raises(KeyMismatch):
        server.run(message, keys.evaluation)


def test_altered_and_foreign_messages_are_refused():
    client, server, keys = keyed("signs")
    (message,) = client.encrypt(inputs_for(program("signs")[0], 1), keys)
    altered = bytearray(message)
    altered[-9] ^= 1
    meta = frame.unpack(message, "tfhe-message").meta
    for bad in (bytes(altered), message[:-1], b"", keys.evaluation, frame.pack("tfhe-message", [b"x" * 300], meta)):
        with pytest.raises(BundleError):
            server.run(bad, keys.evaluation)
    for bad in ([message], [b"garbage"], [], [frame.pack("tfhe-reply", [b"x" * 300], meta)]):
        with pytest.raises(DecryptionError):
            client.decrypt(bad, keys)
    evaluation = frame.pack("tfhe-evaluation", [b"x" * 300], frame.unpack(keys.evaluation, "tfhe-evaluation").meta)
    with pytest.raises(BundleError):
        server.run(message, evaluation)


@pytest.mark.parametrize("at", [0, 4, 8])
def test_sizes_that_lie_are_refused_before_concrete_reads_them(at):
    client, server, keys = keyed("signs")
    (message,) = client.encrypt(inputs_for(program("signs")[0], 1), keys)
    received = frame.unpack(message, "tfhe-message")
    part = received.parts[0]
    for bad in (part[:at] + b"\xff\xff\xff\x7f" + part[at + 4 :], part[:-8], part + bytes(8)):
        with pytest.raises(BundleError, match="do not add up"):
            server.run(frame.pack("tfhe-message", [bad], received.meta), keys.evaluation)
        with pytest.raises(DecryptionError):
            client.decrypt([frame.pack("tfhe-reply", [bad], received.meta)], keys)


def test_broken_halves_are_refused():
    compiled = program("signs")[1]
    server = frame.unpack(compiled.servers[0], "tfhe-server")
    for bad in (
        compiled.servers[0][:-1],
        compiled.client,
        frame.pack("tfhe-server", [b"no MLIR", server.parts[1]], server.meta),
    ):
        with pytest.raises(BundleError):
            BACKEND.servers([bad])
    other = frame.unpack(program("images")[1].servers[0], "tfhe-server")
    with pytest.raises(BundleError, match="another version"):
        BACKEND.servers([frame.pack("tfhe-server", [server.parts[0], other.parts[1]], server.meta)])
    with pytest.raises(BundleError):
        BACKEND.client(frame.pack("tfhe-client", [b"{}"], {}))


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (np.zeros((1, 24)), "integers"),
        (np.zeros((1, 23), int), "24"),
        (np.zeros(24, int), "batch"),
        (np.full((1, 24), 4), "[0, 3]"),
        (np.full((1, 24), -1), "[0, 3]"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(x, said):
    client, _, keys = keyed("signs")
    with pytest.raises(InvalidInput) as error:
        client.encrypt(x, keys)
    assert said in str(error.value)


def test_all_wrong_options_are_listed():
    graph = wide(Sign())
    with pytest.raises(UsageError) as error:
        BACKEND.compile(graph, inputs_for(graph, 5), {"p_eror": 1.0, "security": 80, "keep_bits": 0, "rounding": "up"})
    assert {problem.where for problem in error.value.problems} == {"p_eror", "security", "keep_bits", "rounding"}
    with pytest.raises(InvalidInput):
        BACKEND.compile(graph, np.zeros((0, 24), int), {})
    with pytest.raises(InvalidInput):
        BACKEND.compile(graph, np.full((5, 24), 9), {})


def test_every_layer_that_is_too_wide_is_named_with_a_fix():
    square = Polynomial(np.array([0, 0, 1]), 4)
    graph = chain(
        TensorType((40,), 0, 255),
        Linear(weights(3, 40, low=-7, high=7), zeros(3)),
        square,
        Linear(weights(3, 3, low=-7, high=7), zeros(3)),
        square,
        Linear(weights(2, 3), zeros(2)),
    )
    with pytest.raises(ParametersError) as error:
        BACKEND.compile(graph, inputs_for(graph, 300), {})
    assert [problem.where for problem in error.value.problems] == ["n1", "n3"]
    assert "bits" in str(error.value) and "quantize" in str(error.value) and "^^^" in str(error.value)


def test_importing_the_backend_does_not_import_concrete():
    code = "import sys; import secure_infer.backends.tfhe; assert 'concrete.compiler' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_concrete_the_error_names_the_install_command():
    code = (
        "import sys, importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name.startswith('concrete') else find(name, *rest)\n"
        "from secure_infer.errors import MissingExtra\n"
        "try: import secure_infer.backends.tfhe\n"
        'except MissingExtra as error: assert "secure_infer[tfhe]" in str(error)\n'
        "else: raise SystemExit(1)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
