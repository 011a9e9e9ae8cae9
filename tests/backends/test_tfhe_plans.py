"""TFHE's plans: one rounded look-up an activation, the search for the cheapest, and what is said about bad input."""

import json
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_infer import zoo
from secure_infer.backends.tfhe import calibration, planner, security
from secure_infer.backends.tfhe.evaluate import evaluate, look_up
from secure_infer.backends.tfhe.options import Options
from secure_infer.backends.tfhe.plan import plan
from secure_infer.backends.tfhe.ranges import Range
from secure_infer.backends.tfhe.roles import Shapes
from secure_infer.backends.tfhe.rounded import rounded
from secure_infer.compiler import compile
from secure_infer.errors import ParametersError, UsageError
from secure_infer.graph import Graph, Linear, Node, QuantRelu, Sign, TensorType, interpret
from secure_infer.nn.data import load_dataset
from secure_infer.wire import frame
from tests.backends.test_tfhe import BACKEND, functions, images, program, uneven, wide
from tests.strategies import EXACT_OPS, graphs, inputs_for

FINE = {"rounding": "approximate", "keep_bits": 5, "p_error": 2.0**-20}


def counted(found, t, levels, wraps):
    values = look_up(found, t[None])[0]
    return (values + levels) // 2 if wraps else values


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 300), st.integers(4, 10), st.booleans())
@settings(max_examples=200, deadline=None)
def test_one_rounded_look_up_moves_thresholds_by_half_a_step_at_most(seed, levels, width, keep, wraps):
    rng = np.random.default_rng(seed)
    low = rng.integers(-200, 200, 3)
    reach = Range(low, low + rng.integers(0, width + 1, 3))
    thresholds = np.sort(rng.integers(low - 20, low + width + 20, (levels, 3)), axis=0)
    found = rounded(thresholds, reach, keep, wraps)
    assert found is not None and found.approximate and found.tables.shape[1] == 1 << keep
    moved = (1 << found.removed) / 2 / found.factor + 1
    thresholds = np.clip(thresholds, reach.low, reach.high + 1)
    for t in np.linspace(reach.low, reach.high, 80).astype(np.int64):
        count = counted(found, t, levels, wraps)
        assert np.all(count >= (t >= thresholds + moved).sum(axis=0))
        assert np.all(count <= (t >= thresholds - moved).sum(axis=0))


@pytest.mark.parametrize("wraps", [True, False])
def test_thresholds_a_power_of_two_apart_do_not_move(wraps):
    reach = Range(np.array([-200, -90]), np.array([180, 100]))
    thresholds = np.array([[-16, 3], [0, 19], [16, 35], [32, 51]])
    found = rounded(thresholds, reach, 5, wraps)
    assert found.removed > 0
    for t in np.linspace(reach.low, reach.high, 400).astype(np.int64):
        np.testing.assert_array_equal(counted(found, t, 4, wraps), (t >= thresholds).sum(axis=0))


def test_a_finer_table_does_not_fall_back_to_one_that_wastes_the_torus():
    graph = wide(uneven(), 63)
    x = inputs_for(graph, 300, 1)
    plans = [plan(graph, x, Options(p_error=0.5, rounding="approximate", keep_bits=keep)) for keep in (6, 7, 8)]
    assert all(step.plan.factor is not None for planned in plans for step in planned.steps if step.plan is not None)


def test_every_entry_of_a_rounded_table_has_two_coefficients():
    """With one, concrete's simulation ends the process."""
    graph = wide(Sign())
    options = {"rounding": "approximate", "keep_bits": 9, "p_error": 0.95}
    compiled = BACKEND.compile(graph, inputs_for(graph, 300, 1), options)
    assert all(keys["polynomial_size"] >= 2 << 9 for keys in compiled.parameters["parameter_sets"])


def test_the_report_states_the_floor_and_how_often_the_whole_network_fails():
    compiled = compile(wide(Sign()), np.zeros((1, 24)), "tfhe")
    report = compiled.report()
    assert "s of CPU for the look-ups alone" in report
    whole = compiled.program.counts["look_ups"] * 2.0**-40
    assert f"exact but with probability {whole:.2g} an inference" in report


@given(graphs(ops=EXACT_OPS | {"Polynomial"}, max_layers=3, max_bits=2))
@settings(max_examples=40, deadline=None)
def test_an_exact_plan_without_noise_is_the_network(graph):
    x = inputs_for(graph, 25, 2)
    planned = plan(graph, inputs_for(graph, 20, 1), Options())
    np.testing.assert_array_equal(evaluate(planned, x), interpret(graph, x))


