"""How parties that are asked separately agree on the next query: party 0 proposes, every other one chooses.

Clients reach the parties through different fronts, so requests may arrive in different orders, or at one only. Party 0
sends the names of the queries that wait at it, oldest first; party 1 answers with one that waits at it as well, or with
none. Of three parties, both others answer with all that wait at them as well, and party 0 says which is first at all.
An empty proposal is a sign of life. All also say which queries' shares they refused, so that the others need not wait
for them. Messages are JSON, sent between runs: no run takes a round more.

    party 0             {"names": [name, ...], "refused": [session, ...]}
    party 1, of two     {"chosen": name, "refused": [session, ...]}
    others, of three    {"waiting": [name, ...], "refused": [session, ...]}
    party 0, of three   {"chosen": name, "refused": [session, ...]}
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


def propose(peers: Sequence[Channel], names: Sequence[str], refused: Sequence[str] = ()) -> tuple[str, list[str]]:
    """Party 0: propose queries to the others, and say which were refused here.

    Returns:
        The one that all others chose, or an empty string; and the sessions that any of them refused.

    Raises:
        ProtocolError: A party is gone, silent, or chose what was not proposed.
    """
    offered = list(names)[:LONGEST_PROPOSAL]
    for peer in peers:
        _send(peer, "names", offered, refused)
    if len(peers) == 1:
        return _read_choice(peers[0], offered)
    answers = [_read_names(peer, "waiting", offered) for peer in peers]
    theirs = [session for _, sessions in answers for session in sessions]
    chosen = next((name for name in offered if all(name in waiting for waiting, _ in answers)), "")
    for peer in peers:
        _send(peer, "chosen", chosen, theirs)
    return chosen, theirs


def hear(peer: Channel) -> tuple[list[str], list[str]]:
    """Every other party: the next proposal, and the sessions that party 0 refused.

    Raises:
        ProtocolError: Party 0 is gone or silent, or its proposal is malformed.
    """
    return _read_names(peer, "names")


def choose(
    peer: Channel, waiting: Sequence[str], refused: Sequence[str] = (), others: int = 1
) -> tuple[str, list[str]]:
    """Every other party: answer a proposal of party 0, and say which queries were refused here.

    Args:
        peer: The channel to party 0.
        waiting: The proposed queries that wait here, too, in order; none declines all.
        refused: Sessions that were refused here.
        others: How many parties there are besides this one.

    Returns:
        The query that runs now, or an empty string; and the sessions that other parties but party 0 refused.

    Raises:
        ProtocolError: Party 0 is gone or silent, or says something else.
    """
    if others > 1:
        _send(peer, "waiting", list(waiting), refused)
        return _read_choice(peer, waiting)
    chosen = next(iter(waiting), "")
    _send(peer, "chosen", chosen, refused)
    return chosen, []


def _read_choice(peer: Channel, offered: Sequence[str]) -> tuple[str, list[str]]:
    chosen, refused = _read(peer, "chosen")
    if chosen != "" and chosen not in offered:
        raise lost(peer.peer, "chose a query that was not proposed")
    return str(chosen), refused


def _read_names(peer: Channel, key: str, offered: Sequence[str] | None = None) -> tuple[list[str], list[str]]:
    names, refused = _read(peer, key)
    if not isinstance(names, list) or len(names) > LONGEST_PROPOSAL or not all(map(_is_name, names)):
        raise lost(peer.peer, "sent something else than a proposal")
    if offered is not None and not set(names) <= set(offered):
        raise lost(peer.peer, "chose a query that was not proposed")
    return names, refused


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
