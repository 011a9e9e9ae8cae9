"""What a protocol of several parties says of itself, so that sessions, fronts and standing roles need know no more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from secure_infer.graph.types import Shape

if TYPE_CHECKING:
    from secure_infer.backends.parties.channel import Channel

PARTY_NAMES = ("party 0", "party 1", "party 2")
"""Of as many as there may be; most protocols have the first two."""
DEALER_NAME = "dealer"
LONGEST_RUN = 20
"""Time limits for one message that a whole run may take."""


@dataclass(frozen=True)
class Setup:
    """How the processes of a session are started.

    Attributes:
        module: Python module that is run as the process of each role.
        timeout: Seconds that a party waits for another.
        dealer: Whether a dealer is among the roles.
        settings: What else each process is told when it starts: plain JSON values.
        stocked: Whether the parties can do without the dealer for as long as what they have in stock lasts.
        parties: How many compute.
        insecure: Whether a party could read inputs, so that this is for development on one machine.
    """

    module: str
    timeout: float
    dealer: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)
    stocked: bool = False
    parties: int = 2
    insecure: bool = False

    @property
    def party_names(self) -> tuple[str, ...]:
        """Names of the parties, by number."""
        return PARTY_NAMES[: self.parties]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all roles on the server side."""
        return (*self.party_names, DEALER_NAME) if self.dealer else self.party_names


@dataclass(frozen=True)
class Half:
    """One party's half of a model, unpacked and checked.

    Attributes:
        setup: How its process is started.
        model: Name of the model, as shares carry it.
        input_shape: Shape of one sample.
        parts: What the party's process loads.
    """

    setup: Setup
    model: str
    input_shape: Shape
    parts: tuple[bytes, ...]


class SeveralParties(Protocol):
    """A backend whose parties can be started on hosts of their own."""

    def party_half(self, half: bytes, party: int) -> Half:
        """One party's server half, unpacked.

        Raises:
            BundleError: It is malformed, or another party's.
        """
        ...

    def deal(self, channels: Mapping[str, Channel], ready: Callable[[], None], folder: Path | None) -> NoReturn:
        """Be the dealer until a party is gone, which is a ProtocolError; `ready` is called once all are greeted.

        A dealer that has to know something from one session to the next keeps it in `folder`. A protocol without a
        dealer lacks this.
        """
        ...
