"""Foolbox, torchattacks, ART and adv-lib, each by its published interface; one that is not installed is left out."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

from secure_infer.bench.attacks.contest import Contender, Field

LIBRARIES = {
    "foolbox": "foolbox",
    "torchattacks": "torchattacks",
    "art": "adversarial-robustness-toolbox",
    "adv_lib": "adv-lib",
}
"""Modules, and the distributions that they come from."""


def installed() -> tuple[dict[str, str], dict[str, str]]:
    """Versions of the libraries that can be imported, and of each other one a line that says why it is left out."""
    found, missing = {}, {}
    for module, distribution in LIBRARIES.items():
        try:
            found[distribution] = version(distribution)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                import_module(_ENTRIES.get(module, module))
        except PackageNotFoundError:
            missing[distribution] = f"{distribution} is left out: it is not installed (pip install {distribution})."
        except ImportError as error:
            del found[distribution]
            missing[distribution] = f"{distribution} is left out: it can't be imported ({error})."
    return found, missing


_ENTRIES = {"adv_lib": "adv_lib.attacks", "art": "art.attacks.evasion"}


def quiet(attack: Callable[[], Any]) -> Contender:
    """The attack without what it prints and warns of."""

    def run() -> Tensor:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            found = attack()
        return torch.as_tensor(found).detach()

    return run


def foolbox(ground: Field, name: str, *, radius: float | None = None, **settings: Any) -> Contender:
    """An attack of Foolbox by its class name; within a radius, or minimal."""
    import foolbox as library

    model = library.PyTorchModel(ground.net, bounds=(0, 1), device=ground.images.device)
    attack = getattr(library.attacks, name)(**settings)
    return quiet(lambda: attack(model, ground.images, ground.labels, epsilons=radius)[1])


def torchattacks(ground: Field, name: str, **settings: Any) -> Contender:
    """An attack of torchattacks by its class name."""
    import torchattacks as library

    attack = getattr(library, name)(ground.net, **settings)
    return quiet(lambda: attack(ground.images, ground.labels))


def torchattacks_in_turn(ground: Field, *stages: tuple[str, Mapping[str, Any]]) -> Contender:
    """Attacks of torchattacks in turn, each on what the earlier ones left standing."""
    import torchattacks as library

    attack = library.MultiAttack([getattr(library, name)(ground.net, **settings) for name, settings in stages])
    return quiet(lambda: attack(ground.images, ground.labels))


def art(ground: Field, name: str, **settings: Any) -> Contender:
    """An attack of the Adversarial Robustness Toolbox by its class name, on all images as one batch."""
    from art.attacks import evasion
    from art.estimators.classification import PyTorchClassifier

    shape = tuple(ground.images.shape[1:])
    with torch.no_grad():
        classes = ground.net(ground.images[:1]).shape[1]
    model = PyTorchClassifier(
        ground.net, nn.CrossEntropyLoss(), shape, classes, clip_values=(0.0, 1.0), device_type="cpu"
    )
    attack = getattr(evasion, name)(model, batch_size=len(ground.labels), verbose=False, **settings)
    return quiet(lambda: attack.generate(ground.images.numpy(), ground.labels.numpy()))


def adv_lib(ground: Field, name: str, **settings: Any) -> Contender:
    """An attack of adv-lib by its function's name."""
    from adv_lib import attacks

    attack = getattr(attacks, name)
    return quiet(lambda: attack(ground.net, ground.images, ground.labels, **settings))


def only(found: Mapping[str, str], **makers: Callable[[], Contender]) -> dict[str, Contender]:
    """The contenders whose library is installed, by its name; given by the names of their modules."""
    return {LIBRARIES[name]: make() for name, make in makers.items() if LIBRARIES[name] in found}
