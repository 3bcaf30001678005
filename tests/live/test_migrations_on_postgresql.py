"""The same on PostgreSQL: what is in the database when it is brought up to date is there afterwards."""

import uuid

import pytest

from hub.store.engine import open_engine
from tests.unit.store.test_migrations import *  # noqa: F403


@pytest.fixture
async def engine(postgres):
    name = f"migrated_{uuid.uuid4().hex}"
    postgres.create_database(name)
    engine = open_engine(postgres.url(name))
    yield engine
    await engine.dispose()
    postgres.drop_database(name)
