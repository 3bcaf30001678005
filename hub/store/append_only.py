"""Nothing sealed is changed or deleted: triggers that say so, for PostgreSQL and SQLite.

They hold for the owner of the tables too. Somebody who may alter the tables can take a trigger away; that what was done
then shows is the log's own business (`hub.verifier`).
"""

from collections.abc import Iterator

from hub.store.waiting import BATCH_MAX

SEALED = ("audit_entry", "audit_node", "audit_checkpoint")
"""Tables that are only ever inserted into."""

_POSTGRESQL = (
    """
    CREATE FUNCTION refuse_to_change_the_log() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      RAISE EXCEPTION '% on %: what is sealed is neither changed nor deleted', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
    END $$
    """,
    *(
        f"""
        CREATE TRIGGER {table}_is_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}
        FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_the_log()
        """
        for table in SEALED
    ),
)


_WAITING_ON_POSTGRESQL = (
    # What waits may only leave for the log.
    f"""
    CREATE FUNCTION refuse_to_lose_an_entry() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      IF EXISTS (SELECT 1 FROM gone WHERE size <> (
        SELECT count(*) FROM audit_entry sealed
        WHERE sealed.entry >= gone.batch * {BATCH_MAX} AND sealed.entry < gone.batch * {BATCH_MAX} + gone.size
      )) THEN
        RAISE EXCEPTION 'DELETE on audit_batch: entries may only be deleted when they are sealed'
          USING ERRCODE = 'insufficient_privilege';
      END IF;
      RETURN NULL;
    END $$
    """,  # noqa: S608 - a number of ours
    """
    CREATE TRIGGER audit_batch_is_sealed AFTER DELETE ON audit_batch REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_lose_an_entry()
    """,
    """
    CREATE TRIGGER audit_batch_is_not_changed BEFORE UPDATE OR TRUNCATE ON audit_batch
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_the_log()
    """,
)


def _sqlite() -> Iterator[str]:
    for table in SEALED:
        for act in ("UPDATE", "DELETE"):
            yield f"""
            CREATE TRIGGER {table}_refuses_{act.lower()} BEFORE {act} ON {table}
            BEGIN SELECT RAISE(ABORT, '{act} on {table}: what is sealed is neither changed nor deleted'); END
            """
    # INSERT OR REPLACE deletes without asking a trigger for deletion.
    yield """
    CREATE TRIGGER audit_entry_refuses_replacement BEFORE INSERT ON audit_entry
    WHEN EXISTS (SELECT 1 FROM audit_entry WHERE leaf_index = NEW.leaf_index OR entry = NEW.entry)
    BEGIN SELECT RAISE(ABORT, 'INSERT on audit_entry: this leaf is sealed'); END
    """


_WAITING_ON_SQLITE = (
    """
    CREATE TRIGGER audit_batch_refuses_update BEFORE UPDATE ON audit_batch
    BEGIN SELECT RAISE(ABORT, 'UPDATE on audit_batch: an entry is not changed'); END
    """,
    f"""
    CREATE TRIGGER audit_batch_is_sealed BEFORE DELETE ON audit_batch
    WHEN OLD.size <> (
      SELECT count(*) FROM audit_entry
      WHERE entry >= OLD.batch * {BATCH_MAX} AND entry < OLD.batch * {BATCH_MAX} + OLD.size
    )
    BEGIN SELECT RAISE(ABORT, 'DELETE on audit_batch: entries may only be deleted when they are sealed'); END
    """,  # noqa: S608 - a number of ours
)


def sealed(dialect: str) -> Iterator[str]:
    """What makes the triggers of what is sealed. ``dialect``: postgresql or sqlite."""
    yield from _POSTGRESQL if dialect == "postgresql" else _sqlite()


def waiting(dialect: str) -> Iterator[str]:
    """What makes the triggers of what waits to be sealed."""
    yield from _WAITING_ON_POSTGRESQL if dialect == "postgresql" else _WAITING_ON_SQLITE
