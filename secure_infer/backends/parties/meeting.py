"""How two parties that are asked separately agree on the next query: party 0 proposes, party 1 chooses.

Clients reach the two parties through different fronts, so requests may arrive in different orders, or at one only.
Party 0 sends the names of the queries that wait at it, oldest first; party 1 answers with one that waits at it as well,
or with none. An empty proposal is a sign of life. Both also say which queries' shares they refused, so that the other
need not wait for them. Both messages are JSON, sent between runs: no run takes a round more.

    party 0    {"names": [name, ...], "refused": [session, ...]}
    party 1    {"chosen": name, "refused": [session, ...]}
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from secure_infer.backends.parties.channel import Channel, lost

LONGEST_PROPOSAL = 64
"""Names in one proposal."""
_SESSION = re.compile(r"[0-9a-f]{32}")
_NAME = re.compile(r"[0-9a-f]{32}:[0-9]{1,12}")


def name_of(session: str, samples: int) -> str:
    """Name of a query: shares of different sizes never meet."""
    return f"{session}:{samples}"


def is_session(value: object) -> bool:
    """Whether this is the name of a query, without its size."""
    return isinstance(value, str) and _SESSION.fullmatch(value) is not None


def propose(peer: Channel, names: Sequence[str], refused: Sequence[str] = ()) -> tuple[str, list[str]]:
    """Party 0: propose queries, and say which were refused here.

    Returns:
        The one that party 1 chose, or an empty string; and the sessions that it refused.

    Raises:
        ProtocolError: Party 1 is gone, silent, or chose what was not proposed.
    """
    offered = list(names)[:LONGEST_PROPOSAL]
    _send(peer, "names", offered, refused)
    chosen, theirs = _read(peer, "chosen")
    if chosen != "" and chosen not in offered:
        raise lost(peer.peer, "chose a query that was not proposed")
    return str(chosen), theirs


def hear(peer: Channel) -> tuple[list[str], list[str]]:
    """Party 1: the next proposal, and the sessions that party 0 refused.

    Raises:
        ProtocolError: Party 0 is gone or silent, or its proposal is malformed.
    """
    names, refused = _read(peer, "names")
    if not isinstance(names, list) or len(names) > LONGEST_PROPOSAL or not all(map(_is_name, names)):
        raise lost(peer.peer, "sent something else than a proposal")
    return names, refused


def choose(peer: Channel, name: str, refused: Sequence[str] = ()) -> None:
    """Party 1: answer a proposal, and say which queries were refused here; an empty name declines all."""
    _send(peer, "chosen", name, refused)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def _send(peer: Channel, key: str, value: object, refused: Sequence[str]) -> None:
    peer.send(json.dumps({key: value, "refused": list(refused)[:LONGEST_PROPOSAL]}).encode())


def _read(peer: Channel, key: str) -> tuple[object, list[str]]:
    try:
        found = json.loads(bytes(peer.receive()))
        value, refused = found[key], found["refused"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise lost(peer.peer, "sent something else than a query's name") from error
    if not isinstance(refused, list) or len(refused) > LONGEST_PROPOSAL or not all(map(is_session, refused)):
        raise lost(peer.peer, "sent something else than refused queries")
    return value, refused
