"""Every error a user can meet, each listing all its problems with the fix and carrying an exit code.

SecureInferError                 1
├── UsageError                   2   a wrong name, option or combination of options
├── UnsupportedNetwork           3   a layer or graph the protocol can't evaluate
├── InvalidInput                 4   data of a wrong shape, type or range
├── MissingExtra                 5   an optional library is not installed
├── BundleError                  6   a truncated, altered or newer file
├── KeyMismatch                  7   keys that belong to another model
├── DecryptionError              8   a reply that doesn't decrypt
├── ParametersError              9   no secure parameters fit the network
├── ProtocolError               10   a party or a connection failed
├── DataError                   11   a data set that is absent or fails its checksum
├── AccessDenied                12   no token, or one that does not permit this
├── LimitExceeded               13   a budget, quota, size or queue limit
└── NotApplicable               14   an attack that needs more access than its target gives
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, where it is, and what mends it."""

    where: str
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what} Fix: {self.fix}"


class SecureInferError(Exception):
    """Base of all errors of this package.

    Args:
        summary: One sentence that says what failed.
        problems: All that is wrong, not only the first thing found.
        excerpt: A picture of the program with the offending nodes underlined, where there is one.
    """

    exit_code = 1

    def __init__(self, summary: str, problems: Iterable[Problem] = (), excerpt: str = "") -> None:
        self.summary = summary
        self.problems = tuple(problems)
        self.excerpt = excerpt
        lines = [summary, *(f"  - {problem}" for problem in self.problems)]
        super().__init__("\n".join(lines + ([excerpt] if excerpt else [])))


class UsageError(SecureInferError):
    """A name, option or combination of options that does not exist."""

    exit_code = 2


class UnsupportedNetwork(SecureInferError):
    """The network holds something that the protocol or the graph can't evaluate."""

    exit_code = 3


class InvalidInput(SecureInferError):
    """Data of a wrong shape, type or range."""

    exit_code = 4


class MissingExtra(SecureInferError):
    """An optional library is not installed."""

    exit_code = 5


class BundleError(SecureInferError):
    """A file or message that is truncated, altered, of another kind, or of a newer schema."""

    exit_code = 6


class KeyMismatch(SecureInferError):
    """Keys that were made for another model."""

    exit_code = 7


class DecryptionError(SecureInferError):
    """A reply that does not decrypt under these keys."""

    exit_code = 8


class ParametersError(SecureInferError):
    """No secure parameter set holds this network."""

    exit_code = 9


class ProtocolError(SecureInferError):
    """A party, a process or a connection failed."""

    exit_code = 10


class DataError(SecureInferError):
    """A data set that is absent, can't be fetched, or fails its checksum."""

    exit_code = 11


class AccessDenied(SecureInferError):
    """A token that is missing, unknown, expired, or does not permit this; or a connection that is not private."""

    exit_code = 12


class LimitExceeded(SecureInferError):
    """A budget, quota, size or queue limit is reached.

    Args:
        summary: As in the base class.
        problems: As in the base class.
        excerpt: As in the base class.
        retry_after: Seconds until it may be tried again; None if waiting does not help.
    """

    exit_code = 13

    def __init__(
        self, summary: str, problems: Iterable[Problem] = (), excerpt: str = "", retry_after: float | None = None
    ) -> None:
        super().__init__(summary, problems, excerpt)
        self.retry_after = retry_after


class NotApplicable(SecureInferError):
    """The target does not give the access that an attack needs."""

    exit_code = 14


def missing_extra(protocol: str, extra: str, module: str) -> MissingExtra:
    """The error for an optional library that is not installed."""
    command = f"pip install 'secure_infer[{extra}]'"
    return MissingExtra(
        f"{protocol} needs the package {module}, which is not installed.",
        [Problem(protocol, f"import {module} failed.", command)],
    )
