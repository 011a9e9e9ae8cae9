"""CKKS on real ciphertexts: error within the bound, the noise of simulation, options, and what importing loads."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings

from secure_infer.backends.ckks.half import ClientHalf
from secure_infer.errors import MissingExtra
from secure_infer.graph import Graph, Reshape, interpret_real
from tests.backends.ckks_networks import BACKEND, NETWORKS, Deployment, chain, conv, deployed, linear
from tests.strategies import REAL_OPS, graphs, inputs_for


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
        assert deployment.error(3) <= deployment.bound

    def test_bound_is_not_silly(self) -> None:
        deployment = Deployment(NETWORKS["two convolutions"], rounding_bits=0)
        assert deployment.bound / 200 < deployment.error(3) <= deployment.bound

    @settings(deadline=None, max_examples=4)
    @given(graphs(REAL_OPS, max_layers=3))
    def test_any_network(self, graph: Graph) -> None:
        deployment = Deployment(graph)
        assert deployment.error(2) <= deployment.bound

    @pytest.mark.full
    @settings(deadline=None, max_examples=25)
    @given(graphs(REAL_OPS))
    def test_many_networks(self, graph: Graph) -> None:
        self.test_any_network.hypothesis.inner_test(self, graph)  # type: ignore[attr-defined]

    def test_an_input_of_several_ciphertexts(self) -> None:
        deployment = Deployment(chain((3, 32, 32), conv(2, 3, 3, 3), Reshape((200,)), linear(4, 200)))
        assert deployment.program.parameters["input_ciphertexts"] == 2
        assert deployment.error(2) <= deployment.bound

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
        assert error.max() <= deployment.bound

    def test_primitives_match_the_counts(self) -> None:
        program = deployed("two convolutions").program
        seconds = BACKEND.primitives(program)
        assert seconds.keys() == program.counts.keys()
        assert all(value > 0 for value in seconds.values())
        assert {"inputs@4", "rotations@2", "multiplications@1", "rescales@4"} <= program.counts.keys()

    def test_compilation_is_deterministic(self) -> None:
        graph = NETWORKS["degree 3"]
        a, b = (BACKEND.compile(graph, inputs_for(graph, 60), {}) for _ in range(2))
        assert (a.servers, a.client) == (b.servers, b.client)

    @pytest.mark.parametrize("options", [{"poly_modulus_degree": 8192}, {"scale_bits": 26}, {"security": 256}])
    def test_options(self, options: dict[str, int]) -> None:
        deployment = Deployment(NETWORKS["one linear layer"], **options)
        assert deployment.error(2) <= deployment.bound
        assert {**deployment.program.parameters, **options} == dict(deployment.program.parameters)

    def test_costs_measured_on_this_machine(self) -> None:
        assert (deployment := Deployment(NETWORKS["one linear layer"], measure_costs=True)).error(2) <= deployment.bound


class TestImports:
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
