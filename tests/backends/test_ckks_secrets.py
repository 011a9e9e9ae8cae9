"""CKKS: secrets where they belong, fresh keys, and what the server keeps of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from secure_infer.backends.base import Keys
from secure_infer.backends.ckks import server
from secure_infer.backends.ckks.client import EVALUATION, SECRET, CkksClient
from secure_infer.backends.ckks.half import ClientHalf
from secure_infer.backends.ckks.seal import Ring, Unreadable, decode
from secure_infer.errors import BundleError
from secure_infer.graph import Graph, Linear, Node, interpret_real
from secure_infer.wire import frame
from tests.backends.ckks_networks import BACKEND, NETWORKS, Deployment, deployed
from tests.strategies import inputs_for


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

    def test_key_cache_forgets(self) -> None:
        deployment = deployed("one number")
        clients = [deployment.client.keygen() for _ in range(6)]
        for keys in [*clients, *clients[::-1]]:
            (message,) = deployment.client.encrypt(deployment.x[:1], keys)
            deployment.client.decrypt([deployment.server.run(message, bytes(keys.evaluation))], keys)
        assert len(deployment.server._keys) <= 4
        deployment.server.close()
        assert not deployment.server._keys

    def test_what_the_server_has_decrypts_nothing(self) -> None:
        deployment = deployed("residual")
        (message,) = deployment.client.encrypt(deployment.x[:1], deployment.keys)
        reply = deployment.server.run(message, deployment.keys.evaluation)
        ring, lib = deployment.server._ring, deployment.server._ring.lib
        opened = deployment.server.open(deployment.keys.evaluation)
        for held in (opened.relinearization, opened.galois, ring.context, ring.encoder):
            with pytest.raises(TypeError):
                lib.Decryptor(ring.context, held)
        part = frame.unpack(reply, "ckks-output").parts[0]
        half = ClientHalf.from_bytes(deployment.program.client)
        c, guess = ring.load_ciphertext(part, half.output.level, half.output.scale), lib.Plaintext()
        lib.Decryptor(ring.context, lib.KeyGenerator(ring.context).secret_key()).decrypt(c, guess)
        with pytest.raises(BundleError, match="ckks-secret"):
            deployment.client.decrypt([reply], Keys(deployment.keys.evaluation, b""))
        read = decode(ring, guess)[list(half.positions)] * half.output_range
        true = interpret_real(deployment.graph, deployment.x[:1])[0]
        assert np.abs(read - true).max() > 10 * deployment.bound

    def test_missing_galois_keys_are_one_clear_error(self) -> None:
        deployment = deployed("residual")
        half = ClientHalf.from_bytes(deployment.program.client)
        some = CkksClient(replace(half, rotations=half.rotations[:-2])).keygen()
        with pytest.raises(BundleError, match=f"2 of the {len(half.rotations)} Galois keys .* are missing"):
            deployment.server.open(some.evaluation)
        more = CkksClient(replace(half, rotations=(*half.rotations, max(half.rotations) + 1))).keygen()
        with pytest.raises(BundleError, match="no use for"):
            deployment.server.open(more.evaluation)


class TestFlooding:
    def test_decrypted_values_are_noisy_within_the_bound(self) -> None:
        deployment = Deployment(NETWORKS["one linear layer"], flooding_bits=8, rounding_bits=0)
        (message,) = deployment.client.encrypt(deployment.x, deployment.keys)
        reply = deployment.server.run(message, deployment.keys.evaluation)
        first, second = (deployment.client.decrypt([reply], deployment.keys) for _ in range(2))
        half = ClientHalf.from_bytes(deployment.program.client)
        assert half.flooding == 2 ** np.ceil(np.log2(256 * deployment.program.parameters["noise"]))
        spread = (first - second).std() / (half.flooding * half.output_range)
        assert 0.6 < spread < 1.05  # sqrt(2 / 3) = 0.82 for a difference of uniform numbers
        assert deployment.error(6) <= deployment.bound
        plain = Deployment(NETWORKS["one linear layer"], rounding_bits=0)
        assert deployment.bound > 20 * plain.bound

    def test_simulation_floods_too(self) -> None:
        deployment = Deployment(NETWORKS["one linear layer"], flooding_bits=8, rounding_bits=0)
        x = np.repeat(deployment.x, 20, axis=0)
        error = BACKEND.simulate(deployment.graph, deployment.program, x, 0) - interpret_real(deployment.graph, x)
        half = ClientHalf.from_bytes(deployment.program.client)
        assert 0.4 < error.std() / (half.flooding * half.output_range) < 0.75
