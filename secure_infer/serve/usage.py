"""Counts of requests and CPU seconds, by client and window: the hours and days of UTC."""

from __future__ import annotations

from dataclasses import dataclass

from secure_infer.serve.database import Transaction

WINDOWS = {"hour": 3600, "day": 86400}


@dataclass(frozen=True)
class Spent:
    """What a client has spent of a window, and the seconds until the next one begins."""

    requests: int
    cpu_s: float
    resets_s: float


def start(unit: str, now: float) -> int:
    """When the window began that `now` is in; both in seconds since 1970."""
    return int(now) // WINDOWS[unit] * WINDOWS[unit]


def spent(query: Transaction, client: str, unit: str, now: float) -> Spent:
    """What a client has spent of the current `hour` or `day`."""
    began = start(unit, now)
    sql = "SELECT requests, cpu_s FROM usage WHERE client = ? AND unit = ? AND start = ?"
    requests, cpu_s = query.one(sql, client, unit, began) or (0, 0.0)
    return Spent(int(requests), float(cpu_s), max(began + WINDOWS[unit] - now, 0.001))


def add(transaction: Transaction, client: str, now: float, requests: int = 0, cpu_s: float = 0.0) -> None:
    """Add to what a client has spent of the hour and the day that `now` is in."""
    for unit in WINDOWS:
        transaction.run(
            "INSERT INTO usage VALUES (?, ?, ?, ?, ?, 0) ON CONFLICT (client, unit, start) DO UPDATE SET "
            "requests = usage.requests + excluded.requests, cpu_s = usage.cpu_s + excluded.cpu_s",
            *(client, unit, start(unit, now), requests, cpu_s),
        )


def refuse(transaction: Transaction, client: str, now: float) -> bool:
    """Note that a client was refused; whether that is the first time in this hour."""
    where = client, start("hour", now)
    if transaction.one("SELECT 1 FROM usage WHERE client = ? AND unit = 'hour' AND start = ? AND refused = 1", *where):
        return False
    add(transaction, client, now)
    transaction.run("UPDATE usage SET refused = 1 WHERE client = ? AND unit = 'hour' AND start = ?", *where)
    return True


def prune(transaction: Transaction, before: int) -> None:
    """Drop windows that began before a time."""
    transaction.run("DELETE FROM usage WHERE start < ?", before)
