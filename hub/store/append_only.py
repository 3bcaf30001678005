"""Nothing sealed is changed or deleted: triggers that say so, for PostgreSQL and SQLite.

They hold for the owner of the tables too. Somebody who may alter the tables can take a trigger away; that what was done
then shows is the log's own business (`hub.verifier`).
"""

from collections.abc import Iterator

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
    # What waits may only leave for the log.
    """
    CREATE FUNCTION refuse_to_lose_an_entry() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      IF EXISTS (
        SELECT 1 FROM gone LEFT JOIN audit_entry sealed ON sealed.entry = gone.entry
        WHERE sealed.entry IS NULL
          OR (sealed.code, sealed.at, sealed.outcome, sealed.system) <> (gone.code, gone.at, gone.outcome, gone.system)
      ) THEN
        RAISE EXCEPTION 'DELETE on audit_pending: an entry may only be deleted when it is sealed'
          USING ERRCODE = 'insufficient_privilege';
      END IF;
      RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER audit_pending_is_moved AFTER DELETE ON audit_pending REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_lose_an_entry()
    """,
    """
    CREATE TRIGGER audit_pending_is_not_changed BEFORE UPDATE OR TRUNCATE ON audit_pending
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
    yield """
    CREATE TRIGGER audit_pending_refuses_update BEFORE UPDATE ON audit_pending
    BEGIN SELECT RAISE(ABORT, 'UPDATE on audit_pending: an entry is not changed'); END
    """
    yield """
    CREATE TRIGGER audit_pending_is_moved BEFORE DELETE ON audit_pending
    WHEN NOT EXISTS (SELECT 1 FROM audit_entry WHERE entry = OLD.entry AND code = OLD.code AND at = OLD.at)
    BEGIN SELECT RAISE(ABORT, 'DELETE on audit_pending: an entry may only be deleted when it is sealed'); END
    """


def statements(dialect: str) -> Iterator[str]:
    """What makes the triggers. ``dialect``: postgresql or sqlite."""
    yield from _POSTGRESQL if dialect == "postgresql" else _sqlite()
