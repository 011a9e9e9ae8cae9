"""CKKS without encryption: parameters, and the planned diagonals against the interpreter on plain vectors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_infer.backends.ckks import CkksBackend, backend, parameters, run, store
from secure_infer.backends.ckks.clear import ClearEngine, ScheduleError
from secure_infer.backends.ckks.lower import lower
from secure_infer.backends.ckks.normalize import normalize
from secure_infer.backends.ckks.parameters import Parameters
from secure_infer.backends.ckks.plan import levels, make_plan
from secure_infer.backends.ckks.seal import Ring
from secure_infer.errors import InvalidInput, ParametersError, UnsupportedNetwork, UsageError
from secure_infer.graph import INPUT, Graph, Reshape, Sign, interpret_real
from tests.backends.ckks_networks import BENT, CUBIC, NETWORKS, SQUARE, chain, conv, linear, poly
from tests.strategies import REAL_OPS, graphs, inputs_for

BACKEND = CkksBackend()


def small_ring(depth: int, squares: bool, slots: int) -> Parameters:
    """Parameters of few slots: insecure, for the algebra alone, so that vectors need several ciphertexts."""
    sizes = [56, *[31] * depth, 60]
    *data, special = parameters.primes(2 * slots, sizes)
    return Parameters(2 * slots, tuple(data), special, 31, 31 + squares, 128)


def clear_run(
    graph: Graph, x: np.ndarray, slots: int, input_plan: str = "auto"
) -> tuple[np.ndarray, np.ndarray, float]:
    """Outputs of the planned diagonals, those of the interpreter, and the output's range."""
    network = normalize(lower(graph), graph.input, x.astype(float))
    ring = small_ring(levels(network)[INPUT], all(unit.coefficients is None for unit in network.units), slots)
    plan, layout = make_plan(network, ring, input_plan)
    plan = store.plan_from_bytes(*store.plan_to_bytes(plan))
    engine = ClearEngine(ring)
    blocks = backend._run_clear(engine, run.Program(engine, plan), plan, network.scale_input(x.astype(float)))
    slots_out = np.concatenate([c.values for c in blocks], axis=1)
    expected = interpret_real(graph, x).reshape(len(x), -1)
    copies = {0, (layout.extent or slots) // layout.period - 1} if layout.plain else {0}
    block, slot = np.divmod(layout.positions, layout.period)
    found = [slots_out[:, block * slots + slot + copy * layout.period] * network.output_range for copy in copies]
    assert np.allclose(found[0], found[-1], rtol=0, atol=1e-9 * network.output_range)
    return found[0], expected, network.output_range


def assert_same_algebra(graph: Graph, slots: int, input_plan: str = "auto") -> None:
    x = inputs_for(graph, 12)
    found, expected, output_range = clear_run(graph, x, slots, input_plan)
    # What rounds to zero is replaced by the least plaintext, 2^-24 of a value.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * output_range)


class TestAlgebra:
    @settings(deadline=None, max_examples=200)
    @given(graphs(REAL_OPS))
    def test_planned_diagonals_equal_the_interpreter(self, graph: Graph) -> None:
        assert_same_algebra(graph, 64)

    @settings(deadline=None, max_examples=60)
    @given(graphs(REAL_OPS), st.sampled_from(["raw", "im2col", "copies"]), st.sampled_from([64, 256]))
    def test_every_input_plan(self, graph: Graph, input_plan: str, slots: int) -> None:
        try:
            assert_same_algebra(graph, slots, input_plan)
        except ParametersError as error:
            assert "allows no input plan" in str(error) and input_plan != "raw"

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

    @settings(deadline=None, max_examples=25)
    @given(graphs(REAL_OPS, max_layers=3))
    def test_simulated_errors_stay_within_the_bound(self, graph: Graph) -> None:
        program = BACKEND.compile(graph, inputs_for(graph, 60), {})
        x = inputs_for(graph, 20, seed=1)
        error = np.abs(BACKEND.simulate(graph, program, x, 0) - interpret_real(graph, x))
        assert (error * graph.output_type.scale_array()).max() <= (program.guarantee.error_bound or 0)

    def test_a_strided_convolution_shares_diagonals(self) -> None:
        graph = chain((1, 28, 28), conv(5, 1, 5, 2, 1), SQUARE, Reshape((845,)), linear(10, 845))
        network = normalize(lower(graph), graph.input, inputs_for(graph, 4).astype(float))
        plan, _ = make_plan(network, parameters.choose(2, True, {}))
        assert len(plan.steps[0].diagonals.keys) <= 36
        babies, giants = plan.steps[0].rotations
        assert len(set(babies)) + len(set(giants)) <= 14

    def test_channels_interleave_in_the_gaps_of_strides(self) -> None:
        layers = conv(16, 8, 3, 2, 1), SQUARE, conv(16, 16, 3, 1, 1), SQUARE, Reshape((1024,)), linear(4, 1024)
        graph = chain((8, 16, 16), *layers)
        network = normalize(lower(graph), graph.input, inputs_for(graph, 4).astype(float))
        plan, _ = make_plan(network, small_ring(4, True, 2048), "raw")
        strided, next_one, _ = plan.steps
        # Four channels in a cell of 256 slots, four cells: kernel positions and places in the gaps differ by 4 x 4,
        # then 7 x 7, in each of the four differences between cells.
        assert (strided.affine.period, len(strided.diagonals.keys)) == (1024, 4 * 4 * 4)
        assert len(next_one.diagonals.keys) <= 4 * 7 * 7
        assert_same_algebra(graph, 2048, "raw")

    @pytest.mark.parametrize("size", [7, 9, 12, 15, 33])
    def test_images_of_odd_sizes_in_rasters(self, size: int) -> None:
        pixels = ((size + 1) // 2) ** 2
        layers = conv(6, 3, 3, 2, 1), SQUARE, conv(4, 6, 3, 1, 1), SQUARE, Reshape((4 * pixels,)), linear(3, 4 * pixels)
        for slots in (1024, 8192):
            assert_same_algebra(chain((3, size, size), *layers), slots, "raw")

    def test_measured_costs_decide(self) -> None:
        graph = chain((60,), linear(60, 60), SQUARE, linear(4, 60))
        network = normalize(lower(graph), graph.input, inputs_for(graph, 4).astype(float))
        ring = small_ring(2, True, 1024)
        operations = ("rotations", "plain_multiplications", "inputs")
        made = {}
        for dear in operations:
            seconds = {f"{name}@{level}": 1e-3 if name != dear else 1.0 for name in operations for level in range(3)}
            made[dear] = make_plan(network, ring, "auto", seconds)[0]
        assert made["inputs"].input.blocks == 1 < made["rotations"].input.blocks
        assert len(made["rotations"].rotations()) < len(made["inputs"].rotations())

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

    @pytest.mark.parametrize(
        "options",
        [
            {"poly_modulus_degree": 5000},
            {"scale_bits": 99},
            {"security": 80},
            {"scale_bits": True},
            {"nonsense": 1},
            {"rounding_bits": -1},
            {"rounding_bits": "4"},
            {"flooding_bits": 99},
            {"measure_costs": 1},
            {"flooding_bits": True},
            {"security": "128"},
        ],
    )
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
