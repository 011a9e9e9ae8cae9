"""CKKS: what the client sends - raw, gathered, rotated copies, or a batch in the slots - never changes the result."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_infer.backends.base import Program
from secure_infer.backends.ckks import batch, run
from secure_infer.backends.ckks.client import CkksClient
from secure_infer.backends.ckks.crew import Crew
from secure_infer.backends.ckks.half import ClientHalf
from secure_infer.backends.ckks.packing import Sums
from secure_infer.errors import BundleError, ParametersError, ProtocolError, UsageError
from secure_infer.graph import INPUT, Add, Conv2d, Graph, Linear, Reshape, interpret_real
from secure_infer.wire import frame
from tests.backends.ckks_networks import (
    BACKEND,
    BENT,
    NETWORKS,
    SQUARE,
    Deployment,
    chain,
    conv,
    deployed,
    linear,
    poly,
)
from tests.strategies import inputs_for

KERNEL = Conv2d(np.arange(-37, 38).reshape(3, 1, 5, 5) % 7 - 7, np.arange(3), (1.0,), (2, 2))
CONVOLUTION = chain((1, 13, 11), KERNEL, BENT, Reshape((60,)), linear(14, 60), SQUARE, linear(3, 14))
PERCEPTRON = chain((20,), linear(9, 20), BENT, linear(9, 9), SQUARE, linear(4, 9))
SHIFT = poly(0, 1, shift=4)


def rotations(program: Program) -> int:
    return sum(n for name, n in program.counts.items() if name.startswith("rotations"))


@st.composite
def small_cnns(draw: st.DrawFn) -> Graph:
    """Two convolutions with channels, a residual addition, odd sizes from 7 to 33."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    depth, height, width = draw(st.integers(1, 2)), draw(st.integers(7, 33)), draw(st.integers(7, 33))

    def convolution(outputs: int, inputs: int, kernel: int, stride: int, padding: int) -> Conv2d:
        weight = rng.integers(-3, 4, (outputs, inputs, kernel, kernel))
        return Conv2d(weight, rng.integers(-3, 4, outputs), (1.0,), (stride, stride), (padding, padding))

    stride, kernel, channels = draw(st.integers(2, 3)), draw(st.sampled_from([3, 5])), draw(st.integers(1, 3))
    first = chain((depth, height, width), convolution(channels, depth, kernel, stride, kernel // 2))
    shape = first.output_type.shape
    size, rows = int(np.prod(shape)), rng.integers(-2, 3, (5, int(np.prod(shape))))
    body = [SHIFT, BENT, SHIFT, convolution(channels, channels, 3, 1, 1), SHIFT, SQUARE, SHIFT]
    residual = [(Add((1, 1)), "n7", "n7" if draw(st.booleans()) else "n3")]
    layers = [first.nodes[0].op, *body, *residual, Reshape((size,)), Linear(rows, rng.integers(-9, 9, 5))]
    return chain((depth, height, width), *layers)


class TestPlans:
    @pytest.mark.parametrize(
        ("graph", "input_plan"),
        [(CONVOLUTION, "raw"), (CONVOLUTION, "im2col"), (CONVOLUTION, "copies"), (PERCEPTRON, "copies")],
    )
    def test_error_stays_within_the_bound(self, graph: Graph, input_plan: str) -> None:
        deployment = Deployment(graph, input_plan=input_plan)
        assert deployment.error(2) <= deployment.bound
        assert deployment.program.parameters["input_plan"] == input_plan

    def test_a_dense_first_layer_has_nothing_to_gather(self) -> None:
        with pytest.raises(ParametersError, match="allows no input plan 'im2col'"):
            BACKEND.compile(PERCEPTRON, inputs_for(PERCEPTRON, 9), {"input_plan": "im2col"})

    def test_a_client_that_does_more_spares_rotations(self) -> None:
        x = inputs_for(CONVOLUTION, 40)
        programs = [BACKEND.compile(CONVOLUTION, x, {"input_plan": name}) for name in ("raw", "im2col", "copies")]
        raw, im2col, copies = (rotations(program) for program in programs)
        assert raw > im2col >= copies
        one, some, most = (program.parameters["input_ciphertexts"] for program in programs)
        assert one == 1 < some < most == 25

    def test_a_second_reader_of_the_input_leaves_only_the_raw_plan(self) -> None:
        graph = NETWORKS["residual"]
        assert deployed("residual").program.parameters["input_plan"] == "raw"
        reads_twice = chain((6,), linear(6, 6), BENT, linear(6, 6), (Add(), "n2", INPUT))
        with pytest.raises(ParametersError, match="allows no input plan 'copies'"):
            BACKEND.compile(reads_twice, inputs_for(reads_twice, 9), {"input_plan": "copies"})
        with pytest.raises(UsageError, match="Expected one of auto, raw"):
            BACKEND.compile(graph, inputs_for(graph, 9), {"input_plan": "fast"})

    @settings(deadline=None, max_examples=2)
    @given(small_cnns(), st.sampled_from(["raw", "im2col", "copies"]))
    def test_convolutions_of_odd_sizes(self, graph: Graph, input_plan: str) -> None:
        deployment = Deployment(graph, input_plan=input_plan)
        assert deployment.error(1) <= deployment.bound

    @pytest.mark.full
    @settings(deadline=None, max_examples=20)
    @given(small_cnns(), st.sampled_from(["raw", "im2col", "copies"]))
    def test_many_convolutions_of_odd_sizes(self, graph: Graph, input_plan: str) -> None:
        self.test_convolutions_of_odd_sizes.hypothesis.inner_test(self, graph, input_plan)  # type: ignore[attr-defined]

    @settings(deadline=None, max_examples=3)
    @given(small_cnns(), st.sampled_from(["auto", "raw", "im2col", "copies"]))
    def test_simulated_convolutions_of_odd_sizes(self, graph: Graph, input_plan: str) -> None:
        program = BACKEND.compile(graph, inputs_for(graph, 40), {"input_plan": input_plan})
        x = inputs_for(graph, 4, seed=1)
        error = np.abs(BACKEND.simulate(graph, program, x, 0) - interpret_real(graph, x))
        assert (error * graph.output_type.scale_array()).max() <= (program.guarantee.error_bound or 0)

    @pytest.mark.parametrize("count", range(1, 40))
    def test_sums(self, count: int) -> None:
        x = np.arange(64) ** 2
        total = x
        for steps, doubles in Sums(3, count).chain():
            total = total + np.roll(total if doubles else x, -steps)
        assert np.array_equal(total, sum(np.roll(x, -3 * k) for k in range(count)))


class TestBatch:
    def test_needs_no_rotations_and_keeps_the_order(self) -> None:
        deployment = Deployment(PERCEPTRON, input_plan="batch")
        assert not rotations(deployment.program)
        assert deployment.error(6) <= deployment.bound
        assert deployment.predict(deployment.x[:0]).shape == (0, 4)

    def test_more_samples_than_a_ciphertext_holds(self) -> None:
        deployment = Deployment(NETWORKS["one number"], input_plan="batch")
        most = deployment.program.parameters["samples_per_ciphertext"]
        x = np.resize(inputs_for(deployment.graph, 50), (most + 5, 1))
        (message,) = deployment.client.encrypt(x, deployment.keys)
        assert len(frame.unpack(message, "ckks-input").parts) == 2
        error = np.abs(deployment.predict(x) - interpret_real(deployment.graph, x))
        assert (error * deployment.graph.output_type.scale_array()).max() <= deployment.bound

    def test_polynomials_of_higher_degree(self) -> None:
        deployment = Deployment(NETWORKS["degree 3"], input_plan="batch")
        assert deployment.error(4) <= deployment.bound

    def test_simulation_has_the_noise_of_encryption(self) -> None:
        deployment = Deployment(PERCEPTRON, input_plan="batch", rounding_bits=0)
        x = inputs_for(deployment.graph, 400, seed=2)
        expected = interpret_real(deployment.graph, x)
        executed = (deployment.predict(x) - expected).std()
        simulated = (BACKEND.simulate(deployment.graph, deployment.program, x, 0) - expected).std()
        assert 1 / 3 < executed / simulated < 3

    def test_a_wrong_count_is_refused(self) -> None:
        deployment = Deployment(NETWORKS["one number"], input_plan="batch")
        (message,) = deployment.client.encrypt(deployment.x[:2], deployment.keys)
        opened = frame.unpack(message, "ckks-input")
        for count in (10**6, -1, True, "2"):
            forged = frame.pack("ckks-input", opened.parts, {**opened.meta, "count": count})
            with pytest.raises(BundleError, match="malformed"):
                deployment.server.run(forged, deployment.keys.evaluation)

    def test_quiet_slots_leave_out_those_near_one(self) -> None:
        quiet = batch.quiet_slots(64)
        assert 0 not in quiet and len(quiet) >= 29
        values = np.arange(2 * len(quiet) + 1.0)[:, None]
        slots = np.stack(list(batch.chunks(values, 64)))
        assert slots.shape == (3, 1, 32)
        assert np.array_equal(batch.unchunked(slots, len(values), 64), values)

    def test_too_wide_a_layer(self) -> None:
        wide = chain((1, 1, 8), conv(4200, 1, 1), SQUARE, conv(1, 4200, 1))
        with pytest.raises(ParametersError, match="too wide for batches"):
            BACKEND.compile(wide, inputs_for(wide, 4), {"input_plan": "batch"})


class TestColumns:
    def test_columns_survive(self) -> None:
        program = BACKEND.compile(CONVOLUTION, inputs_for(CONVOLUTION, 9), {"input_plan": "im2col"})
        half = ClientHalf.from_bytes(program.client)
        assert half.columns.shape == (half.input.period, half.input.blocks)
        assert set(half.columns.reshape(-1)) - {-1} == set(range(143))

    @pytest.mark.parametrize("value", [143, -2, 1 << 30])
    def test_columns_that_name_no_input_are_refused(self, value: int) -> None:
        program = BACKEND.compile(CONVOLUTION, inputs_for(CONVOLUTION, 9), {"input_plan": "raw"})
        half = ClientHalf.from_bytes(program.client)
        with pytest.raises(BundleError, match="columns out of range"):
            ClientHalf.from_bytes(replace(half, columns=np.full_like(half.columns, value)).to_bytes())

    def test_columns_of_another_size_are_refused(self) -> None:
        program = BACKEND.compile(CONVOLUTION, inputs_for(CONVOLUTION, 9), {"input_plan": "raw"})
        half = ClientHalf.from_bytes(program.client)
        for columns in (half.columns[:-1], np.repeat(half.columns, 1000, axis=1)):
            with pytest.raises(BundleError, match="columns of another size"):
                ClientHalf.from_bytes(replace(half, columns=columns).to_bytes())

    def test_a_ciphertext_of_other_parameters_is_refused(self) -> None:
        deployment = deployed("residual")
        half = ClientHalf.from_bytes(deployment.program.client)
        other = ClientHalf.from_bytes(deployed("one linear layer").program.client)
        assert half.parameters != other.parameters
        client = CkksClient(replace(half, parameters=other.parameters, input=replace(half.input, level=0)))
        keys = client.keygen()
        (message,) = client.encrypt(deployment.x[:1], keys)
        named = frame.unpack(deployment.keys.evaluation, "ckks-evaluation").meta
        forged = frame.pack("ckks-input", frame.unpack(message, "ckks-input").parts, {**named, "count": 1})
        with pytest.raises(BundleError, match="not a ciphertext of these parameters"):
            deployment.server.run(forged, deployment.keys.evaluation)


class TestUpload:
    def test_whole_ciphertexts_are_larger_and_give_the_same(self) -> None:
        sizes = {}
        for upload in ("seeded", "expanded"):
            for input_plan in ("raw", "batch"):
                deployment = Deployment(PERCEPTRON, upload=upload, input_plan=input_plan)
                assert deployment.program.parameters["upload"] == upload
                assert deployment.error(3) <= deployment.bound
                sizes[upload, input_plan] = len(deployment.client.encrypt(deployment.x[:1], deployment.keys)[0])
        assert sizes["expanded", "raw"] > 1.8 * sizes["seeded", "raw"]
        assert sizes["expanded", "batch"] > 1.8 * sizes["seeded", "batch"]

    def test_an_unknown_way_is_refused(self) -> None:
        with pytest.raises(UsageError, match="seeded, expanded"):
            BACKEND.compile(PERCEPTRON, inputs_for(PERCEPTRON, 4), {"upload": "fast"})


class TestCrew:
    @staticmethod
    def crew(processes: int) -> Crew[int]:
        return Crew(processes, lambda number: str(number).encode(), int)

    @pytest.mark.parametrize("processes", [1, 2, 3])
    @pytest.mark.parametrize("count", [2, 3, 7])
    def test_order_is_kept(self, processes: int, count: int) -> None:
        def work(numbers: range) -> list[int]:
            return [number**2 + 1 for number in numbers]

        assert self.crew(processes).share(work, count) == [k**2 + 1 for k in range(count)]

    def test_a_process_that_fails_is_one_clear_error(self) -> None:
        with pytest.raises(ProtocolError, match="could not be run"):
            self.crew(2).share(lambda numbers: [1 // (3 - number) for number in numbers], 4)
        with pytest.raises(ZeroDivisionError):
            self.crew(2).share(lambda numbers: [1 // number for number in numbers], 4)

    @pytest.mark.parametrize("upload", ["seeded", "expanded"])
    def test_a_wide_layer_of_a_batch_is_shared(self, upload: str) -> None:
        graph = chain((30,), linear(24, 30), SQUARE, linear(2, 24))
        deployment = Deployment(graph, input_plan="batch", upload=upload)
        deployment.server.processes = 2
        assert deployment.error(3) <= deployment.bound
        spent = deployment.server.cpu_seconds()
        assert spent > 0
        deployment.server.processes = 1
        assert deployment.error(3) <= deployment.bound
        assert deployment.server.cpu_seconds() == spent

    def test_a_single_block_with_many_rotations_is_shared_and_gives_the_very_same(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(run, "WORTH_SHARING", 0.0)
        graph = chain((100,), linear(90, 100), SQUARE, linear(80, 90), SQUARE, linear(2, 80))
        deployment = Deployment(graph, input_plan="raw")
        (message,) = deployment.client.encrypt(deployment.x[:1], deployment.keys)
        replies = {}
        spent = 0.0
        for processes in (1, 2):
            deployment.server.processes = processes
            replies[processes] = deployment.server.run(message, deployment.keys.evaluation)
            assert (deployment.server.cpu_seconds() > spent) == (processes > 1)
            spent = deployment.server.cpu_seconds()
        assert replies[1] == replies[2]

    def test_what_was_faster_is_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(run, "WORTH_SHARING", 0.0)
        graph = chain((100,), linear(90, 100), SQUARE, linear(80, 90), SQUARE, linear(2, 80))
        deployment = Deployment(graph, input_plan="raw")
        deployment.server.processes = 2
        (message,) = deployment.client.encrypt(deployment.x[:1], deployment.keys)
        spent = []
        for slow in (None, None, True, False):
            if slow is not None:
                seconds = deployment.server._program._seconds
                seconds |= {way: float(way[1] == slow) for way in seconds}
            deployment.server.run(message, deployment.keys.evaluation)
            spent.append(deployment.server.cpu_seconds())
        # Alone at first, shared to compare, then alone while sharing was slower, and shared while it was faster.
        assert 0 == spent[0] < spent[1] == spent[2] < spent[3]
