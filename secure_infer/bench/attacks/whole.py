"""The run `attacks`: every contest on one network of the zoo, as one record."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

import torch

from secure_infer.bench import host
from secure_infer.bench.attacks.contest import Field, Progress, hold
from secure_infer.bench.attacks.contests import contests
from secure_infer.bench.attacks.peers import installed
from secure_infer.bench.contender import Subject
from secure_infer.bench.records import Record
from secure_infer.bench.subjects import fingerprint, load_subject
from secure_infer.errors import Problem, UsageError

FOLDER = "attacks"
MODEL = "fashion-cnn-float"
_LOG = logging.getLogger(__name__)


def run(n: int | None = None, progress: Progress | None = None) -> Record:
    """Hold all contests on the first rightly classified held-out images of a model.

    Args:
        n: Images, instead of what each contest says; at most so many.
        progress: Told the contest, its rounds done and its rounds to do.

    Raises:
        UsageError: No image is classified rightly.
        DataError: The data set is not to be found.
    """
    at, load = datetime.now(UTC).isoformat(timespec="seconds"), host.load_average()
    libraries, missing = installed()
    for line in missing.values():
        _LOG.warning(line)
    subject = load_subject(MODEL)
    whole = _field(subject, n)
    held = [hold(contest, whole, progress or _silent) for contest in contests(libraries)]
    return {
        "case": "attacks",
        "model": MODEL,
        "fingerprint": fingerprint(subject.net),
        "contests": held,
        "missing": list(missing.values()),
        "threads": torch.get_num_threads(),
        "host": host.host(),
        "load": {"start": load, "end": host.load_average()},
        "versions": host.versions(("torch", *libraries)),
        "commit": host.commit(),
        "at": at,
    }


def _field(subject: Subject, n: int | None) -> Field:
    images, labels = torch.from_numpy(subject.x[:1000]).float(), torch.from_numpy(subject.y[:1000]).long()
    net = subject.net.eval().requires_grad_(False)
    with torch.no_grad():
        right = net(images).argmax(1) == labels
    if not bool(right.any()):
        raise UsageError(
            f"{subject.name} classifies no image rightly.", [Problem("model", "Nothing to attack.", "train it.")]
        )
    return Field(net, images[right][:n], labels[right][:n])


def _silent(name: str, done: int, total: int) -> None:
    """Progress that nobody asked for."""
