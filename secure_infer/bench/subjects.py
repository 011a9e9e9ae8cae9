"""A model of the zoo with the data it is measured on."""

from __future__ import annotations

import hashlib
from typing import Any

from secure_infer.bench.contender import Subject
from secure_infer.bench.untrained import is_untrained, untrained
from secure_infer.errors import missing_extra
from secure_infer.graph import Graph, store

CALIBRATION = 1000
"""Training images that set the ranges."""


def load_subject(name: str) -> Subject:
    """A trained model of the zoo, calibrated on training images and measured on held-out ones; or one that it lacks.

    It lacks the untrained ones, and that of `faces`, which is trained at each call.

    Raises:
        UsageError: No such model.
        DataError: Its data set is nowhere to be found.
        MissingExtra: torch, which the zoo needs, is not installed.
    """
    if is_untrained(name):
        return untrained(name)
    try:
        from secure_infer import zoo
        from secure_infer.bench import faces
        from secure_infer.nn.data import load_dataset

        if name == faces.NAME:
            return faces.faces()
        recipe, net = zoo.recipe(name), zoo.load_model(name)
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "brevitas"):
            raise
        raise missing_extra(f"The model {name}", "train", error.name) from error
    data = load_dataset(recipe.dataset)
    return Subject(name, net, data.x_train[:CALIBRATION], data.x_test, data.y_test, recipe.protocols)


def fingerprint(net: Any) -> str:
    """SHA-256 of a network's weights, by which records of the same network are known; hexadecimal.

    Args:
        net: A torch network, of which names, types, shapes and values of the state count, or a `Graph`.
    """
    if isinstance(net, Graph):
        return store.fingerprint(net)
    digest = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        array = value.detach().cpu().numpy()
        digest.update(f"{name} {array.dtype} {array.shape};".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
