"""A real Kafka and PostgreSQL for everything in this directory: our own, or those the environment names.

HUB_KAFKA_BOOTSTRAP_SERVERS and HUB_DATABASE_URL (postgresql…) name servers that are there already; they are used,
never stopped: tests that stop or kill look at `controllable` first.
"""

import uuid
from collections.abc import Generator, Iterable, Iterator, Mapping

import pytest

from tests.harness.kafka_server import KafkaServer, create_topics
from tests.harness.postgres_server import GivenPostgres, PostgresServer
from tests.harness.prerequisites import given_kafka, given_postgres, missing

_HOW_TO_INSTALL = "(or: python -m tests.harness.prerequisites --install)"


class GivenKafka:
    """A Kafka somebody else runs: used, never stopped."""

    controllable = False

    def __init__(self, bootstrap_servers: str) -> None:
        self.bootstrap_servers = bootstrap_servers

    def create_topics(
        self, names: Iterable[str], partitions: int = 1, config: Mapping[str, str] | None = None
    ) -> None:
        create_topics(self.bootstrap_servers, names, partitions, config)


@pytest.fixture(scope="session", autouse=True)
def _prerequisites() -> None:
    if sentences := missing():
        pytest.skip(f"{'; '.join(sentences)} {_HOW_TO_INSTALL}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Gives every skip for a missing prerequisite the same place, so that pytest's summary folds them into one line."""
    report = yield
    if report.skipped and isinstance(report.longrepr, tuple) and _HOW_TO_INSTALL in report.longrepr[2]:
        report.longrepr = (__file__, 1, report.longrepr[2])
    return report


@pytest.fixture(scope="session")
def kafka(_prerequisites: None) -> Iterator[KafkaServer | GivenKafka]:
    """One broker for the session: topics need names of their own, and a test leaves it as it likes."""
    if (servers := given_kafka()) is not None:
        yield GivenKafka(servers)
        return
    with KafkaServer() as server:
        yield server


@pytest.fixture(scope="session")
def postgres(_prerequisites: None) -> Iterator[PostgresServer | GivenPostgres]:
    """One cluster for the session."""
    if (url := given_postgres()) is not None:
        yield GivenPostgres(url)
        return
    with PostgresServer() as server:
        yield server


@pytest.fixture
def bootstrap_servers(kafka: KafkaServer | GivenKafka) -> str:
    """The broker's address; it runs, even if the test before froze or killed it."""
    if isinstance(kafka, KafkaServer):
        if kafka.running:
            kafka.thaw()
        kafka.start()
    return kafka.bootstrap_servers


@pytest.fixture
def database_url(postgres: PostgresServer | GivenPostgres) -> Iterator[str]:
    """The URL of a new, empty database, dropped afterwards; the server runs, whatever the test before did to it."""
    name = f"test_{uuid.uuid4().hex}"
    _revive(postgres)
    postgres.create_database(name)
    yield postgres.url(name)
    _revive(postgres)
    postgres.drop_database(name)


def _revive(postgres: PostgresServer | GivenPostgres) -> None:
    if isinstance(postgres, PostgresServer):
        if postgres.running:
            postgres.thaw()
        postgres.start()
