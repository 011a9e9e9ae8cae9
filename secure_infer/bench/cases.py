"""A case: which models run under which protocols, on how many images, beside which peers; read from TOML."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from secure_infer import backends
from secure_infer.backends.parties.network import LOOPBACK, NETWORKS
from secure_infer.bench import places
from secure_infer.bench.peers import PEERS
from secure_infer.errors import Problem, UsageError

Mode = Literal["encrypted", "simulate"]
MODES = ("encrypted", "simulate")
_KINDS: Mapping[str, type] = {
    "protocol": str,
    "model": str,
    "n_encrypted": int,
    "peer": str,
    "batch": int,
    "mode": str,
    "network": str,
    "options": dict,
}


@dataclass(frozen=True)
class Entry:
    """One row of a case.

    Attributes:
        protocol: Name of the protocol.
        model: Name of a model of the zoo.
        n_encrypted: Held-out images sent through the protocol.
        peer: None for ours, else the name of the library that runs the same network.
        batch: Images a request.
        mode: "encrypted", or "simulate" for the protocol's errors without encryption.
        network: Between all processes, the client's too: "loopback", or "lan" or "wan" for delays such as theirs.
        options: Options of the protocol, over those of the model's recipe.
    """

    protocol: str
    model: str
    n_encrypted: int
    peer: str | None = None
    batch: int = 1
    mode: Mode = "encrypted"
    network: str = LOOPBACK
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """A name for progress lines."""
        batch = f"batch {self.batch}" if self.batch > 1 else ""
        options = [f"{name}={value}" for name, value in self.options.items()]
        extras = [self.peer or "", *options, batch, self.mode if self.mode != MODES[0] else ""]
        extras.append(self.network if self.network != LOOPBACK else "")
        return " ".join([self.model, self.protocol, *filter(None, extras)])

    @property
    def encrypts(self) -> bool:
        """Whether anything is encrypted at all."""
        return self.mode == "encrypted" and self.protocol != "clear"


@dataclass(frozen=True)
class Case:
    """A named list of entries."""

    name: str
    title: str
    entries: tuple[Entry, ...]

    def only(self, protocols: Collection[str]) -> Case:
        """The case with the entries of these protocols; with all if none is named.

        Raises:
            UsageError: There are no such entries.
        """
        entries = tuple(entry for entry in self.entries if not protocols or entry.protocol in protocols)
        if not entries:
            known = ", ".join(dict.fromkeys(entry.protocol for entry in self.entries))
            raise UsageError(
                f"The case {self.name} has no entries for {', '.join(protocols)}.",
                [Problem("--protocol", f"Expected one of {known}.", "name another protocol.")],
            )
        return replace(self, entries=entries)

    def groups(self) -> list[tuple[Entry, ...]]:
        """Entries of one model and protocol, in file order: ours and the peers that are run interleaved with it."""
        found: dict[tuple[str, str], list[Entry]] = {}
        for entry in self.entries:
            found.setdefault((entry.protocol, entry.model), []).append(entry)
        return [tuple(group) for group in found.values()]


def case_names(folder: Path | None = None) -> list[str]:
    """Names of all cases."""
    return sorted(path.stem for path in (folder or places.cases()).glob("*.toml"))


def load_case(name: str, folder: Path | None = None) -> Case:
    """Read a case by name.

    Raises:
        UsageError: No such case, or a file that does not describe one; lists all that is wrong.
    """
    path = (folder or places.cases()) / f"{name}.toml"
    if name not in case_names(folder):
        raise UsageError(
            f"There is no case {name!r}.",
            [Problem("case", f"Expected one of {', '.join(case_names(folder))}.", "check the spelling.")],
        )
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(
            f"The case {name} can't be read.", [Problem(path.name, f"{error}.", "correct the file.")]
        ) from error
    return parse_case(name, data)


def parse_case(name: str, data: Mapping[str, Any]) -> Case:
    """The case that parsed TOML describes: `title` and an array of tables `entries`.

    Raises:
        UsageError: Keys that are missing, unknown, or of a wrong type or range; all are listed.
    """
    entries = data.get("entries")
    problems = [Problem(key, "Unknown key.", "remove it.") for key in sorted(data.keys() - {"title", "entries"})]
    if not isinstance(data.get("title"), str):
        problems.append(Problem("title", "Expected a string.", "add one line that says what the case shows."))
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        problems.append(Problem("entries", "Expected an array of tables.", "write each as [[entries]]."))
        entries = []
    for index, entry in enumerate(entries):
        problems += _entry_problems(f"entries[{index}]", entry)
    if problems:
        raise UsageError(f"The case {name} is not valid.", problems)
    return Case(name, data["title"], tuple(Entry(**entry) for entry in entries))


def _entry_problems(where: str, entry: Mapping[str, Any]) -> Iterable[Problem]:
    for key in sorted(entry.keys() - _KINDS.keys()):
        yield Problem(f"{where}.{key}", "Unknown key.", f"use one of {', '.join(_KINDS)}.")
    for item in fields(Entry):
        required = item.default is MISSING and item.default_factory is MISSING
        if required and item.name not in entry:
            yield Problem(f"{where}.{item.name}", "Missing.", "add it.")
    for key, kind in _KINDS.items():
        if key in entry and (not isinstance(entry[key], kind) or isinstance(entry[key], bool)):
            yield Problem(f"{where}.{key}", f"Expected {kind.__name__}, got {entry[key]!r}.", "correct the value.")
        elif kind is int and entry.get(key, 1) < 1:
            yield Problem(f"{where}.{key}", f"Expected at least 1, got {entry[key]}.", "correct the value.")
    named = {"protocol": backends.protocols(), "peer": PEERS, "mode": MODES, "network": tuple(NETWORKS)}
    for key, choices in named.items():
        if isinstance(value := entry.get(key), str) and value not in choices:
            yield Problem(f"{where}.{key}", f"Expected one of {', '.join(choices)}, got {value!r}.", "correct it.")
