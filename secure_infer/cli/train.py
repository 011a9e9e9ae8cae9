"""`secure-infer train`: the weights of a zoo model, made again from its recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from secure_infer import files
from secure_infer.cli import console
from secure_infer.errors import missing_extra


def train(
    name: Annotated[str, typer.Argument(help="Model of the zoo.")],
    out: Annotated[Path | None, typer.Option(help="Weights to write; NAME.safetensors by default.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="FILE", help="State after each epoch; an interrupted run goes on from it.")
    ] = None,
    json: console.Json = False,
) -> None:
    """Train a model of the zoo by its recipe, and report its accuracy on the held-out part."""
    from secure_infer import zoo

    recipe = zoo.recipe(name)
    try:
        from secure_infer.nn.train import train as fit
    except ModuleNotFoundError as error:
        raise missing_extra("Training", "train", error.name or "torch") from error

    trained = fit(recipe, progress=console.watched(json), checkpoint=checkpoint)
    path = files.write(out or Path(f"{name}.safetensors"), zoo.to_bytes(trained.net))
    accuracy = trained.held_out
    facts: dict[str, Any] = {"correct": accuracy.correct, "n": accuracy.n, "interval": list(accuracy.interval)}
    if json:
        epochs = [{"loss": epoch.loss, "train": epoch.train.value} for epoch in trained.history]
        document = {"model": name, "held_out": facts, "seconds": trained.seconds, "epochs": epochs}
        console.emit({**document, "weights": {"path": str(path), "bytes": path.stat().st_size}})
    else:
        console.say(f"held out  {accuracy}")
        console.say(f"trained   {len(trained.history)} epochs in {console.seconds(trained.seconds)}")
        console.say(f"weights   {path}")
