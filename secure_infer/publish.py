"""Make a model of the zoo from its recipe: train it, and write its weights, its golden vectors and its card."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from secure_infer import files, zoo
from secure_infer.compiler import compile
from secure_infer.errors import BundleError, Problem
from secure_infer.frontends import to_graph
from secure_infer.graph import Graph, interpret
from secure_infer.graph.analyse import calibrated_ranges, cost
from secure_infer.graph.ops import Lookup, Max, Polynomial, QuantRelu, Sign
from secure_infer.graph.store import fingerprint
from secure_infer.graph.types import bits_of
from secure_infer.nn.data import Dataset, load_dataset
from secure_infer.nn.recipe import Recipe, read_recipe
from secure_infer.nn.train import Accuracy, Trained, train

CALIBRATION = 1000
"""Training images that set the ranges of a golden graph."""
SIMULATED_LOOK_UPS = 9_000_000
"""Held-out images are simulated as long as they need no more look-ups than so many in all."""
_SAMPLES = 3
_ACTIVATIONS = (Sign, QuantRelu, Lookup, Max, Polynomial)


def publish(folder: Path, progress: bool = False, checkpoint: Path | None = None) -> Trained:
    """Train the model whose `recipe.toml` lies in `folder`, and write the other files beside it.

    Args:
        folder: Holds `recipe.toml`.
        progress: Whether to show a bar.
        checkpoint: As for `train`.

    Raises:
        UsageError: A recipe that is not valid, or a folder that can't be written to.
        DataError: The data set is not to be had.
    """
    trained = train(read_recipe(folder / zoo.RECIPE), progress, checkpoint=checkpoint)
    weights = zoo.to_bytes(trained.net)
    files.write(folder / zoo.WEIGHTS, weights)
    describe(folder, _results(trained, weights))
    return trained


def describe(folder: Path, results: Mapping[str, Any] | None = None) -> None:
    """Write the golden vectors and the card of the model in `folder` anew, without training.

    Args:
        folder: Holds `recipe.toml` and the weights.
        results: What training gave; what `golden.json` says of it if None.

    Raises:
        BundleError: Weights that are not those of the recorded results.
        UsageError: A recipe that is not valid, or a folder that can't be read or written.
        DataError: The data set is not to be had.
    """
    plan = read_recipe(folder / zoo.RECIPE)
    weights = files.read(folder / zoo.WEIGHTS)
    known = results or {
        key: value
        for key, value in json.loads(files.read(folder / zoo.GOLDEN)).items()
        if key in ("weights_sha256", "accuracy", "seconds", "host")
    }
    if hashlib.sha256(weights).hexdigest() != known["weights_sha256"]:
        raise BundleError(
            "The weights are not those that the results belong to.",
            [Problem(str(folder / zoo.WEIGHTS), "Its SHA-256 is another.", "publish the model again.")],
        )
    data = load_dataset(plan.dataset)
    graph = golden_graph(zoo.with_weights(plan, weights), plan, data)
    record = {**_vectors(graph, data), **known, **_simulated(plan, graph, data)}
    files.write(folder / zoo.GOLDEN, json.dumps(record).encode() + b"\n")
    files.write(folder / zoo.CARD, _card(plan, data, graph, record).encode())


def golden_graph(net: nn.Module, plan: Recipe, data: Dataset) -> Graph:
    """The graph that the golden vectors belong to: that of the recipe's first protocol which encrypts."""
    return to_graph(net, data.x_train[:CALIBRATION], graph_protocol(plan))


def graph_protocol(plan: Recipe) -> str:
    """The recipe's first protocol which encrypts."""
    return next((name for name in plan.protocols if name != "clear"), "clear")


def _vectors(graph: Graph, data: Dataset) -> dict[str, Any]:
    x = graph.quantize(data.x_test[:_SAMPLES])
    return {
        "schema": 1,
        "fingerprint": fingerprint(graph),
        "indices": list(range(_SAMPLES)),
        "inputs": x.tolist(),
        "outputs": interpret(graph, x).tolist(),
    }


