"""Examples made on logistic regression, linear SVMs, trees and neighbors, against autograd and fitted models."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.tree import DecisionTreeClassifier

from secure_infer.attacks.transfer import Tree, against_weights, logistic_sign, nearest_leaf, neighbor_sign

RANDOM = np.random.default_rng(0)


def test_logistic_sign_is_the_sign_of_autograd():
    x, labels = RANDOM.uniform(0.3, 0.7, (9, 6)), RANDOM.integers(4, size=9)
    weights, biases = RANDOM.normal(size=(4, 6)), RANDOM.normal(size=4)
    point = torch.from_numpy(x).requires_grad_()
    logits = point @ torch.from_numpy(weights).T + torch.from_numpy(biases)
    torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels), reduction="sum").backward()
    expected = x + 0.2 * point.grad.sign().numpy()
    np.testing.assert_allclose(logistic_sign(x, labels, weights, biases, 0.2), expected)


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_neighbor_sign_is_the_sign_of_autograd(temperature):
    x, labels = RANDOM.uniform(0.3, 0.7, (5, 6)), RANDOM.integers(3, size=5)
    known, classes = RANDOM.uniform(size=(40, 6)), np.arange(40) % 3
    point = torch.from_numpy(x).requires_grad_()
    votes = (-torch.cdist(point, torch.from_numpy(known)).square() / temperature).softmax(1)
    own = votes * torch.from_numpy(classes == labels[:, None])
    own.sum(1).log().sum().backward()
    expected = x - 0.2 * point.grad.sign().numpy()
    found = neighbor_sign(x, labels, known, classes, 0.2, temperature=temperature)
    np.testing.assert_allclose(found, expected)


def test_step_against_the_weights_has_its_length_and_lowers_the_score_and_keeps_the_bounds():
    x, labels, weights = RANDOM.uniform(0.4, 0.6, (7, 5)), RANDOM.integers(3, size=7), RANDOM.normal(size=(3, 5))
    moved = against_weights(x, labels, weights, 0.3)
    np.testing.assert_allclose(np.linalg.norm(moved - x, axis=1), 0.3)
    before, after = ((points @ weights.T)[np.arange(7), labels] for points in (x, moved))
    np.testing.assert_allclose(before - after, 0.3 * np.linalg.norm(weights[labels], axis=1))
    far = against_weights(x, labels, weights, 50.0)
    assert far.min() == 0 and far.max() == 1


def plain(fitted: DecisionTreeClassifier) -> Tree:
    nodes = fitted.tree_
    classes = fitted.classes_[nodes.value[:, 0].argmax(1)]
    return Tree(nodes.children_left, nodes.children_right, nodes.feature, nodes.threshold, classes)


def test_nearest_leaf_always_changes_the_class_and_few_features():
    digits = load_digits()
    x = (digits.data / 16).astype(np.float32)
    fitted = DecisionTreeClassifier(random_state=0).fit(x[:1200], digits.target[:1200])
    moved = nearest_leaf(x[1200:], plain(fitted))
    assert (fitted.predict(moved.astype(np.float32)) != fitted.predict(x[1200:])).all()
    assert moved.min() >= 0 and moved.max() <= 1
    assert np.median((moved != x[1200:]).sum(1)) <= 2


def test_a_tree_of_one_class_leaves_inputs_as_they_are():
    x = np.linspace(0, 1, 12, dtype=np.float32).reshape(4, 3)
    fitted = DecisionTreeClassifier().fit(x, np.zeros(4))
    np.testing.assert_array_equal(nearest_leaf(x, plain(fitted)), x)
    assert nearest_leaf(x[:0], plain(fitted)).shape == (0, 3)
