"""A clock that cannot see Kafka goes on without: it is told so, and nothing is raised."""

import pytest

from hub.sources.kafka_config import WorkerConfig
from hub.sources.unread import Unread

NOBODY = "127.0.0.1:1"


@pytest.mark.parametrize("secured", [False, True])
async def test_what_cannot_be_seen_is_none_and_no_error(tmp_path, secured):
    more = {"security_protocol": "SASL_SSL", "ca_file": tmp_path / "gone.pem"} if secured else {}
    config = WorkerConfig(bootstrap_servers=NOBODY, patience_s=1, **more)
    async with Unread(config, ["epr.ra9.events"], None) as unread:
        assert await unread.ends() is None
        assert await unread.unread({("epr.ra9.events", 0): 5}) is None
