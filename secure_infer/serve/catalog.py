"""The models that a server offers: what it tells clients about each, and how much they may send."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secure_infer import bundle
from secure_infer.bundle import Interface
from secure_infer.errors import Problem, UsageError
from secure_infer.serve.sizes import Sizes, sizes

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
SUFFIX = ".bundle"


@dataclass(frozen=True, eq=False)
class Model:
    """One model, as the front knows it: no weights.

    Attributes:
        name: Under which it is served.
        path: Its bundle.
        interface: What clients know of it.
        party: Which server party this server is.
        parties: How many there are.
        half: The public half.
        etag: SHA-256 of the half.
        sizes: What clients may send.
    """

    name: str
    path: Path
    interface: Interface
    party: int
    parties: int
    half: bytes = field(repr=False)
    etag: str
    sizes: Sizes

    @classmethod
    def of(
        cls,
        name: str,
        path: Path,
        interface: Interface,
        half: bytes,
        party: tuple[int, int] = (0, 1),
        parameters: Mapping[str, Any] | None = None,
    ) -> Model:
        """A model from its parts.

        Args:
            name: Under which it is served.
            path: A file that is there for as long as it is served.
            interface: What clients know of it.
            half: The backend's client half.
            party: Which server party this is, of how many.
            parameters: What its bundle says of its parameters.
        """
        packed, bounds = bundle.pack_client_half(interface, half), sizes(interface, parameters or {})
        return cls(name, path, interface, *party, packed, hashlib.sha256(packed).hexdigest(), bounds)

    def as_dict(self) -> dict[str, Any]:
        """What the list of models says."""
        known = self.interface.as_dict()
        return {
            "name": self.name,
            "party": self.party,
            "parties": self.parties,
            **{key: known[key] for key in ("protocol", "fingerprint", "input", "output", "guarantee")},
            "client_half": {"sha256": self.etag, "bytes": len(self.half)},
        }


class Catalog:
    """The models by name. One whose bundle has been removed is no longer offered; new ones need a restart."""

    def __init__(self, models: Iterable[Model]) -> None:
        self._models = {model.name: model for model in models}

    @classmethod
    def load(cls, places: Iterable[str | Path], party: int | None = None) -> Catalog:
        """Read bundles.

        Args:
            places: Files, folders of `*.bundle` files, or `name=file`; the name is the file's without its suffix.
            party: Which party this server is, for bundles of several.

        Raises:
            UsageError: No bundles; two of one name; a party where there is but one, or none where there are several.
            BundleError: A damaged bundle.
        """
        found = [read(name, path, party) for name, path in _listed(places)]
        twice = sorted({model.name for model in found if sum(other.name == model.name for other in found) > 1})
        if not found or twice:
            problems = [Problem(name, "Two bundles have this name.", "name one: NAME=FILE.") for name in twice]
            raise UsageError(
                "These models can't be served.",
                problems or [Problem("bundles", f"No *{SUFFIX} file was found.", "give files or a folder of them.")],
            )
        return cls(found)

    def paths(self) -> dict[str, Path]:
        """Path of the bundle of each model."""
        return {name: model.path for name, model in self._models.items()}

    def offered(self) -> list[Model]:
        """The models whose bundles are still there."""
        return [model for model in self._models.values() if model.path.is_file()]

    def get(self, name: str) -> Model:
        """A model.

        Raises:
            UsageError: There is none of this name, or not any longer (404).
        """
        model = self._models.get(name)
        if model is not None and model.path.is_file():
            return model
        what = "There is no model of this name." if model is None else "It has been removed from the server."
        raise UsageError(
            "The server does not have this model.", [Problem(name[:100], what, "ask for the list of models.")]
        )

    def keys_bytes(self) -> int:
        """Most bytes that evaluation keys of any model can have."""
        return max(model.sizes.keys_bytes for model in self._models.values())

    def keys_kinds(self) -> frozenset[str | None]:
        """Kinds of the frames that evaluation keys of any model can be; None among them stands for all."""
        return frozenset(model.sizes.keys_kind for model in self._models.values())


def read(name: str, path: Path, party: int | None = None) -> Model:
    """A model from its bundle; arguments and errors are those of `Catalog.load`."""
    _, interface, program = bundle.load(path)
    parties = len(program.servers)
    if (party is None) != (parties == 1) or (party is not None and not 0 <= party < parties):
        raise UsageError(
            f"{path} has {parties} server {'party' if parties == 1 else 'parties'}.",
            [
                Problem(
                    "party", f"Got {party}.", "leave it out for one party, else give 0 to one less than their number."
                )
            ],
        )
    return Model.of(name, path, interface, program.client, (party or 0, parties), program.parameters)


def _listed(places: Iterable[str | Path]) -> list[tuple[str, Path]]:
    found: list[tuple[str, Path]] = []
    problems = []
    for place in map(str, places):
        name, equals, rest = place.partition("=")
        if Path(place).is_dir():
            files = sorted(Path(place).glob(f"*{SUFFIX}"))
            found += [(file.name.removesuffix(SUFFIX), file) for file in files]
        elif equals and not Path(place).exists():
            found.append((name, Path(rest)))
        else:
            found.append((Path(place).name.removesuffix(SUFFIX), Path(place)))
    for name, path in found:
        if not _NAME.fullmatch(name):
            problems.append(Problem(str(path), f"{name!r} can't be a model's name.", "name it: NAME=FILE."))
    if problems:
        raise UsageError("Names of models are letters, digits, '.', '_' and '-'.", problems)
    return found


def summary(models: Iterable[Model]) -> Mapping[str, Any]:
    """The list of models as the interface has it."""
    return {"models": [model.as_dict() for model in models]}
