"""What is put together where, as far as it can be wrong."""

import pytest

from hub.store.engine import open_engine
from hub.wiring import SecondWorkerError, hold_sqlite_alone


def test_sqlite_allows_one_worker_and_says_so(tmp_path):
    engine = open_engine(f"sqlite+aiosqlite:///{tmp_path}/hub.db")
    held = hold_sqlite_alone(engine)

    with pytest.raises(SecondWorkerError, match=r"exactly one.*PostgreSQL"):
        hold_sqlite_alone(engine)
    held.close()
    hold_sqlite_alone(engine).close()


def test_postgres_allows_as_many_workers_as_there_are_partitions():
    assert hold_sqlite_alone(open_engine("postgresql+asyncpg://hub@127.0.0.1/hub")) is None