@pytest.mark.parametrize("network", [images, functions])
def test_rounded_ciphertexts_give_the_interpreters_integers(network):
    """With thresholds that fall between steps, and hardly any noise, rounding changes nothing."""
    graph = network()
    compiled = BACKEND.compile(graph, inputs_for(graph, 300, 1), FINE)
    assert any(layer["method"] == "approximate" for layer in compiled.parameters["layers"].values())
    client, (server,) = BACKEND.client(compiled.client), BACKEND.servers(compiled.servers)
    keys, x = client.keygen(), inputs_for(graph, 2, 5)
    (message,) = client.encrypt(x, keys)
    np.testing.assert_array_equal(client.decrypt([server.run(message, keys.evaluation)], keys), interpret(graph, x))


def test_our_model_of_the_noise_is_not_better_than_concretes():
    graph = wide(uneven())
    options = {"rounding": "approximate", "keep_bits": 5, "p_error": 0.9}
    x, sample = inputs_for(graph, 300, 3), inputs_for(graph, 300, 1)
    compiled = BACKEND.compile(graph, sample, options)
    modelled = evaluate(plan(graph, sample, Options(**options)), x, 0.9)
    simulated = BACKEND.simulate(graph, compiled, x, 0)
    ours, theirs = (float(np.square(y - interpret(graph, x)).mean()) for y in (modelled, simulated))
    assert 0 < theirs < 2 * ours


def test_layers_that_are_not_named_stay_exact():
    graph = wide(uneven())
    for bits, method in (({"n1": 6}, "approximate"), ({}, "split")):
        layers = BACKEND.compile(
            graph, inputs_for(graph, 300, 1), {"rounding": "approximate", "keep_bits": bits, "p_error": 2.0**-10}
        ).parameters["layers"]
        assert layers["n1"]["method"] == method


def test_the_search_finds_the_cheapest_plan_within_the_tolerance():
    graph = wide(uneven())
    sample = inputs_for(graph, 300, 1)

    def measure(planned, options, x):
        return float(sum(options.keep_bits.values())), evaluate(planned, x, options.p_error)

    chosen, trials = planner.search(graph, sample, Options(tolerance=0.05), measure)
    assert chosen.rounding == "approximate"
    within = [trial for trial in trials if trial.seconds is not None]
    assert all(trial.agreement >= 0.95 for trial in within)
    assert dict(chosen.keep_bits) == min(within, key=lambda trial: trial.seconds).keep_bits
    exact, trials = planner.search(graph, sample, Options(tolerance=0.0), measure)
    assert exact.rounding == "exact" or all(trial.agreement == 1 for trial in trials if trial.seconds is not None)


def test_a_plan_that_fails_once_compiled_is_not_chosen():
    """Our model of the noise leaves out the output's, so it lets pass what the simulation does not."""
    graph = wide(uneven())

    def turned(planned, options, x):
        return 1.0, -interpret(graph, x)

    chosen, trials = planner.search(graph, inputs_for(graph, 300, 1), Options(tolerance=0.05), turned)
    assert chosen.rounding == "exact"
    assert any(trial.seconds is not None for trial in trials)


def test_auto_rounds_the_digits_network():
    model = compile(zoo.load_model("digits-mlp-bnn"), load_dataset("digits").x_train[:300], "tfhe", rounding="auto")
    assert model.program.parameters["rounding"] == "approximate"


def test_auto_says_what_it_looked_at():
    graph = wide(Sign(np.array([-3, 2, 0, 5])))
    model = compile(graph, inputs_for(graph, 300, 1), "tfhe", rounding="auto", tolerance=0.1)
    assert model.program.parameters["search"][-1]["agreement"] <= 1
    report = model.report()
    for word in ("Search", "Layers", "approximate", "Security check", "keyswitching key", "n1"):
        assert word in report


def test_a_network_with_full_tables_bears_little_noise():
    graph = functions()
    sample = inputs_for(graph, 300, 1)
    with pytest.raises(UsageError, match="too great"):
        BACKEND.compile(graph, sample, {"rounding": "approximate", "p_error": 0.5})
    with pytest.raises(UsageError, match="too great"):
        BACKEND.compile(graph, sample, {"p_error": 0.5})
    planned = plan(graph, sample, Options(rounding="approximate"))
    assert planner.settled(planned, Options(rounding="approximate", p_error=None)) == 2.0**-10


@pytest.mark.parametrize("failure", [2.0**-100, 2.0**-128])
def test_a_failure_probability_for_the_whole_inference(failure):
    graph = wide(Sign(np.array([-3, 2, 0, 5])))
    compiled = BACKEND.compile(graph, inputs_for(graph, 300, 1), {"failure": failure})
    assert compiled.guarantee.failure_probability == pytest.approx(failure, rel=1e-6)
    for options in ({"failure": 2.0**-100, "rounding": "approximate"}, {"failure": 2.0**-9, "p_error": 2.0**-9}):
        with pytest.raises(UsageError, match="failure"):
            BACKEND.compile(graph, inputs_for(graph, 300, 1), options)


