"""Nothing sealed is changed or deleted: triggers that say so, for PostgreSQL and SQLite.

They hold for the owner of the tables too. Somebody who may alter the tables can take a trigger away; that what was done
then shows is the log's own business (`hub.verifier`).
"""

from collections.abc import Iterator

from hub.store.waiting import BATCH_MAX

SEALED = ("audit_act", "audit_node", "audit_checkpoint")
"""Tables that are only ever inserted into."""


def never_changed(dialect: str, *tables: str) -> Iterator[str]:
    """What makes the triggers of tables that are only ever inserted into. ``dialect``: postgresql or sqlite."""
    if dialect == "postgresql":
        yield """
        CREATE OR REPLACE FUNCTION refuse_to_change_the_log() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
          RAISE EXCEPTION '% on %: what is sealed is neither changed nor deleted', TG_OP, TG_TABLE_NAME
            USING ERRCODE = 'insufficient_privilege';
        END $$
        """
        for table in tables:
            yield f"""
            CREATE TRIGGER {table}_is_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}
            FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_the_log()
            """
        return
    for table in tables:
        for act in ("UPDATE", "DELETE"):
            yield f"""
            CREATE TRIGGER {table}_refuses_{act.lower()} BEFORE {act} ON {table}
            BEGIN SELECT RAISE(ABORT, '{act} on {table}: what is sealed is neither changed nor deleted'); END
            """


def acts(dialect: str) -> Iterator[str]:
    """What makes the triggers of `audit_act`, and of what waits to be moved there."""
    yield from never_changed(dialect, "audit_act")
    if dialect == "sqlite":
        # INSERT OR REPLACE deletes without asking a trigger for deletion.
        yield """
        CREATE TRIGGER audit_act_refuses_replacement BEFORE INSERT ON audit_act
        WHEN EXISTS (SELECT 1 FROM audit_act WHERE first_leaf = NEW.first_leaf OR first_entry = NEW.first_entry)
        BEGIN SELECT RAISE(ABORT, 'INSERT on audit_act: this leaf is sealed'); END
        """
    yield from _WAITING_ON_POSTGRESQL if dialect == "postgresql" else _WAITING_ON_SQLITE


_WAITING_ON_POSTGRESQL = (
    # What waits may only leave for the log.
    f"""
    CREATE FUNCTION refuse_to_lose_an_entry() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      IF EXISTS (SELECT 1 FROM gone WHERE size <> (
        SELECT coalesce(sum(length(sealed.hashes) / 32), 0) FROM audit_act sealed
        WHERE sealed.first_entry >= gone.batch * {BATCH_MAX} AND sealed.first_entry < gone.batch * {BATCH_MAX} + gone.size
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
)

_WAITING_ON_SQLITE = (
    f"""
    CREATE TRIGGER audit_batch_is_sealed BEFORE DELETE ON audit_batch
    WHEN OLD.size <> (
      SELECT coalesce(sum(length(hashes) / 32), 0) FROM audit_act
      WHERE first_entry >= OLD.batch * {BATCH_MAX} AND first_entry < OLD.batch * {BATCH_MAX} + OLD.size
    )
    BEGIN SELECT RAISE(ABORT, 'DELETE on audit_batch: entries may only be deleted when they are sealed'); END
    """,  # noqa: S608 - a number of ours
)