def _simulated(plan: Recipe, graph: Graph, data: Dataset) -> dict[str, Any]:
    """Look-ups of the network under TFHE, and its accuracy with their errors drawn; nothing for other graphs."""
    if graph_protocol(plan) != "tfhe":
        return {}
    compiled = compile(graph, data.x_train[:CALIBRATION], "tfhe", **plan.protocols["tfhe"])
    look_ups = compiled.program.counts["look_ups"]
    n = min(len(data.x_test), max(1, SIMULATED_LOOK_UPS // look_ups))
    labels = compiled.predict(data.x_test[:n], mode="simulate").argmax(axis=1)
    return {
        "tfhe": {
            "look_ups": look_ups,
            "complexity": compiled.program.parameters["complexity"],
            "simulated": {"correct": int((labels == data.y_test[:n]).sum()), "n": n},
        }
    }


def _results(trained: Trained, weights: bytes) -> dict[str, Any]:
    last = trained.history[-1]
    parts = {"train": last.train, "validation": last.validation, "held_out": trained.held_out}
    counts = {part: {"correct": a.correct, "n": a.n} for part, a in parts.items() if a is not None}
    return {
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "accuracy": counts,
        "seconds": round(trained.seconds, 1),
        "host": _host(),
    }


def _host() -> str:
    import torch

    return f"{platform.machine()}, {_processor()}, Python {platform.python_version()}, torch {torch.__version__}"


def _processor() -> str:
    """The processor's name where Linux tells it, for a reader who compares times."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "unknown processor")


def accumulators(graph: Graph, data: Dataset) -> list[tuple[str, int, int]]:
    """For each layer of activations: its kind, number of elements, and bits of its input over the training images."""
    ranges = calibrated_ranges(graph, graph.quantize(data.x_train[:CALIBRATION]))
    return [
        (node.kind, graph.types[node.name].size, bits_of(*ranges[node.inputs[0]]))
        for node in graph
        if isinstance(node.op, _ACTIVATIONS)
    ]


def _tfhe_rows(record: Mapping[str, Any]) -> dict[str, str]:
    found = record.get("tfhe")
    if found is None:
        return {}
    simulated = Accuracy(**found["simulated"])
    cost = f"{found['look_ups']:,} look-ups, {found['complexity'] / 1e6:,.0f} million operations of its cost model"
    return {"Under TFHE": cost, "Simulated under TFHE": f"{simulated}, errors of look-ups drawn"}


def _card(plan: Recipe, data: Dataset, graph: Graph, record: dict[str, Any]) -> str:
    found = {part: Accuracy(**counts) for part, counts in record["accuracy"].items()}
    counted = cost(graph)
    layers = [f"{size} {kind} on {bits}-bit sums" for kind, size, bits in accumulators(graph, data)]
    options = [
        f"{name} ({', '.join(f'{k} = {v}' for k, v in table.items()) or 'default options'})"
        for name, table in plan.protocols.items()
    ]
    rows = {
        "Held-out accuracy": found["held_out"],
        "Validation accuracy": found.get("validation", "no data was kept back"),
        "Training accuracy": f"{found['train'].value:.2%}, with augmentation and noise, in the last epoch",
        "Input": f"float in [0, 1], shape (n, {', '.join(map(str, data.x_test.shape[1:]))})",
        "Classes": ", ".join(data.classes),
        "Activations": "; ".join(layers),
        "Multiplications": f"{counted.macs:,} by weights",
        "Multiplicative depth": counted.multiplicative_depth,
        **_tfhe_rows(record),
        "Made for": "; ".join(options),
        "Seed": plan.training.seed,
        "Training time": f"{record['seconds']:.0f} s, {plan.training.threads} thread, {record['host']}",
        "Data": f"{data.name}. {data.credit}. Licence: {data.licence}",
        "SHA-256 of the weights": f"`{record['weights_sha256']}`",
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    return (
        f"# {plan.name}\n\n{plan.summary}.\n\n| | |\n|---|---|\n{table}\n\n"
        f"Make the weights again, and measure them on the held-out images:\n\n"
        f"```sh\nsecure-infer train {plan.name}\n```\n\n"
        "Settings were compared on images kept back from the training part, not on the held-out ones. "
        "Bits of sums are those met on the first 1,000 training images.\n\n"
        "Made to test and to measure encrypted inference, not to read anybody's images in earnest.\n"
    )
