"""Who asked what and when, never the content: an append-only log in which each record holds the hash of the one before."""

from __future__ import annotations


class Audit:
    """The log of one store."""

    def record(
        self,
        client: str,
        action: str,
        *,
        model: str = "",
        key_name: str = "",
        request_id: str = "",
        received: int = 0,
        sent: int = 0,
        outcome: str = "ok",
        cpu_s: float = 0.0,
    ) -> None:
        """Append a record. Requests are recorded by `Budgets` itself; the rest (uploads, deletions) by the caller."""
        raise NotImplementedError
