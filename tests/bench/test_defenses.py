"""The run `defenses`, on a small problem in place of the zoo's models."""

import json

import pytest

from secure_infer.bench.defenses import _SECTIONS, PLANS, Plan, Subject
from tests.defenses.problem import problem

SLOW = {"order", "training", "magnet"}
SECTIONS = [pytest.param(name, marks=pytest.mark.full if name in SLOW else ()) for name in _SECTIONS]


def subject() -> Subject:
    case = problem()
    plan = Plan("small", len(case.data.images), 0.1, ("fast", "pgd"), 20, tuple(_SECTIONS))
    return Subject(plan, case.net, case.data, case.images[:12], case.labels[:12], (case.images, case.labels))


def test_every_section_is_measured_on_some_model():
    assert {name for plan in PLANS for name in plan.sections} == set(_SECTIONS)


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_gives_json_and_what_it_claims_holds(name):
    found = json.loads(json.dumps(_SECTIONS[name](subject()), allow_nan=False))
    match name:
        case "order":
            medians = [found[each]["median"] for each in ("noise", "labels, 500 queries", "white box")]
            assert medians == sorted(medians, reverse=True)
            assert found["half_distortion"]["spread"] < 0.05
        case "training":
            assert found["pgd"]["robust_accuracy"] >= found["standard"]["robust_accuracy"]
            assert found["pgd"]["n_clean"] == len(problem().images)
        case "lipschitz":
            assert 0 < found["greatest_slope"] <= found["bound"]
        case "transformations":
            assert all(each["success"] == 1 for each in found.values() if isinstance(each, dict))
        case "smoothing":
            assert found["l2 0.25"]["certified_accuracy"] <= found["l2 0.25"]["accuracy_under_pgd"] + 0.2
        case "magnet":
            assert [row["surplus"] for row in found["grey_box"]] == [0, 5, 10, 20, 40]
            assert all(row["passed"] + row["detected"] <= row["made"] for row in found["grey_box"])
