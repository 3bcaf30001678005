"""What holds for all tests."""

from hypothesis import HealthCheck, settings

# How long an example takes says something of the machine and of who else is on it, and nothing of the code.
settings.register_profile("hub", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("hub")
