"""Adversarial training: what its loop does at each step, and that it buys robustness."""

import pytest
import torch
from torch import nn

from secure_infer.attacks import Bounds, NetworkTarget
from secure_infer.attacks.best_effort import best_effort
from secure_infer.attacks.pgd import PGD
from secure_infer.defenses.training import AdversarialTraining, Shuffled, train
from tests.defenses.problem import problem

RADIUS = 0.15


class Seen(nn.Module):
    """Records what it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(64, 4), nn.BatchNorm1d(64)

    def forward(self, x):
        if self.training:
            seen.append(x.detach().clone())
        return self.linear(self.norm(x.flatten(1)))


seen: list[torch.Tensor] = []


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("method", ["pgd", "trades", "fast"])
def test_trains_on_images_within_the_growing_radius_and_the_bounds(method, norm):
    seen.clear()
    data = problem().data
    batches = [(data.images[:30], data.labels[:30])] * 4
    train(Seen(), batches, AdversarialTraining(method, radius=RADIUS, norm=norm, epochs=2, steps=3, warmup=0.5))
    assert len(seen) == 8
    for step, x in enumerate(seen):
        clean, moved = x.chunk(2) if method == "trades" else (batches[0][0], x)
        assert torch.equal(clean, batches[0][0])
        delta = (moved - clean).flatten(1)
        size = delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)
        allowed = RADIUS * min(1, (step + 1) / 4)
        assert size.max() <= allowed * (1 + 1e-5) and size.max() > 0.5 * allowed
        assert moved.ge(0).all() and moved.le(1).all()


def test_standard_training_disturbs_nothing_and_noise_leaves_the_bounds():
    data = problem().data
    for method in ("standard", "noise"):
        seen.clear()
        train(Seen(), [(data.images, data.labels)], AdversarialTraining(method, radius=0.5, epochs=1, warmup=0.0))
        delta = seen[0] - data.images
        assert delta.std() == 0 if method == "standard" else 0.48 < delta.std() < 0.52
        assert method == "standard" or (seen[0] < 0).any()


def test_the_inner_attack_leaves_statistics_of_normalization_alone():
    net = Seen()
    batches = [(problem().data.images[:30], problem().data.labels[:30])]
    trained = train(net, batches, AdversarialTraining(epochs=1, steps=5))
    assert trained.norm.num_batches_tracked == 1 and net.norm.num_batches_tracked == 0
    assert not trained.training and not any(p.requires_grad for p in trained.parameters())


def test_buys_robustness():
    case = problem()
    attacks = [PGD(radius=RADIUS, steps=20), PGD(radius=RADIUS, steps=20, restarts=3, loss="margin")]

    def robust(net: nn.Module) -> float:
        target = NetworkTarget(net, tuple(case.images.shape[1:]))
        found = best_effort(target, attacks, case.images, case.labels, norm="linf", radius=RADIUS * 1.001)
        return found.robust_accuracy(RADIUS * 1.001)[0]

    before = robust(case.net)
    for method in ("pgd", "trades", "fast"):
        settings = AdversarialTraining(method, radius=RADIUS, epochs=20, batch_size=64, steps=5)
        after = robust(train(case.net, Shuffled(case.data, 64), settings))
        assert after >= before + 0.25, (method, before, after)


def test_batches_hold_each_image_once_an_epoch_in_an_order_of_its_own():
    data = problem().data
    batches = Shuffled(data, 64, seed=1)
    epochs = [torch.cat([x for x, _ in batches]) for _ in range(2)]
    assert len(batches) == 7 and not torch.equal(*epochs)
    for epoch in epochs:
        torch.testing.assert_close(epoch.sum(0), data.images.sum(0))


def test_other_bounds_and_a_generator_of_batches_on_one_device():
    data = problem().data
    batches = [(data.images[:10] * 4 - 1, data.labels[:10])]
    seen.clear()
    train(Seen(), batches, AdversarialTraining("fast", radius=3.0, epochs=1, warmup=0.0), bounds=Bounds(-1, 3))
    assert seen[0].min() == -1 and seen[0].max() == 3
