"""What every defense of the table keeps to, whatever its settings."""

import dataclasses

import pytest
import torch
from torch import nn

from secure_infer.attacks import Access, Bounds, Goal, Target
from secure_infer.attacks.evaluate import evaluate
from secure_infer.attacks.noise import Noise
from secure_infer.attacks.pgd import PGD
from secure_infer.defenses import DEFENSES, Data, Place, defense
from secure_infer.errors import InvalidInput, UsageError
from tests.defenses.problem import CLASSES, problem

ROWS = {
    "adversarial-training": [{"method": m, "epochs": 2, "steps": 2} for m in ("standard", "pgd", "trades", "fast")],
    "input-transformation": [
        {"kind": "bits", "strength": 2},
        {"kind": "jpeg", "strength": 50},
        {"kind": "median", "strength": 3},
        {"kind": "blur", "strength": 1},
    ],
    "magnet": [{"epochs": 60, "channels": 4, "noise": 0.05}],
    "prada": [{"block": False}],
    "query-budget": [{"capacity": 3000}],
    "randomized-smoothing": [{"deviation": 0.1, "samples": 16, "epochs": 1}, {"epochs": 0, "samples": 8}],
}
ASKED = ("prada", "query-budget")
"""Defenses that guard only what has to be asked."""
CASES = [(name, settings) for name, rows in ROWS.items() for settings in rows]
every_variant = pytest.mark.parametrize(("name", "settings"), CASES, ids=str)
BAD = {
    "adversarial-training": {"method": "magic", "radius": -1.0, "norm": "l0", "epochs": 0},
    "input-transformation": {"kind": "median", "strength": 4},
    "magnet": {"false_positives": 0.0},
    "prada": {"threshold": 1.5, "least": 3},
    "query-budget": {"capacity": 0},
    "randomized-smoothing": {"deviation": 0.0},
}


def defended(name: str, settings: dict, access: Access | None = None, seed: int = 0) -> Target:
    case = problem()
    shown = access if access is not None else (Access.LABEL if name in ASKED else Access.WHITE_BOX)
    return defense(name)(**settings)(case.net, case.data, access=shown, seed=seed)


def test_every_defense_has_a_row_and_every_row_a_defense():
    assert list(DEFENSES) == list(ROWS) == list(BAD)


@pytest.mark.parametrize("name", DEFENSES)
def test_declarations_are_complete_and_settings_are_frozen(name):
    cls = defense(name)
    assert cls.name == name and cls.places and cls.places <= set(Place)
    assert cls.places_left() == cls.places - {Place.SERVER_SIDE_PLAINTEXT}
    with pytest.raises(dataclasses.FrozenInstanceError):
        cls().name = "x"
    for field in dataclasses.fields(cls):
        assert f"{field.name}: " in (cls.__doc__ or ""), f"{name}: the docstring does not say what {field.name} is"


def test_encryption_blinds_whoever_must_read_inputs_at_the_server():
    left = {name: {place.value for place in defense(name).places_left()} for name in DEFENSES}
    assert left["magnet"] == left["input-transformation"] == {"client_side"}
    assert not left["prada"]
    assert left["query-budget"] == {"server_side_count"} and left["adversarial-training"] == {"training"}


@every_variant
def test_a_defended_model_is_a_target_that_still_classifies_and_can_be_attacked(name, settings):
    case, target = problem(), defended(name, settings)
    right = target.query(case.images).labels == case.labels
    assert target.shape == tuple(case.images.shape[1:]) and right.float().mean() > 0.8, right
    attack = PGD(radius=0.4, steps=5) if target.access is Access.WHITE_BOX else Noise(draws=3)
    outcome = evaluate(target, attack, case.images, Goal(case.labels))
    assert outcome.success > 0.3


@every_variant
def test_the_network_is_left_as_it_is_and_the_global_generator_too(name, settings):
    case = problem()
    before = {key: value.clone() for key, value in case.net.state_dict().items()}
    state = torch.get_rng_state()
    defended(name, settings)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[key], value) for key, value in case.net.state_dict().items())


@every_variant
def test_one_seed_gives_the_same_defense(name, settings):
    answers = [defended(name, settings, Access.LABEL, seed=5).query(problem().images).labels for _ in range(2)]
    assert torch.equal(*answers)


@every_variant
def test_shows_no_more_than_the_access_that_is_asked_for(name, settings):
    target = defended(name, settings, Access.LABEL)
    assert target.access is Access.LABEL and target.query(problem().images).scores is None


@pytest.mark.parametrize("name", DEFENSES)
def test_settings_that_make_no_sense_are_refused(name):
    with pytest.raises(UsageError) as caught:
        defense(name)(**BAD[name])
    assert caught.value.problems


def test_an_unknown_defense_is_refused_with_those_that_exist():
    with pytest.raises(UsageError, match="magnet"):
        defense("hope")


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (torch.rand(3, 4), torch.tensor([0, 1])),
        (torch.rand(3, 4) * 2, torch.tensor([0, 1, 2])),
        (torch.rand(0, 4), torch.tensor([], dtype=torch.int64)),
        (torch.rand(2, 4), torch.tensor([0.0, 1.0])),
        (torch.full((2, 4), torch.nan), torch.tensor([0, -1])),
    ],
)
def test_data_that_does_not_fit_is_refused(images, labels):
    with pytest.raises(InvalidInput, match="can't learn"):
        Data(images, labels)


def test_defenses_that_need_images_say_so():
    net, data = nn.Linear(5, CLASSES), Data(torch.rand(20, 5), torch.zeros(20).long())
    for name, settings in (("magnet", {}), ("input-transformation", {"kind": "jpeg", "strength": 5})):
        with pytest.raises(InvalidInput):
            defense(name)(**settings)(net, data)
    assert defense("input-transformation")()(net, data).shape == (5,)


def test_other_bounds_hold():
    case = problem()
    data = Data(case.data.images * 4 - 1, case.data.labels, Bounds(-1, 3))
    net = nn.Sequential(_Rescale(), case.net)
    for name, settings in CASES:
        shown = Access.LABEL if name in ASKED else Access.WHITE_BOX
        target = defense(name)(**settings)(net, data, access=shown)
        assert target.bounds == Bounds(-1, 3)
        if name != "randomized-smoothing":  # its noise is relative to the bounds
            assert (target.query(case.images * 4 - 1).labels == case.labels).float().mean() > 0.7, (name, settings)


class _Rescale(nn.Module):
    def forward(self, x):
        return (x + 1) / 4
