"""Two hospitals decide on one transfer in the same moment, over REST at two processes and over Kafka: one order comes of it, and everybody is answered by it."""

import asyncio
import uuid
from collections import Counter

import httpx
import orjson
import pytest
from joserfc.jwk import ECKey

from hub.demo.people import patient_number
from tests.live.hub_process import live_hub, now
from tests.live.test_facade_killed import Sender, free_port

pytestmark = [pytest.mark.live, pytest.mark.long, pytest.mark.timeout(240)]
TRANSFERS = 24
TOLD = {
    "request": ("two", "transfer-created", "transfer.requested"),
    "accept": ("one", "transfer-accepted", "transfer.accepted"),
    "reject": ("one", "transfer-rejected", "transfer.rejected"),
    "cancel": ("two", "transfer-cancelled", "transfer.cancelled"),
}
"""Each step: who hears of it, as what it stands in the audit, as what it is told."""
SAID = {
    "accepted": {},
    "rejected": {"statusReason": {"coding": [{"code": "OTH"}], "text": "No bed"}},
    "cancelled": {"statusReason": {"text": "No longer needed"}},
}


@pytest.fixture
def hub(tmp_path, bootstrap_servers, database_url):
    with live_hub(tmp_path, bootstrap_servers, database_url) as found:
        yield found


def serving(hub, folder):
    """Two facades with one address and one key, as behind a load balancer; where each is."""
    (folder / "token.pem").write_bytes(ECKey.generate_key("P-384").as_pem(private=True))
    urls = [f"http://127.0.0.1:{free_port()}" for _ in range(2)]
    for url in urls:
        port, key = url.rpartition(":")[2], str(folder / "token.pem")
        hub.start("serve", HUB_FACADE_PORT=port, HUB_FACADE_URL=urls[0], HUB_TOKEN_KEY_FILE=key)
    return urls


def sender(hub, epr, urls, url):
    """A system that signs in at the facade's address and then is served at ``url``."""
    found = Sender(urls[0], epr.profile.ods, hub.folder, hub.run)
    found.http = httpx.AsyncClient(base_url=url, timeout=10)
    return found


async def test_two_hospitals_decide_in_the_same_moment(hub, tmp_path):
    """Yes, no and a withdrawal of each transfer at once; every second with the version that they saw, some by Kafka too."""
    urls = serving(hub, tmp_path)
    one, two = ([sender(hub, epr, urls, url) for url in urls] for epr in (hub.one, hub.two))
    for service in ("worker", "worker", "dispatcher"):
        hub.start(service)
    answered, by_kafka = [], []

    async def asks(number):
        message = hub.one.asks_to_transfer(
            patient_number(number),
            to=hub.two.profile.ods,
            request_number=f"TR-{number}",
            encounter_number=f"V-{number}",
            at=now(),
        )
        assert (await one[0].send(message)).status_code == 200

    async def reads(number):
        found = await two[0].call(
            "GET", f"/Task?identifier={hub.one.profile.identifier_systems.request}|TR-{number}"
        )
        [entry] = found.json()["entry"]
        return entry["resource"]

    async def decides(sender, task, status, *, matches):
        body, name = orjson.dumps({**task, "status": status, **SAID[status]}), str(uuid.uuid4())
        headers = {"Content-Type": "application/fhir+json", "X-Request-Id": name}
        headers |= {"If-Match": f'W/"{task["meta"]["versionId"]}"'} if matches else {}
        said = await sender.call("PUT", f"/Task/{task['id']}", headers=headers, content=body)
        answered.append((task["id"], name, said.status_code, matches))

    for number in range(TRANSFERS):
        await asks(number)
    tasks = [await reads(number) for number in range(TRANSFERS)]
    at_once = []
    for number, task in enumerate(tasks):
        matches, first, second = bool(number % 2), number % 2, (number + 1) % 2
        at_once += [
            decides(two[first], task, "accepted", matches=matches),
            decides(two[second], task, "rejected", matches=matches),
            decides(one[number // 2 % 2], task, "cancelled", matches=matches),
        ]
        if number % 3 == 0:
            withdrawn = hub.one.cancels_request(
                patient_number(number), to=hub.two.profile.ods, request_number=f"TR-{number}", at=now()
            )
            by_kafka.append((hub.one, withdrawn))
    await asyncio.gather(*at_once, hub.produce(*by_kafka))
    await hub.until_taken_in(TRANSFERS + len(answered) + len(by_kafka))
    await hub.until_delivered()

    assert {status for _, _, status, _ in answered} <= {200, 412, 422}, answered
    audited = Counter((entry["transfer_id"], entry["code"]) for entry in await hub.audit())
    told = Counter()
    for who, epr in (("one", hub.one), ("two", hub.two)):
        for record in await hub.on(epr.profile.inbox_topic):
            headers = {name: value.decode() for name, value in record.headers}
            told[who, headers["transfer-id"], headers["event-type"]] += 1
    for task in tasks:
        transfer = task["id"]
        facts = await hub.rows(
            "select version, step, event_id from transfer_history where transfer_id = $1 order by version",
            transfer,
        )
        assert [fact["version"] for fact in facts] == list(range(1, len(facts) + 1))
        for step, times in Counter(fact["step"] for fact in facts).items():
            who, code, event_type = TOLD[step]
            assert (audited[transfer, code], told[who, transfer, event_type]) == (times, times), (step, facts)
        mine = [each for each in answered if each[0] == transfer]
        for _, name, status, _ in mine:
            taken = await hub.rows(
                "select event_id from message where message_id = $1 and disposition = 'accepted'", name
            )
            known = [
                row["event_id"] for row in taken if row["event_id"] in {fact["event_id"] for fact in facts}
            ]
            assert (status == 200, len(taken)) == (bool(known), len(known)), (name, status, facts)
        # Of those who decided on one version one at most was first.
        assert sum(1 for _, _, status, matches in mine if matches and status == 200) <= 1
