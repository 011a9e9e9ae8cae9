"""Targets of the same weights: values, gradients, real ciphertexts of each protocol, and how far simulations agree."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torch import Tensor, nn

import secure_infer as si
from secure_infer.attacks import Access, Answer, Bounds, FunctionTarget, Goal, attack
from secure_infer.client import Client
from secure_infer.errors import InvalidInput, LimitExceeded, NotApplicable, UsageError
from secure_infer.targets import Executed, Interpreted, Simulated, Subject, agreement, form_of, subject
from tests.bench.networks import binary_mlp, polynomial_cnn

pytestmark = pytest.mark.filterwarnings("ignore")  # concrete, crypten and brevitas warn about themselves
FORMS = {
    "digits-cnn-float": "float",
    "digits-cnn-qat": "quantized",
    "digits-mlp-bnn": "binarized",
    "digits-cnn-poly": "polynomial",
}
GRAPHS = {"tfhe": binary_mlp, "ckks": polynomial_cnn, "mpc": binary_mlp}


@pytest.fixture(scope="module", params=FORMS)
def weights(request: pytest.FixtureRequest) -> Iterator[Subject]:
    found = subject(request.param)
    yield found
    found.close()


def test_a_form_is_read_off_the_layers(weights: Subject) -> None:
    assert weights.form == FORMS[weights.name]
    assert form_of(nn.Sequential(nn.Linear(2, 2), nn.ReLU())) == "float"


def test_values_are_those_of_the_graph_and_gradients_those_of_the_network(weights: Subject) -> None:
    x, labels = weights.images[:40], weights.labels[:40]
    plain, exact = weights.target("float"), weights.target("quantized")
    clear = weights.compiled("clear").predict(x.numpy(), "clear")
    np.testing.assert_allclose(exact.query(x).scores, clear, rtol=1e-5, atol=1e-5)
    assert float((plain.query(x).labels == labels).double().mean()) > 0.85
    assert int((plain.query(x).labels != exact.query(x).labels).sum()) <= 1

    def loss(logits: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, labels, reduction="none")

    logits, gradient = exact.differentiate(x, loss)
    assert torch.allclose(logits, exact.query(x).scores.to(logits), atol=1e-4)
    assert gradient.shape == x.shape and bool(gradient.isfinite().all())
    # A quantized network shows gradients all the same: it does not mask them.
    assert float(gradient.flatten(1).norm(dim=1).ne(0).double().mean()) > 0.7
    assert exact.meter.gradients == 40


def test_a_batch_may_be_empty(weights: Subject) -> None:
    for kind in ("float", "quantized"):
        assert weights.target(kind).query(weights.images[:0]).scores.shape == (0, 10)


def test_less_access_shows_less() -> None:
    weights = subject("digits-mlp-bnn")
    shown = weights.target("binarized", access=Access.LABEL)
    assert shown.query(weights.images[:3]).scores is None
    with pytest.raises(NotApplicable):
        shown.differentiate(weights.images[:3], lambda logits: logits.sum(1))


def test_every_misuse_is_named() -> None:
    weights = subject("digits-mlp-bnn")
    with pytest.raises(UsageError, match="is binarized, not polynomial"):
        weights.target("polynomial")
    with pytest.raises(UsageError, match="no 'bgv'"):
        weights.target("simulated", "bgv")
    with pytest.raises(UsageError, match="no 'fp16'"):
        weights.target("fp16")


@pytest.mark.parametrize("protocol", GRAPHS)
def test_real_ciphertexts_are_asked_and_their_bytes_counted(protocol: str) -> None:
    graph = GRAPHS[protocol]()
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.random((3, 1, 6, 6), dtype=np.float32))
    compiled = si.compile(graph, rng.random((60, 1, 6, 6)), protocol)
    try:
        executed = Executed(compiled.client(), budget=5)
        simulated = FunctionTarget(Simulated(compiled), (1, 6, 6), 4)
        clear = FunctionTarget(Interpreted(graph, exact=protocol != "ckks"), (1, 6, 6), 4)
        found = agreement(simulated, executed, x, clear)
        assert found.same == found.n == 3 and found.p_value > 0.001
        assert found.largest <= 2 * (compiled.guarantee.error_bound or 0) + 1e-6
        assert executed.meter.sent > 1000 and executed.meter.received > 500 and executed.meter.queries == 3
        assert executed.query(x[:0]).labels.shape == (0,)
        with pytest.raises(LimitExceeded):
            executed.query(x)
    finally:
        compiled.close()


def test_bright_images_are_attacked_on_ciphertexts_as_in_the_clear() -> None:
    """Four bits a pixel end below 1, to which the client clips: no reason to refuse an image, or to treat it apart."""
    weights = subject("digits-cnn-qat")
    try:
        executed, exact = (weights.target(kind, "mpc") for kind in ("encrypted", "quantized"))
        kind = weights.compiled("mpc").interface.input
        bright = weights.images[weights.images.flatten(1).amax(1) > kind.high * max(kind.scale)][:2]
        assert len(bright) == 2 and executed.bounds == exact.bounds == Bounds(0, 1)
        labels = exact.query(bright).labels
        chosen = attack("surfree")(queries=10)  # type: ignore[call-arg]
        found = [chosen(target, bright, Goal(labels)) for target in (executed, exact)]
        torch.testing.assert_close(*found, rtol=0, atol=0)
    finally:
        weights.close()


def test_a_bundle_is_a_remote_target(tmp_path: object) -> None:
    compiled = si.compile(binary_mlp(), np.random.default_rng(0).random((20, 1, 6, 6)), "clear")
    path = compiled.save(f"{tmp_path}/tiny.bundle")
    with Client.connect(path) as client:
        target = Executed(client, access=Access.LABEL)
        assert target.shape == (1, 6, 6) and target.classes == 4 and target.bounds == Bounds(0, 1)
        found = target.query(torch.zeros(2, 1, 6, 6))
        assert found.scores is None and found.labels.dtype == torch.int64
        with pytest.raises(InvalidInput, match="give no gradients"):
            Executed(client, access=Access.WHITE_BOX)


def noisy(shift: float, noise: float, seed: int) -> FunctionTarget:
    generator = torch.Generator().manual_seed(seed)

    def answers(x: Tensor) -> Tensor:
        return x + shift + noise * torch.randn(x.shape, generator=generator)

    return FunctionTarget(answers, (5,), 5)


@pytest.mark.parametrize(("shift", "noise", "agrees"), [(0, 0.1, True), (0.2, 0.1, False), (0, 0.4, False)])
def test_errors_of_another_distribution_are_noticed(shift: float, noise: float, agrees: bool) -> None:
    x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    found = agreement(noisy(0, 0.1, 1), noisy(shift, noise, 2), x, noisy(0, 0, 3))
    assert (found.p_value > 0.05) == agrees
    # The labels differ as well, so both are asked again: what is noisier agrees with itself less often.
    assert found.same < 60 and found.simulated_again is not None and found.executed_again is not None
    assert noise == 0.1 or found.executed_again < found.simulated_again


def test_the_distance_is_that_of_kolmogorov_and_smirnov() -> None:
    x = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    found = agreement(noisy(0, 0.1, 1), noisy(0.05, 0.1, 2), x, noisy(0, 0, 3))
    drawn, real = (noisy(s, 0.1, seed).query(x).scores - x for s, seed in ((0, 1), (0.05, 2)))
    assert found.ks == pytest.approx(ks_2samp(drawn.ravel(), real.ravel()).statistic, abs=1e-9)


def test_equal_answers_agree_wholly_and_labels_alone_do_not_do() -> None:
    x = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    exact = noisy(0, 0, 0)
    found = agreement(exact, exact, x, exact)
    assert (found.same, found.n, found.ks, found.p_value, found.largest) == (9, 9, 0, 1, 0)
    assert found.executed_again is None
    assert found.as_dict()["interval"][0] > 0.6
    labels = FunctionTarget(lambda x: x.argmax(1), (5,), 5, access=Access.LABEL)
    with pytest.raises(InvalidInput, match="labels only"):
        agreement(labels, exact, x, exact)
    with pytest.raises(InvalidInput, match="nothing to compare"):
        agreement(exact, exact, x[:0], exact)
    assert isinstance(exact.query(x), Answer)