@pytest.mark.parametrize("bits", [128, 132])
def test_keys_with_too_little_noise_are_refused(bits):
    specs = frame.unpack(program("signs")[1].client, "tfhe-client").parts[0]
    rows = security.require_secure(specs, 128)
    assert {row["what"] for row in rows} == {"bootstrapping key", "keyswitching key", "input"}
    weak = json.loads(specs)
    weak["keyset"]["lweKeyswitchKeys"][0]["params"]["variance"] /= 16
    with pytest.raises(ParametersError, match=f"do not reach {bits} bits") as error:
        security.require_secure(json.dumps(weak).encode(), bits)
    assert any(problem.where == "keyswitching key" for problem in error.value.problems)


def test_the_security_table_agrees_with_the_standard():
    """Homomorphic Encryption Standard (2018), ternary secrets, 128 bits, sigma 3.2: modulus by dimension."""
    for dimension, modulus in ((1024, 27), (2048, 54)):
        assert abs(security.least_noise(dimension, 128) - (np.log2(3.2) - modulus)) < 2
    assert security.least_noise(700, 132) > security.least_noise(700, 128)
    assert security.least_noise(200, 128) == 0


def smooth(n, seed=0):
    """Values that go together, as pixels do."""
    rng = np.random.default_rng(seed)
    walk = rng.normal(1.5, 0.8, (n, 1)) + np.cumsum(rng.normal(0, 0.2, (n, 24)), axis=1)
    return np.clip(np.rint(walk), 0, 3).astype(np.int64)


def extreme(n):
    """The input for which the first sum of `wide` is greatest."""
    row = wide(Sign()).nodes[0].op.weight[0]
    return np.broadcast_to(3 * (row > 0), (n, 24)).astype(np.int64)


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (smooth(600), []),
        (np.random.default_rng(0).integers(0, 4, (600, 24)), ["random noise"]),
        (smooth(600) // 2, ["less than half"]),
        (smooth(100), ["too little"]),
        (np.concatenate([np.clip(smooth(300), 1, 2), extreme(300)]), ["too narrow"]),
    ],
)
def test_calibration_that_is_no_data_is_said(x, said, caplog):
    graph = wide(QuantRelu(np.array([-9, 0, 9])))
    with caplog.at_level(logging.WARNING):
        found = calibration.review(graph, x)
    assert len(found) == len(said), found
    for text, word in zip(found, said, strict=True):
        assert word in text and word in caplog.text


def far_apart():
    """Outputs about 900 and -900: one center for both would take eleven bits."""
    weight = np.random.default_rng(5).choice([-1, 1], (2, 60))
    nodes = (
        Node("first", Linear(np.eye(60, dtype=np.int64), np.zeros(60, dtype=np.int64)), ("input",)),
        Node("bits", Sign(np.full(60, 8)), ("first",)),
        Node("out", Linear(weight, np.array([900, -900])), ("bits",)),
    )
    return Graph(TensorType((60,), 0, 15), nodes, "out")


def test_each_output_is_centered_by_itself_and_a_rounded_network_takes_small_keys():
    graph = far_apart()
    x = 15 * np.random.default_rng(6).integers(0, 2, (3, 60))
    made = BACKEND.compile(graph, x, {"rounding": "approximate", "keep_bits": 8, "p_error": 0.9})
    (chosen,) = made.parameters["parameter_sets"]
    assert made.parameters["output_bits"] == 7
    assert (chosen["glwe_dimension"], chosen["polynomial_size"]) == (3, 512)
    client, (server,) = BACKEND.client(made.client), BACKEND.servers(made.servers)
    keys = client.keygen()
    (message,) = client.encrypt(x, keys)
    got = client.decrypt([server.run(message, keys.evaluation)], keys)
    # No sign is near its threshold; what is left is the noise of sixty results, about two units.
    assert np.abs(got - interpret(graph, x)).max() <= 12


def test_a_client_half_with_one_center_for_all_outputs_is_still_read():
    output = {"shape": (2,), "gain": 2, "parts": 1, "center": 7, "rest": [1, 0]}
    meta = {"input": {"shape": (8,), "low": 0, "high": 15}, "output": output}
    np.testing.assert_array_equal(Shapes(meta).decode([[1, -1]]), [[17, 12]])
    each = {**meta, "output": {**output, "center": [7, -7]}}
    np.testing.assert_array_equal(Shapes(each).decode([[1, -1]]), [[17, -16]])
