"""TFHE keys: one set for several models, what is sent, and halves that another version of concrete made."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

import secure_infer as si
from secure_infer import bundle
from secure_infer.backends.tfhe import TfheBackend
from secure_infer.cli.app import run
from secure_infer.client import key_set
from secure_infer.errors import BundleError, KeyMismatch, ParametersError, UsageError
from secure_infer.graph import Graph, Linear, Node, QuantRelu, Sign, TensorType, interpret
from secure_infer.wire import frame
from tests.strategies import inputs_for

BACKEND = TfheBackend()


def network(inputs, activation, seed, outputs=2):
    random = np.random.default_rng(seed)
    nodes = (
        Node("sum", Linear(random.integers(-1, 2, (3, inputs)), np.zeros(3, dtype=np.int64)), ("input",)),
        Node("step", activation, ("sum",)),
        Node("out", Linear(random.integers(-1, 2, (outputs, 3)), np.zeros(outputs, dtype=np.int64)), ("step",)),
    )
    return Graph(TensorType((inputs,), 0, 1), nodes, "out")


@cache
def demanding():
    graph = network(12, Sign(np.array([-1, 2, 0])), 1)
    return graph, si.compile(graph, reals(graph, 300), "tfhe")


@cache
def made():
    """Keys of the demanding model: they take seconds, so that tests share them."""
    return BACKEND.client(demanding()[1].program.client).keygen()


def other():
    return network(6, QuantRelu(np.array([-1, 1])), 2, outputs=4)


def reals(graph, n, seed=0):
    return inputs_for(graph, n, seed).astype(float)


def test_two_models_share_one_key_set_and_both_predict_on_ciphertexts(tmp_path):
    graph, first = demanding()
    second = si.compile(other(), reals(other(), 300), "tfhe", keys_of=first.save(tmp_path / "first.bundle"))
    assert second.program.client != first.program.client
    assert key_set(first.program.client) == key_set(second.program.client)
    cache = tmp_path / "keys"
    for model, net in ((first, graph), (second, other())):
        x = reals(net, 2, 5)
        client = model.client(key_cache=cache)
        np.testing.assert_array_equal(client.predict(x), interpret(net, x.astype(int)))
    assert "keygen" in first.client().stopwatch.wall_s and "keygen" not in second.client().stopwatch.wall_s
    assert first.client().keys().evaluation == second.client().keys().evaluation
    assert len(list(cache.glob("*/secret-key"))) == 1


def test_a_compiled_model_lends_its_keys_too_and_its_messages_stay_its_own():
    graph, first = demanding()
    second = si.compile(other(), reals(other(), 300), "tfhe", keys_of=first)
    one, two = (BACKEND.client(model.program.client) for model in (first, second))
    keys = made()
    (message,) = one.encrypt(inputs_for(graph, 1), keys)
    two.encrypt(inputs_for(other(), 1), keys)
    with pytest.raises(KeyMismatch):
        BACKEND.servers(second.program.servers)[0].run(message, keys.evaluation)


def test_keys_that_do_not_suffice_are_refused_and_the_difference_is_told():
    small = si.compile(other(), reals(other(), 300), "tfhe", p_error=2**-7)
    graph, _ = demanding()
    with pytest.raises(ParametersError, match="do not suffice") as error:
        si.compile(graph, reals(graph, 300), "tfhe", keys_of=small)
    (problem,) = error.value.problems
    assert problem.where == "keys_of" and problem.what.count("polynomial size") >= 2


def test_what_has_no_keys_is_refused(tmp_path):
    graph = other()
    for lender in (3, object()):
        with pytest.raises(UsageError, match="keys_of"):
            si.compile(graph, reals(graph, 300), "tfhe", keys_of=lender)
    with pytest.raises(BundleError):
        si.compile(graph, reals(graph, 300), "tfhe", keys_of=si.compile(graph, reals(graph, 300), "clear"))
    with pytest.raises(UsageError):
        si.compile(graph, reals(graph, 300), "tfhe", keys_of=tmp_path / "absent.bundle")


def test_a_half_that_asks_for_less_noise_calls_for_other_keys():
    """Else a server could have its clients encrypt without noise under keys that other models use, too."""
    _, compiled = demanding()
    half = frame.unpack(compiled.program.client, "tfhe-client")
    specs = json.loads(half.parts[0])
    specs["circuits"][0]["inputs"][0]["typeInfo"]["lweCiphertext"]["encryption"]["variance"] = 0.0
    forged = frame.pack("tfhe-client", [json.dumps(specs).encode()], half.meta)
    with pytest.raises(BundleError, match="another key set"):
        BACKEND.client(forged)


def test_keys_travel_compressed():
    _, compiled = demanding()
    keys = made()
    expanded = sum(compiled.program.parameters["bytes"].values())
    assert len(keys.evaluation) < expanded / 2.5
    assert len(keys.secret) < 1 << 17


def as_if_older(path):
    """The bundle as a version of concrete would have left it that chose other parameters: those of another circuit."""
    graph, interface, program = bundle.load(path)
    strange = si.compile(other(), reals(other(), 300), "tfhe", p_error=2**-7).program
    half, foreign = (frame.unpack(p.servers[0], "tfhe-server") for p in (program, strange))
    server = frame.pack("tfhe-server", [half.parts[0], foreign.parts[1]], {**half.meta, "version": "2.9.0"})
    return bundle.save(path, graph, interface, replace(program, servers=(server,)), {})


def test_halves_of_another_version_are_refused_clearly_and_can_be_made_anew(tmp_path):
    graph, first = demanding()
    old = as_if_older(first.save(tmp_path / "old.bundle"))
    with pytest.raises(BundleError, match=r"made with 2\.9\.0; this is .* Fix: .*secure-infer compile OLD"):
        si.Client.connect(old)
    assert run(["compile", str(old), "--protocol", "tfhe", "--out", str(tmp_path / "new.bundle")]) == 0
    renewed = si.load(tmp_path / "new.bundle")
    assert renewed.program.parameters["layers"] == first.program.parameters["layers"]
    assert renewed.program.parameters["complexity"] == first.program.parameters["complexity"]
    client, (server,) = BACKEND.client(renewed.program.client), BACKEND.servers(renewed.program.servers)
    x, keys = inputs_for(graph, 1, 5), made()  # the versions differ by name only, so that old keys do
    (message,) = client.encrypt(x, keys)
    np.testing.assert_array_equal(client.decrypt([server.run(message, keys.evaluation)], keys), interpret(graph, x))


def test_a_bundle_keeps_its_protocol_and_options(tmp_path, capsys):
    old = demanding()[1].save(tmp_path / "old.bundle")
    for given in (["--protocol", "mpc"], ["--protocol", "tfhe", "--option", "p_error=0.1"]):
        assert run(["compile", str(old), *given, "--out", str(tmp_path / "new.bundle")]) == 2
        assert "compiled already" in capsys.readouterr().err


def test_text_that_concrete_does_not_read_is_refused(tmp_path):
    program = demanding()[1].program
    half = frame.unpack(program.servers[0], "tfhe-server")
    bad = replace(program, servers=(frame.pack("tfhe-server", [b"module {", half.parts[1]], half.meta),))
    with pytest.raises(BundleError, match="can't be built"):
        BACKEND.rebuild(bad)
