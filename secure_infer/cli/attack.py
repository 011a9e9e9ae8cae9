"""`secure-infer attack`: one attack on one form of a model, from the torch network to real ciphertexts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secure_infer.cli import console, remote
from secure_infer.errors import Problem, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from secure_infer.attacks import Access, Attack, Goal, Target
    from secure_infer.client import Client
    from secure_infer.targets import Subject

_GOALS = ("untargeted", "targeted", "confidence")
_ACCESS = ("label", "probabilities", "logits", "white-box")


def attack(
    *,
    name: Annotated[str, typer.Argument(help="Attack; --list shows them.")] = "",
    model: Annotated[str, typer.Option(help="Model of the zoo, module:object, or path.py:object.")] = "",
    target: Annotated[
        str, typer.Option(help="float, quantized, binarized, polynomial, simulated or encrypted form of the weights.")
    ] = "float",
    protocol: Annotated[str | None, typer.Option(help="Of a simulated or encrypted target, for example mpc.")] = None,
    url: remote.Url = None,
    served: Annotated[str, typer.Option("--served", help="With --url: name of the model on the server.")] = "",
    token_file: remote.TokenFile = None,
    ca: remote.Ca = None,
    access: Annotated[str | None, typer.Option(help=f"Show less than the target has: {', '.join(_ACCESS)}.")] = None,
    data: Annotated[str | None, typer.Option(help="Data set of a network of your own.")] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Held-out images to attack.")] = 20,
    goal: Annotated[str, typer.Option(help=f"{', '.join(_GOALS)}.")] = "untargeted",
    confidence: Annotated[float, typer.Option(help="Confidence to fall below, under --goal confidence.")] = 0.1,
    eps: Annotated[float | None, typer.Option(help="Radius, in units of the inputs.")] = None,
    norm: Annotated[str | None, typer.Option(help="l2, linf or l0.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of an iterative attack.")] = None,
    budget: Annotated[int | None, typer.Option(min=1, help="Queries per image.")] = None,
    setting: Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Other settings.")] = None,
    seed: Annotated[int, typer.Option(help="Of the attack and of simulated errors.")] = 0,
    executed: Annotated[
        int, typer.Option(min=1, help="Images of a simulated attack that go through real ciphertexts too.")
    ] = 5,
    listing: Annotated[bool, typer.Option("--list", help="List the attacks.")] = False,
    json: console.Json = False,
) -> None:
    """Attack held-out images, ask the target about what comes back, and report success, distortion and cost.

    A target that shows too little for the attack is "not applicable" (exit code 14). A simulated result comes with its
    agreement with real ciphertexts on the same images.
    """
    if listing:
        _list(json)
        return
    from secure_infer.attacks.evaluate import evaluate

    _require(name, model, target, protocol, url, goal, access)
    chosen = _made(name, {"radius": eps, "norm": norm, "steps": steps, "queries": budget}, setting or [])
    subject = _subject(model, data)
    level = _level(access)
    if url:
        client = remote.connected(url, served, token_file, ca, (None, None), None, "attack", json)
        opened = _served(client, f"{model} remote", level)
    else:
        opened = _target(subject, target, protocol, level, seed)
    with opened as met:
        # An attack without a setting for it is held to the budget by the target.
        met.meter.budget = n * budget if budget and not hasattr(chosen, "queries") else None
        with console.phase(f"{chosen.name} on {n} images of {met.name}", json):
            outcome = evaluate(met, chosen, subject.images[:n], _goal(subject.labels[:n], goal, confidence, met), seed)
        found = {"model": subject.name, "form": subject.form, **outcome.as_dict()}
        if target == "simulated" and not url:
            with console.phase(f"{executed} images through {protocol}", json):
                found["agreement"] = _agreement(subject, protocol or "", outcome.images[:executed], seed)
    (console.emit if json else _show)(found)


def _list(as_json: bool) -> None:
    from secure_infer.attacks import ATTACKS
    from secure_infer.attacks import attack as find

    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "access": find(name).access.name,
            "norms": sorted(find(name).norms),
            "goals": sorted(find(name).goals),
            "minimal": find(name).minimal,
        }
        for name in ATTACKS
    ]
    if as_json:
        console.emit({"attacks": rows})
        return
    for row in rows:
        kind = "least disturbance" if row["minimal"] else "within a radius"
        console.say(
            f"{row['name']:<20}{row['access']:<15}{' '.join(row['norms']):<14}{kind}, {', '.join(row['goals'])}"
        )


def _require(
    name: str,
    model: str,
    target: str,
    protocol: str | None,
    url: list[str] | None,
    goal: str,
    access: str | None,
) -> None:
    problems = [
        Problem(what, "It is missing.", fix)
        for what, given, fix in (("NAME", name, "see --list."), ("--model", model, "name a model; see `models`."))
        if not given
    ]
    if goal not in _GOALS:
        problems.append(Problem("--goal", f"There is no {goal!r}.", f"use one of {', '.join(_GOALS)}."))
    if access is not None and access not in _ACCESS:
        problems.append(Problem("--access", f"There is no {access!r}.", f"use one of {', '.join(_ACCESS)}."))
    if not url and (target in ("simulated", "encrypted")) != (protocol is not None):
        what = "Missing." if protocol is None else f"A {target} target has none."
        problems.append(Problem("--protocol", what, "it belongs to simulated and encrypted targets."))
    if problems:
        raise UsageError("The attack can't start.", problems)


def _level(access: str | None) -> Access | None:
    from secure_infer.attacks import Access

    return None if access is None else Access[access.replace("-", "_").upper()]


def _made(name: str, given: Mapping[str, Any], pairs: list[str]) -> Attack:
    """The attack with the settings that were given; those that it does not have are refused, all at once."""
    from dataclasses import fields

    from secure_infer.attacks import attack as find
    from secure_infer.cli.networks import parse_options

    cls = find(name)
    known = {entry.name for entry in fields(cls)}  # type: ignore[arg-type]
    # A budget without such a setting is kept by the target.
    settings = {key: value for key, value in given.items() if value is not None and (key in known or key != "queries")}
    settings |= parse_options(pairs)
    options = {"radius": "--eps", "norm": "--norm", "steps": "--steps"}
    unknown = [
        Problem(options.get(key, key), f"{name} has no setting {key}.", f"use one of {', '.join(sorted(known))}.")
        for key in settings.keys() - known
    ]
    if unknown:
        raise UsageError(f"The settings do not fit {name}.", unknown)
    for entry in fields(cls):  # type: ignore[arg-type]
        value = settings.get(entry.name)
        # A radius is read as a float, also where it counts pixels.
        if isinstance(entry.default, int) and isinstance(value, float) and value.is_integer():
            settings[entry.name] = int(value)
    return cls(**settings)


def _subject(model: str, data: str | None) -> Subject:
    from secure_infer.cli import inputs, networks

    network = networks.find(model)
    source = data or network.dataset
    if not source or not inputs.is_dataset(source):
        raise UsageError(
            "There are no labeled images to attack.",
            [Problem("--data", f"{source or 'Nothing'} is no data set.", "name one, such as digits.")],
        )
    from torch import nn

    from secure_infer.targets import CALIBRATION, Subject

    if not isinstance(network.net, nn.Module):
        raise UsageError(
            f"{model} is no torch network.",
            [Problem("--model", f"It is a {type(network.net).__name__}.", "give a torch network.")],
        )
    held = inputs.dataset(source)
    return Subject(model, network.net, held.x_train[:CALIBRATION], held.x_test, held.y_test, network.options)


@contextmanager
def _target(subject: Subject, kind: str, protocol: str | None, level: Access | None, seed: int) -> Iterator[Target]:
    try:
        yield subject.target(kind, protocol or "clear", access=level, seed=seed)
    finally:
        subject.close()


@contextmanager
def _served(client: AbstractContextManager[Client], name: str, level: Access | None) -> Iterator[Target]:
    from secure_infer.attacks import Access, Bounds
    from secure_infer.targets import Executed

    with client as connected:
        yield Executed(connected, name, Access.LOGITS if level is None else level, bounds=Bounds())


def _agreement(subject: Subject, protocol: str, images: Tensor, seed: int) -> dict[str, Any]:
    """How far the simulation speaks for real ciphertexts on the images that the attack returned."""
    from secure_infer.attacks import Access
    from secure_infer.targets import agreement

    exact = subject.target("polynomial" if subject.form == "polynomial" else "quantized")
    drawn = subject.target("simulated", protocol, access=Access.LOGITS, seed=seed)
    return agreement(drawn, subject.target("encrypted", protocol), images, exact, seed).as_dict()


def _goal(labels: Tensor, goal: str, confidence: float, target: Target) -> Goal:
    """A goal for each image; a target class is the one after the true one."""
    from secure_infer.attacks import Goal

    if goal == "targeted":
        return Goal(labels, targets=(labels + 1) % target.classes)
    return Goal(labels, confidence=confidence if goal == "confidence" else None)


def _show(found: Mapping[str, Any]) -> None:
    low, high = found["success_interval"]
    medians = ", ".join(
        f"{norm} {'none' if value is None else format(value, '.4g')}" for norm, value in found["median"].items()
    )
    console.say(f"{found['attack']} on {found['target']} ({found['access']}, {found['goal']}, seed {found['seed']})")
    console.say(
        f"success   {found['success']:.1%} of {found['n_attacked']} images that were right before "
        f"(95 % interval {low:.1%} to {high:.1%}); {found['n'] - found['n_attacked']} of {found['n']} were not"
    )
    console.say(f"median    {medians}")
    console.say(
        f"queries   {found['queries']:,} ({found['queries_per_image']:.0f} an image, of which "
        f"{found['gradients_per_image']:.0f} gradients) in {console.seconds(found['seconds'])}"
    )
    sent, received = found["bytes"]["sent"], found["bytes"]["received"]
    if sent or received:
        console.say(f"bytes     {console.size(sent)} sent, {console.size(received)} received")
    if agreed := found.get("agreement"):
        console.say(
            f"executed  {agreed['same']} of {agreed['n']} of these images get the same label on real ciphertexts; "
            f"KS distance of the logits' errors {agreed['ks']:.3f} (p {agreed['p_value']:.2f})"
        )
