"""What holds for all tests."""

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says something of the machine and of who else is on it, and nothing of the code.
settings.register_profile("hub", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("hub")


@pytest.fixture(scope="session")
def engines():
    """By URL. Each story has its own database, behind the same URL: so SQLAlchemy compiles a statement once, and not for each."""
    return {}
