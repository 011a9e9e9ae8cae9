"""What every attack of the table keeps to, whatever its settings."""

import dataclasses

import pytest
import torch

from secure_infer.attacks import ATTACKS, Access, Attack, Goal, attack
from secure_infer.attacks.norms import size
from secure_infer.errors import InvalidInput, NotApplicable, UsageError
from tests.attacks.table import IMAGE, ROWS, problem

CASES = [(name, settings) for name, row in ROWS.items() for settings in row.variants]
every_variant = pytest.mark.parametrize(("name", "settings"), CASES, ids=str)


def made(name: str, settings: dict) -> Attack:
    return attack(name)(**settings)


def norm_of(found: Attack) -> str:
    return getattr(found, "norm", None) or next(iter(found.norms))


def kinds(name: str) -> list[str]:
    return sorted(attack(name).goals)


def test_every_attack_has_a_row_and_every_row_an_attack():
    assert list(ATTACKS) == list(ROWS)


@pytest.mark.parametrize("name", ATTACKS)
def test_declarations_are_complete_and_settings_are_frozen(name):
    cls = attack(name)
    assert cls.name == name and isinstance(cls.access, Access) and isinstance(cls.minimal, bool)
    assert cls.norms and cls.norms <= {"l2", "linf", "l0"}
    assert cls.goals and cls.goals <= {"untargeted", "targeted", "confidence"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        cls().name = "x"
    undocumented = [field.name for field in dataclasses.fields(cls) if f"{field.name}:" not in documented(cls)]
    assert not undocumented, f"{name}: the docstring does not say what {undocumented} is"


def documented(cls: type) -> str:
    return "".join(base.__doc__ or "" for base in cls.__mro__).replace(", ", ":")


@every_variant
def test_reaches_its_goal_within_radius_and_bounds_by_itself_and_as_asked_again(name, settings):
    case, found = problem(), made(name, settings)
    for kind in kinds(name):
        goal = case.goal(kind)
        result = found(case.target(found.access), case.images, goal, seed=1)
        assert result.shape == case.images.shape and result.dtype == case.images.dtype
        assert result.ge(0).all() and result.le(1).all()
        success = goal.reached(case.net(result))
        assert success.float().mean() >= ROWS[name].succeeds, f"{kind}: {success.tolist()}"
        distances = size(result - case.images, norm_of(found))
        if found.minimal:
            untouched = (result == case.images).flatten(1).all(1)
            assert (success | untouched).all(), "a failed image is changed"
        else:
            assert distances.amax() <= found.radius * (1 + 1e-5)


@every_variant
def test_an_image_that_is_already_fooled_stays_as_it_is(name, settings):
    case, found = problem(), made(name, settings)
    if found.minimal and "untargeted" in found.goals:
        result = found(case.target(found.access), case.images, case.goal("untargeted"))
        assert torch.equal(result[-1], case.images[-1])
        assert not ROWS[name].succeeds or not torch.equal(result[0], case.images[0])


@every_variant
def test_bounds_other_than_0_and_1_hold(name, settings):
    case, found = problem(IMAGE, -1.0, 3.0), made(name, settings)
    kind = kinds(name)[-1]
    result = found(case.target(found.access), case.images, case.goal(kind))
    assert result.ge(-1).all() and result.le(3).all() and result.isfinite().all()
    if found.minimal:
        assert case.goal(kind).reached(case.net(result)).float().mean() >= ROWS[name].succeeds


@every_variant
def test_one_seed_gives_the_same_images_and_the_global_generator_is_left_alone(name, settings):
    case, found = problem(), made(name, settings)
    before = torch.get_rng_state()
    goal = case.goal(kinds(name)[-1])
    first, second = (found(case.target(found.access), case.images, goal, seed=7) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    if ROWS[name].repeatable:
        assert torch.equal(first, second)


@every_variant
def test_takes_batches_of_one_and_none_and_odd_shapes(name, settings):
    found = made(name, settings)
    for shape in ROWS[name].shapes:
        case = problem(shape)
        one, goal = case.images[:1], case.goal(kinds(name)[-1])
        assert found(case.target(found.access), one, goal.select(torch.tensor([0]))).shape == one.shape
        none = torch.tensor([], dtype=torch.int64)
        assert len(found(case.target(found.access), case.images[:0], goal.select(none))) == 0


@pytest.mark.parametrize("name", ATTACKS)
def test_refuses_a_target_that_gives_less_than_it_needs_and_a_goal_it_can_not_aim_at(name):
    case, found = problem(), made(name, ROWS[name].variants[0])
    if found.access > Access.LABEL:
        with pytest.raises(NotApplicable, match=name):
            found(case.target(Access(found.access - 1)), case.images, case.goal("untargeted"))
    for kind in {"untargeted", "targeted", "confidence"} - found.goals:
        with pytest.raises(InvalidInput, match=name):
            found(case.target(found.access), case.images, case.goal(kind))


@pytest.mark.parametrize("name", ATTACKS)
def test_counts_what_it_asks(name):
    case, found = problem(), made(name, ROWS[name].variants[0])
    target = case.target(found.access)
    found(target, case.images, case.goal(kinds(name)[-1]))
    assert target.meter.queries > 0 and target.meter.seconds > 0
    assert (target.meter.gradients > 0) == (found.access is Access.WHITE_BOX)


@pytest.mark.parametrize("name", ATTACKS)
def test_settings_that_make_no_sense_are_refused_together(name):
    cls = attack(name)
    numbers = [f.name for f in dataclasses.fields(cls) if f.name in {"radius", "steps", "queries", "restarts"}]
    if numbers:
        with pytest.raises(UsageError) as caught:
            cls(**dict.fromkeys(numbers, 0))
        assert {problem.where for problem in caught.value.problems} >= set(numbers)


@pytest.mark.parametrize("name", ATTACKS)
def test_settings_of_another_type_are_refused_together(name):
    cls = attack(name)
    wrong = {int: 1.5, float: "far", bool: "maybe"}
    given = {f.name: wrong[type(f.default)] for f in dataclasses.fields(cls) if type(f.default) in wrong}
    if given:
        with pytest.raises(UsageError) as caught:
            cls(**given)
        assert sorted(problem.where for problem in caught.value.problems) == sorted(given)
    numbers = [key for key, value in given.items() if value != "maybe"]
    for key in numbers:
        with pytest.raises(UsageError, match="number"):
            cls(**{key: True})


def test_an_unknown_attack_is_refused_with_those_that_exist():
    with pytest.raises(UsageError, match="pgd"):
        attack("wish")


def test_the_table_s_problem_is_what_the_tests_take_it_for():
    case = problem()
    right = case.net(case.images).argmax(1) == case.labels
    assert right[:-1].all() and not right[-1]
    assert not case.goal("targeted").reached(case.net(case.images)).any()
    assert isinstance(case.goal("confidence"), Goal)
