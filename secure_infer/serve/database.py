"""The one seam to SQLite and PostgreSQL."""

from __future__ import annotations


class Database:
    """Transactions on the state of a store."""
