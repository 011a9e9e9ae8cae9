"""Brings the shares of a query together, on the machine that runs all parties; queries run one after another.

A query starts when all parties have a share that they can use. A share that one of them refuses is an error for the
others at once, and nobody's correlations are spent; such a query is over, and the client asks anew under another name.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from secure_infer.backends.parties.channel import lost
from secure_infer.backends.parties.seam import PARTY_NAMES
from secure_infer.errors import Problem, ProtocolError, SecureInferError

_GLANCE = 0.2  # seconds between two looks at whether the processes are still there
_REMEMBERED = 64  # refused queries


@dataclass(eq=False)
class _Query:
    sizes: dict[int, int] = field(default_factory=dict)
    messages: dict[int, bytes] = field(default_factory=dict)
    started: bool = False
    ended: int = 0
    trouble: SecureInferError | None = None


class Pairs:
    """Queries that wait for their other shares, and the one that runs.

    Args:
        seconds: To wait for the other shares.
        patience: Seconds to wait for other queries.
        alive: Raises what is wrong if a process has ended.
        parties: How many shares a query has.
    """

    def __init__(self, seconds: float, patience: float, alive: Callable[[], None], parties: int = 2) -> None:
        self._seconds, self._patience, self._alive, self._parties = seconds, patience, alive, parties
        self._changed, self._turn = threading.Condition(), threading.Semaphore()
        self._queries: dict[str, _Query] = {}
        self._refused: OrderedDict[str, ProtocolError] = OrderedDict()

    def refuse(self, session: str, party: int, error: SecureInferError) -> None:
        """Tell whoever holds another share of a query, now or later, that a party refused its own."""
        what = " ".join([error.summary, *(problem.what for problem in error.problems)])
        fix = "send each party the message that was made for it."
        told = ProtocolError(
            f"The {PARTY_NAMES[party]} refused its share of this query.", [Problem(PARTY_NAMES[party], what, fix)]
        )
        with self._changed:
            self._refused[session] = told
            while len(self._refused) > _REMEMBERED:
                self._refused.popitem(last=False)
            self._changed.notify_all()

    def begin(
        self, session: str, party: int, samples: int, message: bytes, start: Callable[[int, bytes], None]
    ) -> Callable[[], None]:
        """Bring one share; whoever brings the last one starts all parties.

        Args:
            session: Name of the query.
            party: Whose share it is.
            samples: In the share.
            message: The share, for that party.
            start: Gives a party its message.

        Returns:
            What returns when all parties work on the query. It raises a ProtocolError if another share was refused,
            is of another shape or does not come, or if a process is gone.

        Raises:
            ProtocolError: Another share was refused before or did not come in time, or the query is there already.
        """
        with self._changed:
            if session in self._refused:
                raise self._refused[session]
            query = self._queries.setdefault(session, _Query())
            if query.trouble:
                raise _again(query.trouble)
            if party in query.sizes:
                raise ProtocolError("This query is running already.")
            query.sizes[party], query.messages[party] = samples, message
            complete = len(query.sizes) == self._parties
        if complete:
            self._start(query, start)
        return partial(self._wait, query, session)

    def end(self, session: str) -> None:
        """A party is done with a query that it began; the next one may start when all are."""
        with self._changed:
            query = self._queries.get(session)
            if query is None:
                return
            query.ended += 1
            if query.ended == len(query.sizes):
                del self._queries[session]
                if query.started:
                    self._turn.release()

    def _start(self, query: _Query, start: Callable[[int, bytes], None]) -> None:
        try:
            odd = [party for party, samples in query.sizes.items() if samples != query.sizes[0]]
            if odd:
                raise lost(PARTY_NAMES[0], f"was given a share of another shape than party {odd[0]} for this query")
            if not self._turn.acquire(timeout=self._patience):
                raise ProtocolError(
                    "The servers are busy.",
                    [Problem("servers", "Other queries did not end in time.", "ask again later.")],
                )
            query.started = True
            for party, message in query.messages.items():
                start(party, message)
        except SecureInferError as error:
            query.trouble = error
        with self._changed:
            self._changed.notify_all()

    def _wait(self, query: _Query, session: str) -> None:
        deadline = time.monotonic() + self._seconds
        with self._changed:
            while not query.started and not query.trouble:
                if session in self._refused:
                    raise self._refused[session]
                self._alive()
                absent = [party for party in range(self._parties) if party not in query.sizes]
                if absent and time.monotonic() > deadline:
                    query.trouble = lost(PARTY_NAMES[absent[0]], f"was not given its share within {self._seconds:g} s")
                    self._changed.notify_all()
                    break
                self._changed.wait(_GLANCE)
        if query.trouble:
            raise _again(query.trouble)


def _again(error: SecureInferError) -> SecureInferError:
    """The same error, for one more caller."""
    return type(error)(error.summary, error.problems)
