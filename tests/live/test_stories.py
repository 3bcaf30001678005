"""The stories of `tests/stories` again, on PostgreSQL."""

import pytest

from tests.stories.conftest import exeter, hub, plymouth, torbay  # noqa: F401 - fixtures
from tests.stories.test_bad_input import *  # noqa: F403
from tests.stories.test_exactly_once import *  # noqa: F403
from tests.stories.test_quarantine import *  # noqa: F403
from tests.stories.test_transfers import *  # noqa: F403


@pytest.fixture
def store_url(database_url):
    return database_url
