"""CKKS on real ciphertexts: error within the bound, secrets where they belong, and every kind of bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings

from secure_infer.backends.base import Keys, Program
from secure_infer.backends.ckks import CkksBackend, server
from secure_infer.backends.ckks.client import EVALUATION, INPUT_MESSAGE, SECRET, CkksClient
from secure_infer.backends.ckks.half import ClientHalf
from secure_infer.backends.ckks.seal import Ring, Unreadable
from secure_infer.backends.ckks.server import CkksServer
from secure_infer.errors import (
    BundleError,
    DecryptionError,
    InvalidInput,
    KeyMismatch,
    MissingExtra,
)
from secure_infer.graph import (
    Graph,
    Linear,
    Node,
    Reshape,
    interpret_real,
)
from secure_infer.wire import frame
from tests.backends.ckks_networks import NETWORKS, chain, conv, linear
from tests.strategies import REAL_OPS, graphs, inputs_for

BACKEND = CkksBackend()


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
    @pytest.mark.parametrize(
        "name",
        [
            "one linear layer",
            "one number",
            "one convolution",
            "residual",
            "degree 3",
            "a polynomial per channel",
            "two convolutions",
            "nothing but a bias",
            "zero",
        ],
    )
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
        simulated = np.mean(
            [(BACKEND.simulate(deployment.graph, deployment.program, x, seed) - expected).std() for seed in range(5)]
        )
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
        public = [
            *frame.unpack(deployment.keys.evaluation, EVALUATION).parts,
            *frame.unpack(deployment.program.servers[0], server.KIND).parts,
        ]
        for part in public:
            with pytest.raises(Unreadable):
                ring.load("SecretKey", part)
        held = [
            *vars(deployment.server).values(),
            *vars(deployment.server._ring).values(),
            *vars(deployment.server._engine).values(),
            *deployment.server._keys.values(),
        ]
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
        other = Graph(
            graph.input,
            (Node(node.name, replace(node.op, weight=node.op.weight[:, ::-1].copy()), node.inputs),),
            graph.output,
        )
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
        for call in (
            lambda: one.server.run(message, other.keys.evaluation),
            lambda: other.server.run(message, other.keys.evaluation),
            lambda: one.client.encrypt(one.x[:1], other.keys),
            lambda: one.client.decrypt([message], other.keys),
        ):
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
        renamed = frame.pack(
            SECRET, frame.unpack(stranger.secret, SECRET).parts, frame.unpack(deployment.keys.secret, SECRET).meta
        )
        with pytest.raises(DecryptionError, match="outside the calibrated range"):
            deployment.client.decrypt([reply], Keys(renamed, b""))

    @pytest.mark.parametrize(
        "damage",
        [
            lambda b: b"",
            lambda b: b[:50],
            lambda b: b[:-1],
            lambda b: b[:-1] + bytes([b[-1] ^ 1]),
            lambda b: b"hello" * 20,
        ],
    )
    def test_damaged_bytes(self, damage: object) -> None:
        assert callable(damage)
        deployment = deployed("one linear layer")
        keys = deployment.keys
        (message,) = deployment.client.encrypt(deployment.x[:1], keys)
        reply = deployment.server.run(message, keys.evaluation)
        for call in (
            lambda: deployment.server.run(damage(message), keys.evaluation),
            lambda: deployment.server.run(message, damage(keys.evaluation)),
            lambda: deployment.client.encrypt(deployment.x[:1], Keys(damage(keys.secret), b"")),
            lambda: BACKEND.client(damage(deployment.program.client)),
            lambda: BACKEND.servers([damage(deployment.program.servers[0])]),
        ):
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
        messages = [
            frame.pack(INPUT_MESSAGE, [b"garbage"], opened.meta),
            frame.pack(INPUT_MESSAGE, [], opened.meta),
            frame.pack(INPUT_MESSAGE, opened.parts, {**opened.meta, "count": "one"}),
            frame.pack(INPUT_MESSAGE, [evaluation.parts[1]], opened.meta),
        ]
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

    @pytest.mark.parametrize(
        "x",
        [
            np.zeros((1, 8), int),
            np.zeros(9, int),
            np.zeros((1, 9)),
            np.full((1, 9), 4),
            np.full((1, 9), np.nan),
            np.array(3),
        ],
    )
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

    @pytest.mark.parametrize(
        "change",
        [
            {"rotations": [0]},
            {"rotations": [1, 1]},
            {"rotations": [1 << 40]},
            {"positions": [-1] * 5},
            {"positions": [0]},
            {"half": 0.0},
            {"output_range": float("nan")},
            {"shape": [-9]},
            {"grid": -1.0},
            {"low": "x"},
            {"extra": 1},
            {"input": {"level": 7, "scale": 2.0**29, "period": 16, "blocks": 1}},
            {"parameters": {}},
        ],
    )
    def test_client_halves_of_a_bad_server(self, change: dict[str, object]) -> None:
        opened = frame.unpack(deployed("one linear layer").program.client, "ckks-client")
        with pytest.raises(BundleError, match="can't be read"):
            BACKEND.client(frame.pack("ckks-client", [], {**opened.meta, **change}))

    @pytest.mark.parametrize(
        "change",
        [("level", 5), ("level", -3), ("power", 9), ("sources", []), ("split", {}), ("sources", [["nobody", 16]])],
    )
    def test_server_halves_that_make_no_sense(self, change: tuple[str, object]) -> None:
        opened = frame.unpack(deployed("one linear layer").program.servers[0], server.KIND)
        head = json.loads(opened.parts[0])
        head["steps"][0][change[0]] = change[1]
        parts = [json.dumps(head).encode(), opened.parts[1]]
        for damaged in (parts, parts[:1]):
            with pytest.raises(BundleError):
                BACKEND.servers([frame.pack(server.KIND, damaged, opened.meta)])

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
        code = (
            "import sys, secure_infer.backends.ckks as c; c.CkksBackend(); "
            "print([m for m in ('torch', 'tenseal') if m in sys.modules])"
        )
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert found.stdout.strip() == "[]"
