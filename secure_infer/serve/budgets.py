"""What each client has spent, and what each request may cost: once, whatever happens in between.

Windows are the hours and days of UTC: a client may spend two budgets around the turn of one, and knows to the second
when it may ask again. Requests are counted as they are admitted. CPU is charged when they are settled; until then each
is taken to cost what the last one of its model did, so that many at once can't outrun the budget by much.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from secure_infer.errors import InvalidInput, LimitExceeded, Problem, SecureInferError
from secure_infer.serve import replies, usage
from secure_infer.serve.accounts import Account
from secure_infer.serve.audit import Audit, Event
from secure_infer.serve.database import Database, Row, Transaction
from secure_infer.serve.usage import Spent

RUNS = 5
"""How often a request that failed may be run for its one charge."""
_HISTORY_S = 7 * 86400
_REQUEST_ID, _SHA256 = re.compile(r"[0-9a-f]{32}"), re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Admission:
    """What becomes of a request.

    Attributes:
        kind: `new` is to be run and settled; `replay` was answered already, here is its reply; `running` is being run
            for another connection: ask again after `retry_after` seconds (409).
        client: Who asks.
        model: Name of the model.
        key_name: SHA-256 of the evaluation keys.
        request_id: The client's name for the request.
        received: Bytes of the message.
        attempt: How often it is being run, this time included.
        reply: The stored reply of a replay.
        retry_after: Seconds.
    """

    kind: Literal["new", "replay", "running"]
    client: str
    model: str
    key_name: str
    request_id: str
    received: int = 0
    attempt: int = 1
    reply: bytes = b""
    retry_after: float = 1.0


class Budgets:
    """Admission and settlement of requests, each in one transaction, audit record included. Threads may share it.

    Args:
        database: Where the counts are.
        audit: Where requests are recorded.
        instance: This server's number (`instances`).
        keep: How long and how much of replies is kept.
        clock: Seconds since 1970.
    """

    def __init__(
        self,
        database: Database,
        audit: Audit,
        instance: int,
        keep: replies.Keep = replies.KEEP,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database, self._audit, self._instance, self._keep, self._clock = database, audit, instance, keep, clock
        self._lock = threading.Lock()
        self._running: dict[tuple[str, str], tuple[int, float]] = {}
        """What is being run here, by client and request id: which attempt, and the CPU seconds that it may take."""
        self._costs: dict[str, float] = {}

    def admit(
        self, account: Account, model: str, key_name: str, request_id: str, digest: str, received: int = 0
    ) -> Admission:
        """Admit a request and charge its client for it, once for a request id.

        Args:
            account: Who asks.
            model: Name of the model.
            key_name: SHA-256 of the evaluation keys; empty where there are none.
            request_id: 32 lower-case hexadecimal digits.
            digest: SHA-256 of the message, hexadecimal.
            received: Bytes of the message, for the audit log.

        Raises:
            LimitExceeded: The client's budget is spent (429); `retry_after` is when its window ends.
            InvalidInput: Not a request id; one that was used for another message, has failed too often, or whose reply
                is no longer kept (422).
        """
        if not _REQUEST_ID.fullmatch(request_id) or not _SHA256.fullmatch(digest):
            raise _invalid("It is not 32 lower-case hexadecimal digits.", "draw one at random for each request.")
        wanted = Admission("new", account.client, model, key_name, request_id, received)
        begun: Admission | None = None
        try:
            # A request that is answered is on the disk by its settlement: one wait for the disk each is enough.
            with self._database.transaction(durable=False) as transaction:
                decision = self._decide(transaction, account, wanted, digest)
                if isinstance(decision, Admission) and decision.kind == "new":
                    # Before it can be seen in the tables: a row that says `running` must be found here, too.
                    begun = self._begin(decision)
        except BaseException:
            if begun is not None:
                self._forget(begun)
            raise
        if isinstance(decision, SecureInferError):
            raise decision
        return decision

    def settle(self, admission: Admission, outcome: bytes | SecureInferError, cpu_s: float = 0.0) -> None:
        """Keep the reply of a `new` request for its retries, or note its failure; charge its CPU; write the audit log.

        A LimitExceeded (no worker had room, nothing was run) gives the charge back. Any other error leaves it, and the
        same request id may be run again without a second charge. Once settled, a request stays as it is.
        """
        if admission.kind != "new":
            return
        try:
            with self._database.transaction() as transaction:
                self._settle(transaction, admission, outcome, max(cpu_s, 0.0))
        finally:
            self._forget(admission)

    def spent(self, client: str) -> dict[str, Spent]:
        """What a client has spent of the current `hour` and `day`."""
        now = self._clock()
        with self._database.reading() as query:
            return {unit: usage.spent(query, client, unit, now) for unit in usage.WINDOWS}

    def sweep(self) -> None:
        """Drop replies that are past their time, and requests and counts of more than a week ago."""
        now = self._clock()
        # At the turn of a day, so that the counts of a window go together with its requests.
        before = usage.start("day", now - _HISTORY_S)
        with self._database.transaction() as transaction:
            replies.prune(transaction, self._keep, self._keep.total_bytes, now)
            transaction.run("DELETE FROM requests WHERE charged < ? AND state <> 'running'", before)
            usage.prune(transaction, before)

    def _decide(
        self, transaction: Transaction, account: Account, wanted: Admission, digest: str
    ) -> Admission | SecureInferError:
        row = transaction.one(
            "SELECT model, key_name, digest, state, instance, attempts FROM requests WHERE client = ? AND id = ?",
            *(wanted.client, wanted.request_id),
        )
        if row is None:
            return self._first(transaction, account, wanted, digest)
        if row[:3] != (wanted.model, wanted.key_name, digest):
            return self._reused(transaction, wanted)
        return self._again(transaction, account, wanted, row)

    def _first(
        self, transaction: Transaction, account: Account, wanted: Admission, digest: str
    ) -> Admission | SecureInferError:
        now = self._clock()
        if (refusal := self._refusal(transaction, account, wanted, now, requests=1)) is not None:
            return refusal
        usage.add(transaction, wanted.client, now, requests=1)
        transaction.run(
            "INSERT INTO requests VALUES (?, ?, ?, ?, ?, 'running', ?, 1, 0, ?, ?)",
            *(wanted.client, wanted.request_id, wanted.model, wanted.key_name, digest),
            *(self._instance, now, wanted.received),
        )
        return wanted

    def _again(
        self, transaction: Transaction, account: Account, wanted: Admission, row: Row
    ) -> Admission | SecureInferError:
        """A request that was seen before: answered, under way, or not brought to an end."""
        now, (state, instance, attempts) = self._clock(), row[3:]
        if state == "answered":
            reply = replies.get(transaction, self._keep, wanted.client, wanted.request_id, now)
            if reply is None:
                return _invalid("This request was answered; its reply is no longer kept.", "send it as a new request.")
            return replace(wanted, kind="replay", reply=reply)
        if state == "running" and self._is_run(wanted, int(instance)):
            return replace(wanted, kind="running")
        if attempts >= RUNS:
            return _invalid(f"This request was run {attempts} times and failed.", "send it as a new request.")
        if (refusal := self._refusal(transaction, account, wanted, now, requests=0)) is not None:
            return refusal
        transaction.run(
            "UPDATE requests SET state = 'running', instance = ?, attempts = ? WHERE client = ? AND id = ?",
            *(self._instance, attempts + 1, wanted.client, wanted.request_id),
        )
        return replace(wanted, attempt=attempts + 1)

    def _is_run(self, wanted: Admission, instance: int) -> bool:
        """Whether the server that began a request still runs it; not so if it died, or could not settle it."""
        if instance == self._instance:
            return self._key(wanted) in self._running
        return not self._database.dead([instance])

    def _reused(self, transaction: Transaction, wanted: Admission) -> SecureInferError:
        """The same id for something else. Recorded once, lest repeating it fill the log."""
        sql = "UPDATE requests SET reused = 1 WHERE client = ? AND id = ? AND reused = 0"
        if transaction.run(sql, wanted.client, wanted.request_id):
            self._audit.append(transaction, _event(wanted, "refused: request id used before"))
        return _invalid("It was used for another message.", "draw one at random for each request.")

    def _refusal(
        self, transaction: Transaction, account: Account, wanted: Admission, now: float, requests: int
    ) -> LimitExceeded | None:
        """Why the client's budget does not hold this request; None if it does."""
        limits = account.limits
        problems, waits = [], []
        for unit, most, most_s in (
            ("hour", limits.per_hour, limits.cpu_per_hour),
            ("day", limits.per_day, limits.cpu_per_day),
        ):
            spent = usage.spent(transaction, wanted.client, unit, now)
            if most is not None and requests and spent.requests + requests > most:
                waits.append(spent.resets_s)
                problems.append(_over(unit, f"{most} requests", waits[-1]))
            if most_s is not None and spent.cpu_s + self._expected(wanted.client) >= most_s:
                # What is under way may turn out cheaper than expected.
                waits.append(spent.resets_s if spent.cpu_s >= most_s else 1.0)
                problems.append(_over(unit, f"{most_s:g} s of CPU", waits[-1]))
        if not problems:
            return None
        if usage.refuse(transaction, wanted.client, now):  # once an hour, lest asking on fill the log
            self._audit.append(transaction, _event(wanted, "refused: budget"))
        return LimitExceeded("The budget is spent.", problems, retry_after=max(waits))

    def _settle(
        self, transaction: Transaction, admission: Admission, outcome: bytes | SecureInferError, cpu_s: float
    ) -> None:
        unrun, answered = isinstance(outcome, LimitExceeded), isinstance(outcome, bytes)
        row = transaction.one(
            "SELECT charged FROM requests "
            "WHERE client = ? AND id = ? AND state = 'running' AND instance = ? AND attempts = ?",
            *(admission.client, admission.request_id, self._instance, admission.attempt),
        )
        if row is None:
            return
        now = self._clock()
        if unrun and admission.attempt == 1:
            self._refund(transaction, admission, float(row[0]))
        else:
            transaction.run(
                "UPDATE requests SET state = ?, attempts = ? WHERE client = ? AND id = ?",
                *("answered" if answered else "failed", admission.attempt - unrun),
                *(admission.client, admission.request_id),
            )
        usage.add(transaction, admission.client, now, cpu_s=cpu_s)
        if isinstance(outcome, bytes):
            replies.put(transaction, self._keep, admission.client, admission.request_id, outcome, now)
            self._costs[admission.model] = cpu_s
        said = "ok" if answered else f"failed: {type(outcome).__name__}"
        sent = len(outcome) if isinstance(outcome, bytes) else 0
        self._audit.append(transaction, replace(_event(admission, said), sent=sent, cpu_ms=round(cpu_s * 1000)))

    @staticmethod
    def _refund(transaction: Transaction, admission: Admission, charged: float) -> None:
        usage.add(transaction, admission.client, charged, requests=-1)
        sql = "DELETE FROM requests WHERE client = ? AND id = ?"
        transaction.run(sql, admission.client, admission.request_id)

    def _begin(self, admission: Admission) -> Admission:
        with self._lock:
            cost = self._costs.get(admission.model, 0.0)
            self._running[self._key(admission)] = admission.attempt, cost
        return admission

    def _forget(self, admission: Admission) -> None:
        with self._lock:
            if self._running.get(self._key(admission), (0, 0.0))[0] == admission.attempt:
                del self._running[self._key(admission)]

    def _expected(self, client: str) -> float:
        """CPU seconds that a client's requests under way are expected to take."""
        with self._lock:
            return sum(cost for (who, _), (_, cost) in self._running.items() if who == client)

    @staticmethod
    def _key(admission: Admission) -> tuple[str, str]:
        return admission.client, admission.request_id


def _event(admission: Admission, outcome: str) -> Event:
    request = admission.model, admission.key_name, admission.request_id, admission.received
    return Event(admission.client, "infer", *request, outcome=outcome)


def _over(unit: str, limit: str, wait_s: float) -> Problem:
    return Problem("budget", f"{limit} a {unit} are allowed, and spent or taken.", f"ask again in {wait_s:.0f} s.")


def _invalid(what: str, fix: str) -> InvalidInput:
    return InvalidInput("This request id can't be used.", [Problem("request id", what, fix)])
