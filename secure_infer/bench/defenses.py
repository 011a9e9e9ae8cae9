"""The run `defenses`: what each defense buys against best effort, and that noise, JPEG and attacks are not the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor, nn

from secure_infer.attacks import Access, Attack, Goal, NetworkTarget, Target, attack
from secure_infer.attacks.best_effort import best_effort, half_distortion
from secure_infer.attacks.evaluate import evaluate, judge
from secure_infer.attacks.statistics import finite, wilson
from secure_infer.bench import host
from secure_infer.bench.records import Record
from secure_infer.bench.subjects import fingerprint
from secure_infer.defenses import DEFENSES, Data, defense
from secure_infer.defenses.lipschitz import greatest_slope, lipschitz_bound
from secure_infer.defenses.magnet import MagNet, Undetected
from secure_infer.defenses.smoothing import RandomizedSmoothing, Smoothed, certify
from secure_infer.defenses.training import AdversarialTraining
from secure_infer.defenses.transform import InputTransformation

FOLDER = "defenses"
IMAGES = 100
"""Held-out images that are attacked."""
_CLEAN = 1000
_ROUNDING = 1 + 1e-5
"""Disturbances of the full radius must count as within it."""
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Plan:
    """What is measured on one model of the zoo.

    Attributes:
        model: Its name.
        training: Training images that defenses learn from.
        radius: Linf radius of adversarial training and of the attacks on it.
        schools: Adversarial trainings, by the name of their method.
        epochs: Of each of them.
        sections: What is measured.
    """

    model: str
    training: int
    radius: float
    schools: tuple[str, ...]
    epochs: int
    sections: tuple[str, ...]


PLANS = (
    Plan("digits-cnn-float", 1350, 0.125, ("fast", "pgd", "trades"), 20, ("training", "lipschitz")),
    Plan("fashion-cnn-float", 12_000, 0.05, ("fast", "pgd"), 4, ("order", "training", "transformations", "smoothing")),
    Plan("mnist-cnn-float", 8_000, 0.1, (), 6, ("lipschitz", "magnet")),
)


@dataclass(frozen=True, eq=False)
class Subject:
    """A plain network, what defenses learn from, and held-out images to attack."""

    plan: Plan
    net: nn.Sequential
    data: Data
    images: Tensor
    labels: Tensor
    clean: tuple[Tensor, Tensor]

    def target(self, net: nn.Module | None = None, access: Access = Access.WHITE_BOX) -> Target:
        """A network, by default the plain one, as a target."""
        return NetworkTarget(net or self.net, self.data.shape, name=self.plan.model, access=access)


def run(n: int | None = None, progress: Progress | None = None) -> Record:
    """Measure all plans; one record.

    Args:
        n: Images that are attacked, instead of 100.
        progress: Told the section, and 0 or 1 of 1.

    Raises:
        DataError: A data set is not to be found.
    """
    at, load = datetime.now(UTC).isoformat(timespec="seconds"), host.load_average()
    told = progress or (lambda *_: None)
    found = []
    for plan in PLANS:
        subject = _load(plan, n or IMAGES)
        sections: Record = {"model": plan.model, "fingerprint": fingerprint(subject.net), "n": len(subject.labels)}
        for name in plan.sections:
            told(f"{plan.model} {name}", 0, 1)
            begun = time.perf_counter()
            sections[name] = _SECTIONS[name](subject)
            sections[f"{name}_seconds"] = time.perf_counter() - begun
            told(f"{plan.model} {name}", 1, 1)
        found.append(sections)
    return {
        "case": "defenses",
        "subjects": found,
        "under_encryption": {name: sorted(place.value for place in defense(name).places_left()) for name in DEFENSES},
        "threads": torch.get_num_threads(),
        "host": host.host(),
        "load": {"start": load, "end": host.load_average()},
        "versions": host.versions(("torch",)),
        "commit": host.commit(),
        "at": at,
    }


def _load(plan: Plan, n: int) -> Subject:
    from secure_infer import zoo
    from secure_infer.nn.data import load_dataset

    net, data = zoo.load_model(plan.model), load_dataset(zoo.recipe(plan.model).dataset)
    assert isinstance(net, nn.Sequential)
    x, y = torch.from_numpy(data.x_test[:_CLEAN]), torch.from_numpy(data.y_test[:_CLEAN])
    known = Data(torch.from_numpy(data.x_train[: plan.training]), torch.from_numpy(data.y_train[: plan.training]))
    return Subject(plan, net.eval().requires_grad_(False), known, x[:n], y[:n], (x, y))


def _order(subject: Subject) -> Record:
    """Noise, JPEG, labels alone, gradients: the least L2 distortion that each finds, and its stability over seeds."""
    x, y = subject.images, subject.labels
    white = [attack("ddn")(), attack("superdeepfool")(), attack("bp")()]
    contenders: dict[str, Sequence[Attack]] = {
        "noise": [attack("noise")(), _made("noise", kind="uniform")],
        "jpeg": [attack("jpeg")()],
        **{f"labels, {q} queries": [_made(a, queries=q) for a in ("surfree", "hopskipjump")] for q in (100, 500)},
        "white box": white,
    }
    found = {name: best_effort(subject.target(), attacks, x, y).as_dict() for name, attacks in contenders.items()}
    halves = [half_distortion(subject.target(), white, x, y, seed=seed) for seed in range(3)]
    values = [value for value, _ in halves]
    spread = finite((max(values) - min(values)) / max(min(values), 1e-12))
    stable = {"values": [finite(v) for v in values], "spread": spread, "attacked": [runs for _, runs in halves]}
    return {**found, "half_distortion": stable}


def _training(subject: Subject) -> Record:
    """Clean and robust accuracy of the plain network and of those trained on disturbed images."""
    plan = subject.plan
    found = {"standard": _robustness(subject, subject.target())}
    for method in plan.schools:
        school = _made_training(method, plan)
        begun = time.perf_counter()
        target = school(subject.net, subject.data)
        seconds = time.perf_counter() - begun
        found[method] = {**_robustness(subject, target), "training_seconds": seconds}
        gain = found[method]["robust_accuracy"] - found["standard"]["robust_accuracy"]
        loss = found["standard"]["clean_accuracy"] - found[method]["clean_accuracy"]
        found[method] |= {"robust_points_gained": 100 * gain, "clean_points_lost": 100 * loss}
    return {"radius": plan.radius, "norm": "linf", "images_trained_on": plan.training, **found}


def _robustness(subject: Subject, target: Target) -> Record:
    radius, x, y = subject.plan.radius, subject.images, subject.labels
    attacks = [
        _made("pgd", radius=radius),
        _made("pgd", radius=radius, restarts=3, loss="margin"),
        _made("autoattack", radius=radius, steps=50, queries=1000),
    ]
    linf = best_effort(target, attacks, x, y, norm="linf", radius=radius * _ROUNDING)
    least = best_effort(target, [attack("ddn")(), attack("bp")()], x, y)
    share, interval = linf.robust_accuracy(radius * _ROUNDING)
    return {
        **_clean(subject, target),
        "robust_accuracy": share,
        "robust_interval": list(interval),
        "attacks": [{**outcome.as_dict(), "median": None} for outcome in linf.outcomes],
        "median_l2": finite(least.median()[0]),
        "median_l2_interval": [finite(end) for end in least.median()[1]],
    }


def _clean(subject: Subject, target: Target) -> Record:
    """Accuracy on clean held-out images, with its interval."""
    x, y = subject.clean
    right = int((target.query(x).labels == y).sum())
    return {"clean_accuracy": right / len(y), "clean_interval": list(wilson(right, len(y))), "n_clean": len(y)}


def _lipschitz(subject: Subject) -> Record:
    """The bound, the greatest slope met on data, and the accuracy that the bound certifies."""
    bound = lipschitz_bound(subject.net, subject.data.shape)
    met = greatest_slope(subject.target(), subject.clean[0][:200])
    x, y = subject.clean
    radii = bound.certified_radius(subject.net(x), y)
    certified = {str(r): float((radii > r).double().mean()) for r in (0.001, 0.01, 0.1)}
    return {
        "bound": bound.total,
        "layers": dict(bound.layers),
        "greatest_slope": float(met.max()),
        "certified": certified,
    }


def _transformations(subject: Subject) -> Record:
    """Least L2 distortion behind each transformation, gradients taken through it."""
    found = {}
    plain = best_effort(subject.target(), _seeing(), subject.images, subject.labels)
    for kind, strength in (("bits", 2), ("jpeg", 50), ("median", 3), ("blur", 1)):
        target = InputTransformation(kind, strength)(subject.net, subject.data)  # type: ignore[arg-type]
        # Examples made without knowing of the defense show what a defender would like to believe.
        unaware = judge(target, plain.images, Goal(subject.labels)).double().mean()
        aware = best_effort(target, _seeing(), subject.images, subject.labels)
        found[f"{kind} {strength}"] = {
            **_clean(subject, target),
            "still_fooled_by_unaware_examples": float(unaware),
            "median_l2": finite(aware.median()[0]),
            "success": float(aware.distances.isfinite().double().mean()),
        }
    return {"plain_median_l2": finite(plain.median()[0]), **found}


def _seeing() -> list[Attack]:
    return [attack("ddn")(), attack("bp")()]


def _smoothing(subject: Subject) -> Record:
    """Certified accuracy, and the accuracy that an attack through the noise leaves."""
    smoothing = RandomizedSmoothing(0.25, samples=32, epochs=3)
    target = smoothing(subject.net, subject.data)
    base = smoothing.base(subject.net, subject.data)
    sure = certify(Smoothed(base, smoothing.deviation, smoothing.samples), subject.images)
    found: Record = {**_clean(subject, target), "deviation": smoothing.deviation}
    for radius in (0.25, 0.5):
        pgd = _made("pgd", radius=radius, norm="l2", steps=20)
        outcome = evaluate(target, pgd, subject.images, Goal(subject.labels))
        certified = sure.accuracy(subject.labels, radius)
        found[f"l2 {radius}"] = {"certified_accuracy": certified, "accuracy_under_pgd": outcome.robust_accuracy}
    return found


def _magnet(subject: Subject) -> Record:
    """Examples made without knowing of MagNet, by surplus margin, and those of an attack that knows."""
    guarded = MagNet(epochs=subject.plan.epochs).fit(subject.net, subject.data)
    target, plain, classes = subject.target(guarded), subject.target(), subject.target().classes
    aim = Undetected(subject.labels, rejected=classes)
    grey = [_grey(subject, plain, target, aim, surplus) for surplus in (0, 5, 10, 20, 40)]
    # The attack knows what MagNet is: a wrong class that no detector rejects, by gradients through everything.
    adaptive = best_effort(target, [attack("bp")(), _made("bp", steps=100, loss="margin")], subject.images, aim)
    x, y = subject.clean
    answers = target.query(x).labels
    return {
        "clean_accuracy": float((answers == y).double().mean()),
        "clean_rejected": float((answers == classes).double().mean()),
        "plain_accuracy": float((plain.query(x).labels == y).double().mean()),
        "grey_box": grey,
        "adaptive": adaptive.as_dict(),
    }


def _grey(subject: Subject, plain: Target, target: Target, aim: Undetected, surplus: float) -> Record:
    cw = _made("cw", searches=5, steps=100, rate=0.05, weight=0.1, surplus=float(surplus))
    outcome = evaluate(plain, cw, subject.images, Goal(subject.labels))
    made = outcome.reached & ~outcome.already
    count, passed = int(made.sum()), int((judge(target, outcome.images, aim) & made).sum())
    detected = int((target.query(outcome.images[made]).labels == aim.rejected).sum()) if count else 0
    return {
        "surplus": surplus,
        "made": count,
        "median_l2": outcome.as_dict()["median"]["l2"],
        "detected": detected,
        "passed": passed,
        "passed_interval": list(wilson(passed, count)),
    }


def _made(name: str, **settings: Any) -> Attack:
    return attack(name)(**settings)


def _made_training(method: str, plan: Plan) -> AdversarialTraining:
    return AdversarialTraining(method, radius=plan.radius, epochs=plan.epochs, steps=5)  # type: ignore[arg-type]


_SECTIONS: dict[str, Callable[[Subject], Record]] = {
    "order": _order,
    "training": _training,
    "lipschitz": _lipschitz,
    "transformations": _transformations,
    "smoothing": _smoothing,
    "magnet": _magnet,
}
