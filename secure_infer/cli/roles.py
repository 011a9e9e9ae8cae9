"""The files that roles exchange: bundles, client halves, keys, and one message or reply for each server party."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from secure_infer import bundle, files
from secure_infer.bundle import Interface
from secure_infer.errors import Problem, UsageError
from secure_infer.wire import frame


def read_client_half(path: Path) -> tuple[Interface, bytes]:
    """The interface and the backend's client half, from a client half's file or from a whole bundle."""
    data = files.read(path)
    if data.startswith(frame.MAGIC):
        return bundle.unpack_client_half(data)
    _, interface, program = bundle.load(path)
    return interface, program.client


def is_client_half(path: Path) -> bool:
    """Whether a file is a client half alone rather than a bundle."""
    return files.read(path).startswith(frame.MAGIC)


def summary(interface: Interface) -> dict[str, Any]:
    """What a command's JSON says of a model: protocol, fingerprint, types and guarantee."""
    known = interface.as_dict()
    return {name: known[name] for name in ("protocol", "fingerprint", "input", "output", "guarantee")}


def write_parties(out: Path, payloads: Sequence[bytes]) -> list[Path]:
    """Write one file for each party: `out` itself for a single party, else `out-0`, `out-1` ... (before a suffix)."""
    return [files.write(path, data) for path, data in zip(party_paths(out, len(payloads)), payloads, strict=True)]


def party_paths(out: Path, parties: int) -> list[Path]:
    """Where `write_parties` writes."""
    if parties == 1:
        return [out]
    return [out.with_name(f"{out.stem}-{party}{out.suffix}") for party in range(parties)]


def read_parties(paths: Sequence[Path], parties: int, option: str) -> list[bytes]:
    """The files of all parties, in order.

    Raises:
        UsageError: Too few or too many.
    """
    if len(paths) != parties:
        raise UsageError(
            f"This protocol has {parties} server {'party' if parties == 1 else 'parties'}.",
            [Problem(option, f"Expected {parties} files, got {len(paths)}.", f"give {option} once for each party.")],
        )
    return [files.read(path) for path in paths]


def describe(path: Path) -> dict[str, Any]:
    """Path and bytes of a file, for a command's JSON."""
    return {"path": str(path), "bytes": path.stat().st_size}
