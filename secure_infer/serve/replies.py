"""Replies that are kept for a while, so that a request whose answer was lost on the way is not paid and run twice."""

from __future__ import annotations

from dataclasses import dataclass

from secure_infer.serve.database import Transaction


@dataclass(frozen=True)
class Keep:
    """How long replies are kept, in seconds, and how many bytes of them in all."""

    seconds: float = 600.0
    total_bytes: int = 512 << 20


KEEP = Keep()


def put(transaction: Transaction, keep: Keep, client: str, request_id: str, reply: bytes, now: float) -> None:
    """Keep a reply; the oldest go where there is no room, and one that is too large is not kept at all."""
    room = keep.total_bytes - len(reply)
    prune(transaction, keep, room, now)
    if room >= 0:
        transaction.run("INSERT INTO replies VALUES (?, ?, ?, ?, ?)", client, request_id, len(reply), now, reply)


def get(transaction: Transaction, keep: Keep, client: str, request_id: str, now: float) -> bytes | None:
    """A reply that is still kept."""
    sql = "SELECT reply FROM replies WHERE client = ? AND id = ? AND kept > ?"
    row = transaction.one(sql, client, request_id, now - keep.seconds)
    return bytes(row[0]) if row else None


def prune(transaction: Transaction, keep: Keep, room: int, now: float) -> None:
    """Drop replies that are past their time, then the oldest until the others fit into so many bytes."""
    transaction.run("DELETE FROM replies WHERE kept <= ?", now - keep.seconds)
    row = transaction.one("SELECT COALESCE(SUM(size), 0) FROM replies")
    held = int(row[0]) if row else 0
    while held > max(room, 0):
        oldest = transaction.all("SELECT client, id, size FROM replies ORDER BY kept LIMIT 1")
        for client, request_id, size in oldest:
            transaction.run("DELETE FROM replies WHERE client = ? AND id = ?", client, request_id)
            held -= int(size)
