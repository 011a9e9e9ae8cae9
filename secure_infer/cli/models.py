"""`secure-infer models`: the zoo as a table."""

from __future__ import annotations

from dataclasses import asdict

from secure_infer.cli import console


def models(json: console.Json = False) -> None:
    """List the models of the zoo, and the protocols that each is meant for."""
    from secure_infer import zoo

    recipes = [zoo.recipe(name) for name in zoo.models()]
    if json:
        console.emit({"models": [asdict(recipe) for recipe in recipes]})
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "data", "protocols", "what it is", box=None, header_style="bold", pad_edge=False)
    for recipe in recipes:
        table.add_row(recipe.name, recipe.dataset, ", ".join(recipe.protocols), recipe.summary)
    Console().print(table)
