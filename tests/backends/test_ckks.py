"""CKKS: the packing algebra against the interpreter without encryption, then real ciphertexts, keys and bad input."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings

from secure_infer.backends.base import Keys, Program
from secure_infer.backends.ckks import CkksBackend, backend, parameters, run, server, store
from secure_infer.backends.ckks.clear import ClearEngine, ScheduleError
from secure_infer.backends.ckks.client import EVALUATION, INPUT_MESSAGE, SECRET, CkksClient
from secure_infer.backends.ckks.half import ClientHalf
from secure_infer.backends.ckks.lower import lower
from secure_infer.backends.ckks.normalize import normalize
from secure_infer.backends.ckks.parameters import Parameters
from secure_infer.backends.ckks.plan import levels, make_plan
from secure_infer.backends.ckks.seal import Ring, Unreadable
from secure_infer.backends.ckks.server import CkksServer
from secure_infer.errors import (
    BundleError,
    DecryptionError,
    InvalidInput,
    KeyMismatch,
    MissingExtra,
    ParametersError,
    UnsupportedNetwork,
    UsageError,
)
from secure_infer.graph import (
    INPUT,
    Add,
    Conv2d,
    Graph,
    Linear,
    Node,
    Op,
    Polynomial,
    Reshape,
    Sign,
    Sum,
    TensorType,
    interpret_real,
)
from secure_infer.wire import frame
from tests.strategies import REAL_OPS, graphs, inputs_for

RNG = np.random.default_rng(7)
BACKEND = CkksBackend()


def chain(shape: tuple[int, ...], *ops: Op | tuple[Op, str, str], low: int = -3, high: int = 3) -> Graph:
    """A graph of operations one after another; a tuple names the nodes (n0, n1 ..) that its operation reads."""
    nodes, last = [], INPUT
    for i, op in enumerate(ops):
        inputs = op[1:] if isinstance(op, tuple) else (last,)
        last = f"n{i}"
        nodes.append(Node(last, op[0] if isinstance(op, tuple) else op, inputs))
    return Graph(TensorType(shape, low, high), tuple(nodes), last)


def linear(outputs: int, inputs: int, scale: float = 1.0) -> Linear:
    return Linear(RNG.integers(-4, 5, (outputs, inputs)), RNG.integers(-9, 10, outputs), (scale,))


def conv(outputs: int, inputs: int, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1,
         groups: int = 1) -> Conv2d:
    weight = RNG.integers(-4, 5, (outputs, inputs // groups, kernel, kernel))
    return Conv2d(weight, RNG.integers(-9, 10, outputs), (1.0,), (stride, stride), (padding, padding),
                  (dilation, dilation), groups)


def poly(*coefficients: int, shift: int = 4) -> Polynomial:
    return Polynomial(np.array(coefficients), shift)


SQUARE, BENT = poly(0, 0, 1), poly(3, -5, 2)
CUBIC, QUINTIC = poly(9, 20, -1, 2, shift=6), poly(1, 30, 0, -2, 1, 1, shift=9)
SEPTIC = poly(0, 9, 1, 1, 0, 1, 0, 1, shift=12)
PER_CHANNEL = Polynomial(np.array([[1, 2, 3], [5, 900, 1], [7, 3, 0], [4, 0, 0], [0, 0, 0]]), 3)

NETWORKS = {
    "one linear layer": chain((9,), linear(5, 9)),
    "one number": chain((1,), linear(1, 1)),
    "one convolution": chain((2, 7, 5), conv(3, 2, 3, 2, 1)),
    "more rows than columns": chain((3,), linear(33, 3), SQUARE, linear(2, 33)),
    "fewer rows than columns": chain((33,), linear(3, 33), BENT, linear(7, 3)),
    "activation first and last": chain((7,), SQUARE, linear(5, 7), BENT),
    "activation upon activation": chain((7,), BENT, BENT, linear(2, 7)),
    "two convolutions": chain((2, 9, 9), conv(4, 2, 3, 2, 1), BENT, conv(6, 4, 3, 1, 1, groups=2), SQUARE,
                              Sum((2, 2), (2, 2), divisor=4), Reshape((24,)), linear(10, 24)),
    "dilated": chain((1, 11, 8), conv(3, 1, 3, 1, 2, dilation=2), SQUARE, Reshape((264,)), linear(3, 264)),
    "residual": chain((6,), linear(6, 6), BENT, linear(6, 6, 2.0), (Add((1, 2)), "n1", "n2"), SQUARE, linear(6, 6, 3.0),
                      (Add((3, 1)), "n5", "n0"), (Add(), "n6", INPUT)),
    "residual after different depths": chain((5,), linear(5, 5), CUBIC, linear(5, 5), BENT, (Add(), "n3", "n1"),
                                             (Add(), "n4", INPUT), linear(3, 5)),
    "degree 3": chain((8,), linear(6, 8), CUBIC, linear(4, 6)),
    "degree 5": chain((8,), linear(6, 8), QUINTIC, linear(4, 6)),
    "degree 7": chain((4, 3, 3), conv(2, 4, 2), SEPTIC, Reshape((8,)), linear(4, 8)),
    "a polynomial per channel": chain((4,), linear(5, 4), PER_CHANNEL, linear(3, 5)),
    "shifts between layers": chain((6,), linear(8, 6), poly(0, 1, shift=2), BENT, poly(0, 1, shift=3), linear(3, 8)),
    "nothing but a bias": chain((4,), Linear(np.zeros((3, 4), np.int64), np.array([5, -2, 0]))),
    "zero": chain((4,), Linear(np.zeros((3, 4), np.int64), np.zeros(3, np.int64)), SQUARE, linear(2, 3)),
    "an unused branch": chain((4,), linear(3, 4), SQUARE, (linear(2, 4), INPUT)),
}




def small_ring(depth: int, squares: bool, slots: int) -> Parameters:
    """Parameters of few slots: insecure, for the algebra alone, so that vectors need several ciphertexts."""
    sizes = [56, *[31] * depth, 60]
    *data, special = parameters.primes(2 * slots, sizes)
    return Parameters(2 * slots, tuple(data), special, 31, 31 + squares, 128)


def clear_run(graph: Graph, x: np.ndarray, slots: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Outputs of the planned diagonals, those of the interpreter, and the output's range."""
    network = normalize(lower(graph), graph.input, x.astype(float))
    ring = small_ring(levels(network)[INPUT], all(unit.coefficients is None for unit in network.units), slots)
    plan, layout = make_plan(network, ring)
    plan = store.plan_from_bytes(*store.plan_to_bytes(plan))
    engine = ClearEngine(ring)
    blocks = backend._run_clear(engine, run.Program(engine, plan), plan, network.scale_input(x.astype(float)))
    slots_out = np.concatenate([c.values for c in blocks], axis=1)
    expected = interpret_real(graph, x).reshape(len(x), -1)
    copies = {0, slots // layout.period - 1}
    block, slot = np.divmod(layout.positions, layout.period)
    found = [slots_out[:, block * slots + slot + copy * layout.period] * network.output_range for copy in copies]
    assert np.allclose(found[0], found[-1], rtol=0, atol=1e-9 * network.output_range)
    return found[0], expected, network.output_range


def assert_same_algebra(graph: Graph, slots: int) -> None:
    x = inputs_for(graph, 12)
    found, expected, output_range = clear_run(graph, x, slots)
    # What rounds to zero is replaced by the least plaintext, 2^-24 of a value.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * output_range)


class TestAlgebra:
    @settings(deadline=None, max_examples=200)
    @given(graphs(REAL_OPS))
    def test_planned_diagonals_equal_the_interpreter(self, graph: Graph) -> None:
        assert_same_algebra(graph, 64)

    @settings(deadline=None, max_examples=60)
    @given(graphs(REAL_OPS))
    def test_vectors_of_several_ciphertexts(self, graph: Graph) -> None:
        assert_same_algebra(graph, 8)

    @pytest.mark.parametrize("slots", [16, 64, 1024])
    @pytest.mark.parametrize("name", NETWORKS)
    def test_networks(self, name: str, slots: int) -> None:
        assert_same_algebra(NETWORKS[name], slots)

    @pytest.mark.parametrize("size", [7, 8, 9, 15, 16, 17, 31, 32, 33])
    @pytest.mark.parametrize("other", [7, 16, 33])
    def test_sizes_around_powers_of_two(self, size: int, other: int) -> None:
        assert_same_algebra(chain((size,), linear(other, size), BENT, linear(size, other)), 64)

    def test_a_strided_convolution_shares_diagonals(self) -> None:
        graph = chain((1, 28, 28), conv(5, 1, 5, 2, 1), SQUARE, Reshape((845,)), linear(10, 845))
        network = normalize(lower(graph), graph.input, inputs_for(graph, 4).astype(float))
        plan, _ = make_plan(network, parameters.choose(2, True, {}))
        assert len(plan.steps[0].diagonals.keys) <= 36
        babies, giants = plan.steps[0].rotations
        assert len(set(babies)) + len(set(giants)) <= 14

    def test_linear_polynomials_cost_no_level(self) -> None:
        def depth(graph: Graph) -> int:
            return levels(normalize(lower(graph), graph.input, inputs_for(graph, 4).astype(float)))[INPUT]

        assert depth(NETWORKS["shifts between layers"]) == 2
        assert depth(NETWORKS["one linear layer"]) == 0
        assert depth(NETWORKS["degree 7"]) == 4
        assert depth(NETWORKS["degree 5"]) == 4
        assert depth(NETWORKS["degree 3"]) == 3

    def test_the_clear_engine_refuses_what_seal_would(self) -> None:
        engine = ClearEngine(small_ring(2, True, 8))
        a, b = (engine.encrypt(np.ones((1, 8)), level, 2.0**31) for level in (2, 1))
        with pytest.raises(ScheduleError, match="levels"):
            engine.add(a, b)
        with pytest.raises(ScheduleError, match="scales"):
            engine.add(b, engine.encrypt(np.ones((1, 8)), 1, 2.0**31 + 2**5))
        with pytest.raises(ScheduleError, match="planned scale"):
            engine.rescale(engine.multiply(a, a), 2.0**31)


class TestParameters:
    def test_table(self) -> None:
        assert parameters.MAX_BITS[128] == {4096: 109, 8192: 218, 16384: 438, 32768: 881}

    @pytest.mark.parametrize("security", [128, 192, 256])
    @pytest.mark.parametrize("squares", [True, False])
    @pytest.mark.parametrize("depth", range(29))
    def test_choices_are_secure(self, depth: int, squares: bool, security: int) -> None:
        try:
            chosen = parameters.choose(depth, squares, {"security": security})
        except ParametersError:
            assert depth > {128: 27, 192: 17, 256: 12}[security]
            return
        parameters.verify(chosen)
        assert chosen.depth == depth
        assert chosen.special > max(chosen.primes)
        assert chosen.total_bits <= parameters.MAX_BITS[security][chosen.poly_modulus_degree]
        assert chosen.output_scale / chosen.scale >= 2**15

    def test_smallest_ring(self) -> None:
        degrees = [parameters.choose(depth, True, {}).poly_modulus_degree for depth in (0, 2, 4, 6, 11, 14)]
        assert degrees == [4096, 8192, 8192, 16384, 16384, 32768]

    @pytest.mark.parametrize("degree", [4096, 8192])
    def test_seal_agrees(self, degree: int) -> None:
        depth = {4096: 0, 8192: 4}[degree]
        assert Ring(parameters.choose(depth, True, {"poly_modulus_degree": degree})).id_of(depth)

    def test_insecure_primes_are_refused(self) -> None:
        good = parameters.choose(4, True, {})
        with pytest.raises(ParametersError, match="allows 109 bits"):
            parameters.verify(replace(good, poly_modulus_degree=4096))
        with pytest.raises(ParametersError, match="not distinct primes"):
            parameters.verify(replace(good, primes=(*good.primes[:-1], good.primes[-1] + 2)))

    @pytest.mark.parametrize("options", [
        {"poly_modulus_degree": 5000}, {"scale_bits": 99}, {"security": 80}, {"scale_bits": True}, {"nonsense": 1},
        {"rounding_bits": -1}, {"rounding_bits": "4"}, {"security": "128"}])
    def test_bad_options(self, options: dict[str, object]) -> None:
        graph = NETWORKS["one linear layer"]
        with pytest.raises(UsageError):
            BACKEND.compile(graph, inputs_for(graph, 4), options)

    def test_too_deep_is_refused_with_advice(self) -> None:
        graph = chain((3,), *[op for _ in range(3) for op in (linear(3, 3), CUBIC, poly(0, 1, shift=9))], linear(2, 3))
        with pytest.raises(ParametersError, match=r"spends 9 levels.*\n.*Degree 3 .*degree 2 would save one") as error:
            BACKEND.compile(graph, inputs_for(graph, 4), {"poly_modulus_degree": 8192})
        assert len(error.value.problems) == 4

    def test_unsupported(self) -> None:
        graph = chain((3,), linear(3, 3), Sign())
        with pytest.raises(UnsupportedNetwork, match="can't evaluate Sign"):
            BACKEND.compile(graph, inputs_for(graph, 4), {})

    @pytest.mark.parametrize("shape", [(0, 9), (4, 8), (9,)])
    def test_bad_calibration(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(InvalidInput):
            BACKEND.compile(NETWORKS["one linear layer"], np.zeros(shape, np.int64), {})


class Deployment:
    """A compiled network with its keys and server."""

    def __init__(self, graph: Graph, **options: int) -> None:
        self.graph, self.x = graph, inputs_for(graph, 6, seed=1)
        self.program: Program = BACKEND.compile(graph, inputs_for(graph, 60), options)
        self.client: CkksClient = BACKEND.client(self.program.client)
        self.server: CkksServer = BACKEND.servers(self.program.servers)[0]
        self.keys: Keys = self.client.keygen()

    def predict(self, x: np.ndarray) -> np.ndarray:
        (message,) = self.client.encrypt(x, self.keys)
        return self.client.decrypt([self.server.run(message, self.keys.evaluation)], self.keys)

    def error(self, n: int) -> float:
        """Greatest error in real units."""
        difference = np.abs(self.predict(self.x[:n]) - interpret_real(self.graph, self.x[:n]))
        return float((difference * self.graph.output_type.scale_array()).max())


@cache
def deployed(name: str) -> Deployment:
    return Deployment(NETWORKS[name])


class TestEncrypted:
    @pytest.mark.parametrize("name", ["one linear layer", "one number", "one convolution", "residual", "degree 3",
                                      "a polynomial per channel", "two convolutions", "nothing but a bias", "zero"])
    def test_error_stays_within_the_bound(self, name: str) -> None:
        deployment = deployed(name)
        bound = deployment.program.guarantee.error_bound
        assert bound is not None
        assert deployment.error(3) <= bound

    def test_bound_is_not_silly(self) -> None:
        deployment = Deployment(NETWORKS["two convolutions"], rounding_bits=0)
        bound = deployment.program.guarantee.error_bound
        assert bound is not None
        assert bound / 200 < deployment.error(3) <= bound

    @settings(deadline=None, max_examples=4)
    @given(graphs(REAL_OPS, max_layers=3))
    def test_any_network(self, graph: Graph) -> None:
        deployment = Deployment(graph)
        bound = deployment.program.guarantee.error_bound
        assert bound is not None
        assert deployment.error(2) <= bound

    @pytest.mark.full
    @settings(deadline=None, max_examples=25)
    @given(graphs(REAL_OPS))
    def test_many_networks(self, graph: Graph) -> None:
        self.test_any_network.hypothesis.inner_test(self, graph)  # type: ignore[attr-defined]

    def test_an_input_of_several_ciphertexts(self) -> None:
        deployment = Deployment(chain((3, 32, 32), conv(2, 3, 3, 3), Reshape((200,)), linear(4, 200)))
        assert deployment.program.parameters["input_ciphertexts"] == 2
        bound = deployment.program.guarantee.error_bound
        assert bound is not None
        assert deployment.error(2) <= bound

    def test_order_is_kept(self) -> None:
        deployment = deployed("one linear layer")
        together = deployment.predict(deployment.x)
        assert together.shape == (6, 5)
        singly = np.concatenate([deployment.predict(x[None]) for x in deployment.x])
        step = ClientHalf.from_bytes(deployment.program.client)
        assert np.abs(together - singly).max() <= step.grid * step.output_range * 1.01
        assert deployment.predict(deployment.x[:0]).shape == (0, 5)
        assert BACKEND.simulate(deployment.graph, deployment.program, deployment.x[:0], 0).shape == (0, 5)

    def test_simulation_has_the_noise_of_encryption(self) -> None:
        deployment = Deployment(NETWORKS["residual"], rounding_bits=0)
        x = np.repeat(deployment.x, 4, axis=0)
        expected = interpret_real(deployment.graph, x)
        executed = (deployment.predict(x) - expected).std()
        simulated = np.mean([(BACKEND.simulate(deployment.graph, deployment.program, x, seed) - expected).std()
                             for seed in range(5)])
        assert 1 / 3 < executed / simulated < 3

    def test_simulation_is_reproducible_and_bounded(self) -> None:
        deployment = deployed("two convolutions")
        x = inputs_for(deployment.graph, 40, seed=3)
        first, again = (BACKEND.simulate(deployment.graph, deployment.program, x, 5) for _ in range(2))
        assert np.array_equal(first, again)
        error = np.abs(first - interpret_real(deployment.graph, x)) * deployment.graph.output_type.scale_array()
        assert error.max() <= (deployment.program.guarantee.error_bound or 0)

    def test_primitives_match_the_counts(self) -> None:
        program = deployed("two convolutions").program
        seconds = BACKEND.primitives(program)
        assert seconds.keys() == program.counts.keys()
        assert all(value > 0 for value in seconds.values())
        assert {"rotations@4", "multiplications@1", "rescales@4"} <= program.counts.keys()

    def test_compilation_is_deterministic(self) -> None:
        graph = NETWORKS["degree 3"]
        a, b = (BACKEND.compile(graph, inputs_for(graph, 60), {}) for _ in range(2))
        assert (a.servers, a.client) == (b.servers, b.client)

    @pytest.mark.parametrize("options", [{"poly_modulus_degree": 8192}, {"scale_bits": 26}, {"security": 256}])
    def test_options(self, options: dict[str, int]) -> None:
        deployment = Deployment(NETWORKS["one linear layer"], **options)
        assert deployment.error(2) <= (deployment.program.guarantee.error_bound or 0)
        assert {**deployment.program.parameters, **options} == dict(deployment.program.parameters)


class TestSecrets:
    def test_the_server_has_no_secret(self) -> None:
        deployment = deployed("residual")
        deployment.predict(deployment.x[:1])
        half = ClientHalf.from_bytes(deployment.program.client)
        ring = Ring(half.parameters)
        (secret,) = frame.unpack(deployment.keys.secret, SECRET).parts
        assert ring.load("SecretKey", secret)
        public = [*frame.unpack(deployment.keys.evaluation, EVALUATION).parts,
                  *frame.unpack(deployment.program.servers[0], server.KIND).parts]
        for part in public:
            with pytest.raises(Unreadable):
                ring.load("SecretKey", part)
        held = [*vars(deployment.server).values(), *vars(deployment.server._ring).values(),
                *vars(deployment.server._engine).values(), *deployment.server._keys.values()]
        kinds = (ring.lib.SecretKey, ring.lib.Decryptor, ring.lib.KeyGenerator)
        assert not any(isinstance(value, kinds) for value in held)

    def test_a_secret_is_refused_by_the_server(self) -> None:
        deployment = deployed("residual")
        (message,) = deployment.client.encrypt(deployment.x[:1], deployment.keys)
        with pytest.raises(BundleError, match="ckks-secret"):
            deployment.server.run(message, deployment.keys.secret)
        (secret,) = frame.unpack(deployment.keys.secret, SECRET).parts
        evaluation = frame.unpack(deployment.keys.evaluation, EVALUATION)
        smuggled = frame.pack(EVALUATION, [secret, evaluation.parts[1]], evaluation.meta)
        with pytest.raises(BundleError, match="not a RelinKeys"):
            deployment.server.run(message, smuggled)

    def test_a_server_half_with_more_in_it_is_refused(self) -> None:
        program = deployed("one linear layer").program
        opened = frame.unpack(program.servers[0], server.KIND)
        from safetensors.numpy import load, save

        weights = save({**load(opened.parts[1]), "secret": np.zeros(3)})
        with pytest.raises(BundleError, match="more than a program"):
            BACKEND.servers([frame.pack(server.KIND, [opened.parts[0], weights], opened.meta)])

    def test_the_client_half_has_no_weights(self) -> None:
        graph = NETWORKS["one linear layer"]
        node = graph.nodes[0]
        assert isinstance(node.op, Linear)
        other = Graph(graph.input, (Node(node.name, replace(node.op, weight=node.op.weight[:, ::-1].copy()),
                                         node.inputs),), graph.output)
        x = np.tile(inputs_for(graph, 9)[:, :1], (1, 9))
        halves = [dict(frame.unpack(BACKEND.compile(g, x, {}).client, "ckks-client").meta) for g in (graph, other)]
        assert halves[0].pop("model") != halves[1].pop("model")
        assert halves[0] == halves[1]

    def test_keys_are_fresh(self) -> None:
        deployment = deployed("one number")
        assert deployment.client.keygen().secret != deployment.keys.secret
        first, second = (deployment.client.encrypt(deployment.x[:1], deployment.keys)[0] for _ in range(2))
        assert first != second


class TestBadInput:
    def test_keys_of_another_model(self) -> None:
        one, other = deployed("one linear layer"), deployed("one convolution")
        (message,) = one.client.encrypt(one.x[:1], one.keys)
        for call in (lambda: one.server.run(message, other.keys.evaluation),
                     lambda: other.server.run(message, other.keys.evaluation),
                     lambda: one.client.encrypt(one.x[:1], other.keys),
                     lambda: one.client.decrypt([message], other.keys)):
            with pytest.raises(KeyMismatch):
                call()

    def test_keys_of_another_client(self) -> None:
        deployment = deployed("one linear layer")
        stranger = deployment.client.keygen()
        (message,) = deployment.client.encrypt(deployment.x[:1], deployment.keys)
        with pytest.raises(KeyMismatch, match="another key"):
            deployment.server.run(message, stranger.evaluation)
        reply = deployment.server.run(message, deployment.keys.evaluation)
        with pytest.raises(DecryptionError, match="other keys"):
            deployment.client.decrypt([reply], stranger)

    def test_a_reply_under_another_secret(self) -> None:
        deployment = deployed("one linear layer")
        stranger = deployment.client.keygen()
        (message,) = deployment.client.encrypt(deployment.x[:1], deployment.keys)
        reply = deployment.server.run(message, deployment.keys.evaluation)
        renamed = frame.pack(SECRET, frame.unpack(stranger.secret, SECRET).parts,
                             frame.unpack(deployment.keys.secret, SECRET).meta)
        with pytest.raises(DecryptionError, match="outside the calibrated range"):
            deployment.client.decrypt([reply], Keys(renamed, b""))

    @pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:50], lambda b: b[:-1],
                                        lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b"hello" * 20])
    def test_damaged_bytes(self, damage: object) -> None:
        assert callable(damage)
        deployment = deployed("one linear layer")
        keys = deployment.keys
        (message,) = deployment.client.encrypt(deployment.x[:1], keys)
        reply = deployment.server.run(message, keys.evaluation)
        for call in (lambda: deployment.server.run(damage(message), keys.evaluation),
                     lambda: deployment.server.run(message, damage(keys.evaluation)),
                     lambda: deployment.client.encrypt(deployment.x[:1], Keys(damage(keys.secret), b"")),
                     lambda: BACKEND.client(damage(deployment.program.client)),
                     lambda: BACKEND.servers([damage(deployment.program.servers[0])])):
            with pytest.raises(BundleError):
                call()
        with pytest.raises(DecryptionError):
            deployment.client.decrypt([damage(reply)], keys)
        with pytest.raises(DecryptionError):
            deployment.client.decrypt([], keys)

    def test_garbage_inside_whole_frames(self) -> None:
        deployment = deployed("one convolution")
        keys = deployment.keys
        (message,) = deployment.client.encrypt(deployment.x[:1], keys)
        opened, evaluation = frame.unpack(message, INPUT_MESSAGE), frame.unpack(keys.evaluation, EVALUATION)
        reply = deployment.server.run(message, keys.evaluation)
        messages = [frame.pack(INPUT_MESSAGE, [b"garbage"], opened.meta),
                    frame.pack(INPUT_MESSAGE, [], opened.meta),
                    frame.pack(INPUT_MESSAGE, opened.parts, {**opened.meta, "count": "one"}),
                    frame.pack(INPUT_MESSAGE, [evaluation.parts[1]], opened.meta)]
        for bad in messages:
            with pytest.raises(BundleError):
                deployment.server.run(bad, keys.evaluation)
        for parts in ([b"", b"x"], [b"x", evaluation.parts[1]], [b""], [b"", b""]):
            with pytest.raises(BundleError):
                deployment.server.run(message, frame.pack(EVALUATION, parts, evaluation.meta))
        answer = frame.unpack(reply, "ckks-output")
        for parts in ([b"x"], [], [opened.parts[0]] * 2):
            with pytest.raises(DecryptionError):
                deployment.client.decrypt([frame.pack("ckks-output", parts, answer.meta)], keys)

    def test_a_ciphertext_of_a_wrong_level_or_scale(self) -> None:
        deployment = deployed("residual")
        half = ClientHalf.from_bytes(deployment.program.client)
        sent = half.input
        for source in (replace(sent, level=sent.level - 1), replace(sent, scale=sent.scale * 2)):
            client = CkksClient(replace(half, input=source))
            (message,) = client.encrypt(deployment.x[:1], deployment.keys)
            with pytest.raises(BundleError, match=r"wrong level|belongs"):
                deployment.server.run(message, deployment.keys.evaluation)

    @pytest.mark.parametrize("x", [np.zeros((1, 8), int), np.zeros(9, int), np.zeros((1, 9)), np.full((1, 9), 4),
                                   np.full((1, 9), np.nan), np.array(3)])
    def test_wrong_inputs(self, x: np.ndarray) -> None:
        deployment = deployed("one linear layer")
        with pytest.raises(InvalidInput):
            deployment.client.encrypt(x, deployment.keys)

    def test_newer_schemas(self) -> None:
        program = deployed("one linear layer").program
        client = frame.unpack(program.client, "ckks-client")
        with pytest.raises(BundleError, match="newer"):
            BACKEND.client(frame.pack("ckks-client", [], {**client.meta, "schema": 99}))
        opened = frame.unpack(program.servers[0], server.KIND)
        head = opened.parts[0].replace(b'"schema": 1', b'"schema": 9')
        with pytest.raises(BundleError, match="newer"):
            BACKEND.servers([frame.pack(server.KIND, [head, opened.parts[1]], opened.meta)])

    def test_key_cache_forgets(self) -> None:
        deployment = deployed("one number")
        clients = [deployment.client.keygen() for _ in range(6)]
        for keys in [*clients, *clients[::-1]]:
            (message,) = deployment.client.encrypt(deployment.x[:1], keys)
            deployment.client.decrypt([deployment.server.run(message, bytes(keys.evaluation))], keys)
        assert len(deployment.server._keys) <= 4
        deployment.server.close()
        assert not deployment.server._keys

    def test_without_the_library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        program = deployed("one linear layer").program
        monkeypatch.setitem(sys.modules, "tenseal", None)
        with pytest.raises(MissingExtra, match=r"secure_infer\[ckks\]"):
            BACKEND.client(program.client)

    def test_importing_loads_neither_torch_nor_the_library(self) -> None:
        code = ("import sys, secure_infer.backends.ckks as c; c.CkksBackend(); "
                "print([m for m in ('torch', 'tenseal') if m in sys.modules])")
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert found.stdout.strip() == "[]"
