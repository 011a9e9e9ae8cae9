"""The run `post-training`: what quantizing the zoo's float networks after training costs in accuracy, by bits.

Nothing is encrypted: exact TFHE and MPC give the classes of the integer network that is measured here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import torch

from secure_infer.bench import host
from secure_infer.bench.contender import Subject
from secure_infer.bench.ours import evaluate
from secure_infer.bench.records import Record
from secure_infer.bench.statistics import Z_95, wilson
from secure_infer.bench.subjects import fingerprint, load_subject
from secure_infer.frontends import to_graph
from secure_infer.graph import passes

FOLDER = "quantization"
MODELS = ("digits-cnn-float", "mnist-cnn-float", "fashion-cnn-float")
BITS = (3, 4, 5, 6, 8)
_CHUNK = 1000
Progress = Callable[[str, int, int], None]


def run(n: int | None = None, progress: Progress | None = None) -> Record:
    """Quantize each network from its calibration images and classify held-out ones.

    Args:
        n: Held-out images of each network; all of them without it.
        progress: Told the network, the bit widths done and those to do.

    Raises:
        DataError: A data set is not to be found.
    """
    tell = progress or (lambda name, done, total: None)
    at = datetime.now(UTC).isoformat(timespec="seconds")
    return {
        "case": "post-training",
        "rows": [row for model in MODELS for row in _rows(load_subject(model), n, tell)],
        "host": host.host(),
        "load": host.load_average(),
        "versions": host.versions(("torch",)),
        "commit": host.commit(),
        "at": at,
    }


def _rows(subject: Subject, n: int | None, tell: Progress) -> list[Record]:
    x, y = subject.x[:n], subject.y[:n]
    expected = _float_classes(subject.net, x)
    rows = []
    for done, bits in enumerate(BITS):
        tell(subject.name, done, len(BITS))
        graph = passes.optimize(to_graph(subject.net, subject.calibration, protocol="tfhe", n_bits=bits))
        classes = evaluate(graph, x, exact=True).argmax(axis=1)
        row = {"model": subject.name, "fingerprint": fingerprint(subject.net), "bits": bits}
        rows.append(row | compared(expected == y, classes == y) | {"agreement": float((classes == expected).mean())})
    tell(subject.name, len(BITS), len(BITS))
    return rows


def compared(before: npt.NDArray[np.bool_], after: npt.NDArray[np.bool_]) -> Record:
    """Accuracy before and after, and the drop with the 95 % interval of a difference between pairs.

    Args:
        before: Which images the float network classifies rightly, shape `(n,)`.
        after: The same of the integer network.
    """
    n, lost, won = len(before), int((before & ~after).sum()), int((after & ~before).sum())
    drop = (lost - won) / n
    half = Z_95 * math.sqrt((lost + won) / n - drop**2) / math.sqrt(n)
    return {
        "n": n,
        "accuracy_float": float(before.mean()),
        "accuracy": float(after.mean()),
        "accuracy_interval": list(wilson(int(after.sum()), n)),
        "drop": drop,
        "drop_interval": [drop - half, drop + half],
    }


def _float_classes(net: torch.nn.Module, x: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    with torch.no_grad():
        parts = [net(torch.from_numpy(x[at : at + _CHUNK]).float()).argmax(1) for at in range(0, len(x), _CHUNK)]
    return np.asarray(torch.cat(parts))
