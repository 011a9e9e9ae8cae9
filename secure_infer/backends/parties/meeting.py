"""How two parties that are asked separately agree on the next query: party 0 proposes, party 1 chooses.

Clients reach the two parties through different fronts, so requests may arrive in different orders, or at one only.
Party 0 sends the names of the queries that wait at it, oldest first; party 1 answers with one that waits at it as well,
or with none. An empty proposal is a sign of life. Both messages are JSON, sent between runs: no run takes a round more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from secure_infer.backends.parties.channel import Channel, lost

LONGEST_PROPOSAL = 64
"""Names in one proposal."""
_NAME = re.compile(r"[0-9a-f]{32}:[0-9]{1,12}")


def name_of(session: str, samples: int) -> str:
    """Name of a query: shares of different sizes never meet."""
    return f"{session}:{samples}"


def propose(peer: Channel, names: Sequence[str]) -> str:
    """Party 0: propose queries; returns the one that party 1 chose, or an empty string.

    Raises:
        ProtocolError: Party 1 is gone, silent, or chose what was not proposed.
    """
    offered = list(names)[:LONGEST_PROPOSAL]
    peer.send(json.dumps(offered).encode())
    chosen = _read(peer)
    if chosen != "" and chosen not in offered:
        raise lost(peer.peer, "chose a query that was not proposed")
    return str(chosen)


def hear(peer: Channel) -> list[str]:
    """Party 1: the next proposal.

    Raises:
        ProtocolError: Party 0 is gone or silent, or its proposal is malformed.
    """
    names = _read(peer)
    if not isinstance(names, list) or len(names) > LONGEST_PROPOSAL or not all(map(_is_name, names)):
        raise lost(peer.peer, "sent something else than a proposal")
    return names


def choose(peer: Channel, name: str) -> None:
    """Party 1: answer a proposal; an empty name declines all."""
    peer.send(json.dumps(name).encode())


def _is_name(value: object) -> bool:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def _read(peer: Channel) -> object:
    try:
        found: object = json.loads(peer.receive())
    except (ValueError, RecursionError) as error:
        raise lost(peer.peer, "sent something else than a query's name") from error
    return found
