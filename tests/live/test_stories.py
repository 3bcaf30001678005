"""The stories of `tests/stories` again, on PostgreSQL: one database, emptied before each.

The hub signs in as a service does (`hub.store.grants`): it may do all that the stories need, and change nothing sealed.
"""

import asyncio
import uuid

import pytest
from sqlalchemy import literal_column, make_url, select, text
from sqlalchemy.ext.asyncio import create_async_engine

from hub.store import schema
from hub.store.grants import ROLE
from hub.store.tables import metadata
from tests.live.conftest import _revive
from tests.stories.conftest import at_exeter, at_torbay, exeter, facade, hub, plymouth, torbay  # noqa: F401 - fixtures
from tests.stories.test_asking import *  # noqa: F403
from tests.stories.test_audit_reading import *  # noqa: F403
from tests.stories.test_audit_reports import *  # noqa: F403
from tests.stories.test_backup_put_back import *  # noqa: F403
from tests.stories.test_bad_input import *  # noqa: F403
from tests.stories.test_clocks import *  # noqa: F403
from tests.stories.test_exactly_once import *  # noqa: F403
from tests.stories.test_facade import *  # noqa: F403
from tests.stories.test_facade_decisions import *  # noqa: F403
from tests.stories.test_facade_merged import *  # noqa: F403
from tests.stories.test_facade_unchanged import *  # noqa: F403
from tests.stories.test_journeys import *  # noqa: F403
from tests.stories.test_mistaken_identity import *  # noqa: F403
from tests.stories.test_people import *  # noqa: F403
from tests.stories.test_quarantine import *  # noqa: F403
from tests.stories.test_retention import *  # noqa: F403
from tests.stories.test_sealed_log import *  # noqa: F403
from tests.stories.test_subscriptions import *  # noqa: F403
from tests.stories.test_transfers import *  # noqa: F403
from tests.stories.test_what_comes_along import *  # noqa: F403
from tests.stories.test_which_transfer import *  # noqa: F403
from tests.stories.test_wrong_number import *  # noqa: F403

SERVICE = "a_service_of_the_hub"

del test_no_byte_of_a_foreign_trust_comes_back  # noqa: F821 - long, and about rules and not about a database


@pytest.fixture(scope="module")
def stories_url(postgres):
    name = f"stories_{uuid.uuid4().hex}"
    _revive(postgres)
    postgres.create_database(name)
    url = postgres.url(name)

    async def migrate():
        engine = create_async_engine(url)
        await schema.upgrade(engine)
        async with engine.begin() as connection:
            known = select(literal_column("1")).where(text(f"'{SERVICE}' in (select rolname from pg_roles)"))
            if await connection.scalar(known) is None:
                await connection.execute(text(f"create user {SERVICE} password '{SERVICE}' in role {ROLE}"))
            # No story ends PostgreSQL, so none waits for its disk.
            await connection.execute(text(f"alter database {name} set synchronous_commit = off"))
        await engine.dispose()

    asyncio.run(migrate())
    yield url
    postgres.drop_database(name)


@pytest.fixture
async def store_url(stories_url):
    engine = create_async_engine(stories_url)
    async with engine.begin() as connection:
        # No trigger stops this one. TRUNCATE would make every table's and index's file anew, which takes longer than a story.
        await connection.execute(text("set local session_replication_role = replica"))
        for table in metadata.tables:
            await connection.execute(text(f"delete from {table}"))
        sequences = text("select setval(oid::regclass, 1, false) from pg_class where relkind = 'S'")
        await connection.execute(sequences)
    await engine.dispose()
    service = make_url(stories_url).set(username=SERVICE, password=SERVICE)
    return service.render_as_string(hide_password=False)


@pytest.fixture
def owner_url(stories_url):
    return stories_url
