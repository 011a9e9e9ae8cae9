"""The tables of a store, as steps from each schema version to the next. A step that was released is never changed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """Statements that make one version of the schema out of the one before.

    Attributes:
        both: For both engines, in the dialect that they share; `BLOB` is written for bytes.
        sqlite: For SQLite alone, afterwards.
        postgres: For PostgreSQL alone, afterwards.
    """

    both: tuple[str, ...]
    sqlite: tuple[str, ...] = ()
    postgres: tuple[str, ...] = ()


_TABLES = (
    """CREATE TABLE clients (
        name TEXT PRIMARY KEY,
        per_hour BIGINT, per_day BIGINT, cpu_per_hour DOUBLE PRECISION, cpu_per_day DOUBLE PRECISION)""",
    """CREATE TABLE tokens (
        id TEXT PRIMARY KEY, client TEXT NOT NULL REFERENCES clients (name), digest TEXT NOT NULL, scopes TEXT NOT NULL,
        made DOUBLE PRECISION NOT NULL, expires DOUBLE PRECISION, revoked DOUBLE PRECISION)""",
    """CREATE TABLE usage (
        client TEXT NOT NULL, unit TEXT NOT NULL, start BIGINT NOT NULL,
        requests BIGINT NOT NULL, cpu_s DOUBLE PRECISION NOT NULL, refused BIGINT NOT NULL,
        PRIMARY KEY (client, unit, start))""",
    """CREATE TABLE instances (
        id BIGINT PRIMARY KEY, began DOUBLE PRECISION NOT NULL, ended DOUBLE PRECISION)""",
    """CREATE TABLE requests (
        client TEXT NOT NULL, id TEXT NOT NULL, model TEXT NOT NULL, key_name TEXT NOT NULL, digest TEXT NOT NULL,
        state TEXT NOT NULL, instance BIGINT NOT NULL, attempts BIGINT NOT NULL, reused BIGINT NOT NULL,
        charged DOUBLE PRECISION NOT NULL, received BIGINT NOT NULL,
        PRIMARY KEY (client, id))""",
    "CREATE INDEX requests_running ON requests (instance) WHERE state = 'running'",
    "CREATE INDEX requests_charged ON requests (charged)",
    """CREATE TABLE replies (
        client TEXT NOT NULL, id TEXT NOT NULL,
        size BIGINT NOT NULL, kept DOUBLE PRECISION NOT NULL, reply BLOB NOT NULL,
        PRIMARY KEY (client, id))""",
    "CREATE INDEX replies_kept ON replies (kept, size)",
    """CREATE TABLE audit (
        seq BIGINT PRIMARY KEY, time_ms BIGINT NOT NULL,
        client TEXT NOT NULL, action TEXT NOT NULL, model TEXT NOT NULL,
        key_name TEXT NOT NULL, request_id TEXT NOT NULL, received BIGINT NOT NULL, sent BIGINT NOT NULL,
        outcome TEXT NOT NULL, cpu_ms BIGINT NOT NULL, previous TEXT NOT NULL, hash TEXT NOT NULL)""",
)

# They keep honest hands off; whoever may write the file can drop them, and is found by the chain.
_APPEND_ONLY_SQLITE = tuple(
    f"CREATE TRIGGER audit_no_{verb.lower()} BEFORE {verb} ON audit BEGIN SELECT RAISE(ABORT, 'append only'); END"
    for verb in ("UPDATE", "DELETE")
)
_APPEND_ONLY_POSTGRES = (
    """CREATE FUNCTION audit_append_only() RETURNS trigger LANGUAGE plpgsql
        AS $$ BEGIN RAISE EXCEPTION 'append only'; END $$""",
    """CREATE TRIGGER audit_kept BEFORE UPDATE OR DELETE OR TRUNCATE ON audit
        FOR EACH STATEMENT EXECUTE FUNCTION audit_append_only()""",
)

STEPS: tuple[Step, ...] = (Step(_TABLES, _APPEND_ONLY_SQLITE, _APPEND_ONLY_POSTGRES),)
