"""Outages as long as real ones: a minute without Kafka, a minute without PostgreSQL, a topic closed to the hub."""

import asyncio
import json
from collections import Counter

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from hub.demo.people import patient_number
from tests.harness.kafka_server import KafkaServer
from tests.harness.postgres_server import PostgresServer
from tests.live.hub_process import LiveHub, live_hub, now

pytestmark = [pytest.mark.live, pytest.mark.long, pytest.mark.timeout(480)]

MINUTE_S = 60


def _request(hub: LiveHub, number: int, to=None):
    return hub.one.asks_to_transfer(
        patient_number(number),
        to=(to or hub.two).profile.ods,
        request_number=f"R{number}",
        encounter_number=f"E{number}",
        at=now(),
    )


async def _ask(hub: LiveHub, numbers) -> None:
    await hub.produce(*[(hub.one, _request(hub, number)) for number in numbers])


async def _transfers_on(hub: LiveHub, topic: str) -> Counter[bytes]:
    return Counter(dict(record.headers)["transfer-id"] for record in await hub.on(topic))


async def test_a_minute_without_either_server_costs_time_only(
    tmp_path, bootstrap_servers, database_url, kafka, postgres
):
    """`hub run` is left alone: what died comes back by itself, and each request arrives once."""
    if not isinstance(kafka, KafkaServer) or not isinstance(postgres, PostgresServer):
        pytest.skip("the servers that the environment names are not ours to stop")
    with live_hub(tmp_path, bootstrap_servers, database_url) as hub:
        hub.start("run")
        await _ask(hub, range(10))
        await hub.until_taken_in(10)

        kafka.kill()
        await asyncio.sleep(MINUTE_S)
        kafka.start()
        await _ask(hub, range(10, 20))
        await hub.until_taken_in(20, within_s=120)

        postgres.kill()
        await _ask(hub, range(20, 30))
        await asyncio.sleep(MINUTE_S)
        postgres.start()
        await _ask(hub, range(30, 40))
        await hub.until_taken_in(40, within_s=120)
        await hub.until_delivered(within_s=120)

        arrived = await _transfers_on(hub, hub.two.profile.inbox_topic)
        assert len(arrived) == 40
        assert set(arrived.values()) == {1}


@pytest.fixture(scope="module")
def guarded_kafka():
    """A broker that asks its rules before every write; whoever has no rule may do everything."""
    properties = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found": "true",
    }
    with KafkaServer(properties=properties) as server:
        yield server


async def test_an_inbox_that_may_not_be_written_holds_up_its_own_hospital_only(
    tmp_path, guarded_kafka, database_url
):
    """The second trust's inbox is closed to the hub; the third gets its patients meanwhile, and `hub outbox` says why."""
    admin = AdminClient({"bootstrap.servers": guarded_kafka.bootstrap_servers})
    with live_hub(tmp_path, guarded_kafka.bootstrap_servers, database_url) as hub:
        inbox, other = hub.two.profile.inbox_topic, hub.three.profile.inbox_topic
        rule = (ResourceType.TOPIC, inbox, ResourcePatternType.LITERAL, "User:ANONYMOUS", "*")
        deny = (*rule, AclOperation.WRITE, AclPermissionType.DENY)
        allow = (*rule, AclOperation.ALL, AclPermissionType.ALLOW)
        for made in admin.create_acls([AclBinding(*deny), AclBinding(*allow)]).values():
            made.result()
        hub.start("run", HUB_DISPATCH_BACKOFF_MAX_S="2")
        await hub.produce((hub.one, _request(hub, 1)), (hub.one, _request(hub, 2, to=hub.three)))
        await hub.until_taken_in(2)

        async def the_third_has_it() -> bool:
            return len(await _transfers_on(hub, other)) == 1

        async def the_reason_is_said() -> bool:
            waiting = [json.loads(line) for line in hub.run("outbox", "--json").splitlines()]
            return any(
                row["receiver"] == hub.two.profile.ods
                and "not authorised to write" in (row["last_error"] or "")
                for row in waiting
            )

        await hub.until(the_third_has_it, "the third trust has its patient")
        await hub.until(the_reason_is_said, "`hub outbox` names the topic that is closed")
        assert not await _transfers_on(hub, inbox)

        for gone in admin.delete_acls([AclBindingFilter(*deny)]).values():
            gone.result()
        await hub.until_delivered(within_s=60)
        assert set((await _transfers_on(hub, inbox)).values()) == {1}
