"""Build hook: a wheel carries the models, protocols and benchmark cases; an editable install reads them in place."""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

DATA = ("models", "protocols", "benchmarks/cases")


class DataHook(BuildHookInterface):  # type: ignore[type-arg]
    """Puts the data folders into the package.

    Not by `force-include`: that would put them into site-packages for an editable install too, where a folder named
    like the package hides it.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the folders to a standard wheel."""
        if version == "standard":
            build_data["force_include"].update({folder: f"secure_infer/_data/{folder}" for folder in DATA})
