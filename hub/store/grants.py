"""What the hub's services may do in PostgreSQL: everything they need, and nothing to what is sealed but add to it.

The tables belong to whoever runs `hub db upgrade`. Services sign in as a user that is a member of the role `transfer_hub`:

    CREATE USER hub_service PASSWORD '…' IN ROLE transfer_hub;
"""

from collections.abc import Iterator

from hub.store.append_only import SEALED

ROLE = "transfer_hub"


def statements() -> Iterator[str]:
    """Makes the role where that is allowed and there is none, and gives it its rights; may be run again."""
    yield f"""
    DO $$ BEGIN
      IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{ROLE}') THEN
        CREATE ROLE {ROLE} NOLOGIN;
      END IF;
    EXCEPTION
      WHEN insufficient_privilege THEN
        RAISE WARNING 'The role {ROLE} is missing and may not be made by %: have an administrator run '
          'CREATE ROLE {ROLE} NOLOGIN, then hub db upgrade again', current_user;
      WHEN duplicate_object OR unique_violation THEN NULL;
    END $$
    """
    sealed = ", ".join(f"'{table}'" for table in SEALED)
    yield f"""
    DO $$ DECLARE each text; BEGIN
      IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{ROLE}') THEN RETURN; END IF;
      EXECUTE format('GRANT USAGE ON SCHEMA %I TO {ROLE}', current_schema());
      EXECUTE format('GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA %I TO {ROLE}', current_schema());
      FOR each IN SELECT tablename FROM pg_tables WHERE schemaname = current_schema() LOOP
        EXECUTE format('REVOKE ALL ON %I FROM {ROLE}', each);
        IF each = 'alembic_version' THEN
          EXECUTE format('GRANT SELECT ON %I TO {ROLE}', each);
        ELSIF each = 'audit_batch' THEN
          EXECUTE format('GRANT SELECT, INSERT, DELETE ON %I TO {ROLE}', each);
        ELSIF each IN ({sealed}) THEN
          EXECUTE format('GRANT SELECT, INSERT ON %I TO {ROLE}', each);
        ELSE
          EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO {ROLE}', each);
        END IF;
      END LOOP;
      FOR each IN SELECT viewname FROM pg_views WHERE schemaname = current_schema() LOOP
        EXECUTE format('GRANT SELECT ON %I TO {ROLE}', each);
      END LOOP;
    END $$
    """  # noqa: S608 - every name in it is ours
