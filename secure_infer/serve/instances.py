"""Which servers live, and what the dead ones left: requests that nobody runs any more."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from secure_infer.serve.audit import Audit, Event
from secure_infer.serve.database import Database, Transaction


class Instance:
    """This server's number in the database; each start has a new one.

    Args:
        database: Whose requests these are.
        audit: Where interrupted requests are noted.
        clock: Seconds since 1970.
    """

    def __init__(self, database: Database, audit: Audit, clock: Callable[[], float] = time.time) -> None:
        self._database, self._audit, self._clock = database, audit, clock
        with database.transaction() as transaction:
            row = transaction.one("SELECT COALESCE(MAX(id), 0) + 1 FROM instances")
            self.number = int(row[0]) if row else 1
            transaction.run("INSERT INTO instances (id, began) VALUES (?, ?)", self.number, clock())
            # Claimed before anybody can see the number, lest another server take it for dead.
            database.claim(self.number)
        self.bury()

    def bury(self) -> int:
        """Mark what dead servers were running as interrupted; returns how many requests these were."""
        with self._database.reading() as query:
            rows = query.all("SELECT id FROM instances WHERE ended IS NULL AND id <> ?", self.number)
        dead = self._database.dead([int(row[0]) for row in rows])
        with self._database.transaction() as transaction:
            return sum(self._bury(transaction, number) for number in dead)

    def end(self) -> None:
        """Leave nothing behind."""
        with self._database.transaction() as transaction:
            self._bury(transaction, self.number)

    def _bury(self, transaction: Transaction, number: int) -> int:
        left = transaction.all(
            "SELECT client, model, key_name, id, received FROM requests WHERE instance = ? AND state = 'running'",
            number,
        )
        for client, *request in left:
            self._audit.append(transaction, replace(Event(client, "infer", *request), outcome="interrupted"))
        transaction.run("UPDATE requests SET state = 'interrupted' WHERE instance = ? AND state = 'running'", number)
        transaction.run("UPDATE instances SET ended = ? WHERE id = ?", self._clock(), number)
        return len(left)
