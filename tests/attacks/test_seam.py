"""The seam: what a target gives, counts and refuses; what an attack checks before it starts."""

import pytest
import torch

from secure_infer.attacks import Access, Attack, Bounds, FunctionTarget, Goal, NetworkTarget
from secure_infer.errors import InvalidInput, LimitExceeded, NotApplicable

SHAPE = (4,)


class Still(Attack):
    name, access, norms, minimal = "still", Access.LOGITS, frozenset({"l2"}), True

    def _run(self, target, images, goal, generator):
        target.query(images)
        return images


def linear() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(4, 3)


def network(access: Access = Access.WHITE_BOX, budget: int | None = None) -> NetworkTarget:
    return NetworkTarget(linear(), SHAPE, access=access, budget=budget)


def test_answers_hold_no_more_than_the_access_gives():
    x = torch.rand(5, 4)
    logits = linear()(x)
    label, probabilities, scores = (network(access).query(x) for access in list(Access)[:3])
    assert label.scores is None and torch.equal(label.labels, logits.argmax(1))
    torch.testing.assert_close(probabilities.scores.exp().sum(1), torch.ones(5))
    torch.testing.assert_close(scores.scores, logits)


def test_gradient_and_jacobian_equal_autograd_and_are_counted():
    target, x = network(), torch.rand(5, 4)
    logits, gradient = target.differentiate(x, lambda logits: logits[:, 0] ** 2)
    weight = linear().weight.detach()
    torch.testing.assert_close(gradient, 2 * logits[:, :1] * weight[0])
    _, jacobian = target.jacobian(x, torch.tensor([[2, 1]] * 5))
    torch.testing.assert_close(jacobian, weight[[2, 1]].expand(5, 2, 4))
    assert (target.meter.queries, target.meter.gradients) == (10, 15)


def test_a_large_batch_goes_through_the_network_in_parts(monkeypatch):
    seen, x = [], torch.rand(11, 4)
    net = linear()
    net.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    target, loss = NetworkTarget(net, SHAPE), lambda logits: logits.square().sum(1)
    whole, (logits, gradient) = target.query(x).scores, target.differentiate(x, loss)
    monkeypatch.setattr("secure_infer.attacks.networks._IN_CACHE", 16)
    seen.clear()
    torch.testing.assert_close(target.query(x).scores, whole)
    assert seen == [4, 4, 3]
    for part, once in zip(target.differentiate(x, loss), (logits, gradient), strict=True):
        torch.testing.assert_close(part, once)
    assert target.query(x[:0]).scores.shape == (0, 3)
    monkeypatch.setattr("secure_infer.attacks.networks._IN_CACHE", 1)
    assert len(target.query(x).labels) == 11  # an image goes through whole, however large


def test_backward_stand_in_changes_gradients_and_no_value():
    hard = torch.nn.Sequential(linear(), torch.nn.Hardtanh(-1e-9, 1e-9))
    target = NetworkTarget(hard, SHAPE, backward=linear())
    x = torch.rand(5, 4)
    logits, gradient = target.differentiate(x, lambda logits: logits[:, 0])
    torch.testing.assert_close(logits, hard(x))
    torch.testing.assert_close(gradient, linear().weight.detach()[0].expand(5, 4))


def test_budget_is_never_exceeded_and_a_refused_query_is_not_counted():
    target = network(budget=5)
    target.query(torch.rand(3, 4))
    with pytest.raises(LimitExceeded, match="budget of 5"):
        target.query(torch.rand(3, 4))
    assert target.meter.queries == 3
    with pytest.raises(InvalidInput, match="No query"):
        network(budget=0)


def test_attack_without_its_access_is_not_applicable():
    with pytest.raises(NotApplicable, match="still needs LOGITS"):
        Still()(network(Access.LABEL), torch.rand(2, 4), Goal(torch.tensor([0, 1])))
    with pytest.raises(NotApplicable, match="WHITE_BOX"):
        network(Access.LOGITS).differentiate(torch.rand(2, 4), lambda logits: logits[:, 0])


def test_every_misfit_is_listed_at_once():
    goal = Goal(torch.tensor([0, 7]), torch.tensor([0.5, 1.0]))
    with pytest.raises(InvalidInput) as caught:
        Still()(network(), torch.full((2, 5), 3.0), goal)
    places = [problem.where for problem in caught.value.problems]
    assert places == ["images", "images", "labels", "targets", "goal"]


@pytest.mark.parametrize("bad", [float("nan"), -0.1])
def test_images_must_lie_within_the_bounds(bad):
    with pytest.raises(InvalidInput, match="outside the bounds"):
        Still()(network(), torch.full((2, 4), bad), Goal(torch.tensor([0, 1])))


@pytest.mark.parametrize("ends", [(1, 0), (0.5, 0.5), (0, float("inf")), (float("nan"), 1)])
def test_bounds_must_hold_something(ends):
    with pytest.raises(InvalidInput, match="low below high"):
        Bounds(*ends)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (torch.nn.Sequential(linear(), torch.nn.Softmax(1)), "probabilities"),
        (torch.nn.Unflatten(1, (2, 2)), "not logits"),
        (torch.nn.Sequential(linear(), torch.nn.Threshold(1e9, torch.nan)), "not logits"),
        (torch.nn.Linear(5, 3), "does not take such inputs"),
        (torch.nn.Unflatten(1, (3, 3)), "does not take such inputs"),
    ],
)
def test_outputs_that_are_no_logits_are_refused(net, message):
    with pytest.raises(InvalidInput, match=message):
        NetworkTarget(net, SHAPE)
    with pytest.raises(InvalidInput, match=message):
        NetworkTarget(linear(), SHAPE, backward=net)


def test_a_stand_in_of_other_classes_is_refused():
    with pytest.raises(InvalidInput, match="2 classes, the model has 3"):
        NetworkTarget(linear(), SHAPE, backward=torch.nn.Linear(4, 2))


def test_function_answers_with_labels_or_logits_and_never_gradients():
    target = FunctionTarget(lambda x: x.argmax(1), SHAPE, 4, access=Access.LABEL)
    assert target.query(torch.eye(4)).labels.tolist() == [0, 1, 2, 3]
    with pytest.raises(InvalidInput, match="no gradients"):
        FunctionTarget(lambda x: x, SHAPE, 4, access=Access.WHITE_BOX)


@pytest.mark.parametrize(
    ("function", "access"),
    [
        (lambda x: x[:, :3], Access.LOGITS),
        (lambda x: x[:2], Access.PROBABILITIES),
        (lambda x: x.argmax(1), Access.LOGITS),
        (lambda x: x[:, 0], Access.LABEL),
        (lambda x: x.argmax(1)[:2], Access.LABEL),
    ],
)
def test_a_function_that_gives_other_answers_is_refused(function, access):
    with pytest.raises(InvalidInput, match="gives no answers"):
        FunctionTarget(function, SHAPE, 4, access=access).query(torch.eye(4))


def test_goals_agree_on_success_and_margin():
    torch.manual_seed(1)
    logits, labels = torch.randn(200, 5), torch.randint(5, (200,))
    for goal in (Goal(labels), Goal(labels, torch.randint(5, (200,))), Goal(labels, confidence=0.3)):
        assert torch.equal(goal.reached(logits), goal.margin(logits) < 0)
        half = torch.arange(0, 200, 2)
        assert torch.equal(goal.select(half).reached(logits[half]), goal.reached(logits)[half])
        assert torch.equal(goal.repeat(2).margin(logits.repeat(2, 1))[200:], goal.margin(logits))
