"""A network for the largest images at hand, trained where it is measured: no weights made of faces are kept."""

from __future__ import annotations

from secure_infer.bench.contender import Subject
from secure_infer.nn.data import load_dataset
from secure_infer.nn.recipe import Recipe, Training
from secure_infer.nn.train import train

NAME = "orl-cnn-float"
RECIPE = Recipe(
    NAME,
    "ORL faces by a plain convolutional network with ReLUs, in floating point",
    "orl",
    "relu-cnn",
    {"image": [1, 112, 92], "classes": 40, "convolutions": [[16, 5, 2, 2], [32, 3, 2, 1], [64, 3, 2, 1]]},
    Training(
        epochs=40,
        seed=0,
        batch_size=32,
        learning_rate=3e-3,
        schedule="one-cycle",
        weight_decay=1e-4,
        validation=0.0,
        shift=4.0,
        flip=True,
    ),
)


def faces() -> Subject:
    """The network, the same at each call, and the held-out images.

    Raises:
        DataError: The data set is not to be found.
    """
    data = load_dataset(RECIPE.dataset)
    return Subject(NAME, train(RECIPE, dataset=data).net, data.x_train, data.x_test, data.y_test)
