"""PRADA: it tells a thief's queries from honest ones, and can't where the server sees ciphertexts."""

import pytest
import torch
from torch import nn

from secure_infer.attacks import Access
from secure_infer.attacks.extraction import jacobian_substitute
from secure_infer.defenses import Place
from secure_infer.defenses.prada import Prada, Watch, shapiro_wilk
from secure_infer.errors import LimitExceeded, UsageError
from tests.defenses.problem import CLASSES, problem


def thief() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, CLASSES))


def test_the_statistic_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    generator = torch.Generator().manual_seed(0)
    for n in (12, 50, 101, 1000):
        for values in (torch.randn(n, generator=generator), torch.rand(n, generator=generator) ** 3):
            assert shapiro_wilk(values) == pytest.approx(stats.shapiro(values.double().numpy()).statistic, abs=1e-4)
    assert shapiro_wilk(torch.ones(20)) == 0


def test_a_thief_is_noticed_and_refused_and_honest_clients_are_not():
    case = problem()
    honest = Prada()(case.net, case.data)
    assert len(honest.query(case.data.images).labels) == 400 and honest.alarm_at is None
    with torch.random.fork_rng(devices=[]):
        watched = Prada(block=False)(case.net, case.data)
        jacobian_substitute(watched, case.images[:20], thief, queries=400)
        assert watched.alarm_at is not None and 100 < watched.alarm_at < 400
        with pytest.raises(LimitExceeded, match="steal"):
            jacobian_substitute(Prada()(case.net, case.data), case.images[:20], thief, queries=400)


def test_it_learns_nothing_from_ciphertexts():
    """A server of shares or ciphertexts sees one class and messages that are uniform, whatever the queries are."""
    generator = torch.Generator().manual_seed(1)
    watch = Watch(0.95, 100)
    masks = torch.randint(256, (400, 64), generator=generator)
    queries = torch.cat([problem().images.flatten(1)] * 10)  # each honest image ten times, as no honest client asks
    in_clear = Watch(0.95, 100)
    assert any(in_clear.sees(query, 0) for query in queries)
    shares = ((queries * 255).round().long() + masks) % 256
    assert not any(watch.sees(share.float(), 0) for share in shares)
    assert not Prada.places_left() and Prada.places == {Place.SERVER_SIDE_PLAINTEXT}


def test_a_white_box_can_not_be_watched():
    with pytest.raises(UsageError, match="white box"):
        Prada()(problem().net, problem().data, access=Access.WHITE_BOX)
