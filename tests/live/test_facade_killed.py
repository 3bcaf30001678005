"""The facade as a process on real PostgreSQL, beside a dispatcher on real Kafka, killed while hospitals send and fetch."""

import asyncio
import socket
from datetime import UTC, datetime

import httpx
import orjson
import pytest
import yaml
from joserfc.jwk import ECKey

from hub.demo.people import patient_number
from hub.demo.rest_client import RestClient
from tests.live.hub_process import live_hub
from tests.stories.test_subscriptions import listening, wish

pytestmark = [pytest.mark.live, pytest.mark.long, pytest.mark.timeout(180)]
EACH = 40


class Sender:
    """A hospital's system: it sends each message, under its one id, until it is told that it was delivered."""

    def __init__(self, url, ods, folder, run):
        self.url = url
        self.key = ECKey.generate_key("P-384", {"kid": "demo"})
        keys = folder / f"{ods}.jwks.json"
        keys.write_bytes(orjson.dumps({"keys": [self.key.as_dict(private=False)]}))
        self.client_id = run("clients", "add", "--trust", ods, "--name", "live", "--jwks", str(keys)).strip()
        self.http = httpx.AsyncClient(base_url=url, timeout=10)
        self.token = None

    async def call(self, method, path, *, headers=None, **more):
        """The first answer that is no fault of the way there."""
        while True:
            try:
                if self.token is None:
                    client = RestClient(self.url, self.client_id, self.key)
                    self.token = await asyncio.to_thread(client.token)
                said = {"Authorization": f"Bearer {self.token}", **(headers or {})}
                answer = await self.http.request(method, f"/fhir{path}", headers=said, **more)
                if answer.status_code not in {408, 425, 429, 500, 503}:
                    return answer
            except (httpx.TransportError, OSError):
                pass
            await asyncio.sleep(0.1)

    async def send(self, message):
        headers = {"Content-Type": "application/fhir+json", **message.headers}
        return await self.call("POST", "/$process-message", headers=headers, content=message.body)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def changed(folder, ods, **more):
    """A trust's profile with something else in it."""
    profile = folder / "schemas" / "trusts" / ods / "profile.yaml"
    said = yaml.safe_load(profile.read_text()) | more
    profile.write_text(f"# Illustration, not supplied or endorsed by any trust.\n{yaml.safe_dump(said)}")


async def test_nothing_answered_is_ever_missing_while_the_facade_is_killed(
    tmp_path, bootstrap_servers, database_url
):
    """A third hospital fetches; the second has a board that subscribed, and hears each change under its number."""
    async with listening() as board:
        with live_hub(tmp_path, bootstrap_servers, database_url) as hub:
            changed(tmp_path, hub.three.profile.ods, doors={"inward": "kafka", "outward": "polled"})
            changed(tmp_path, hub.two.profile.ods, callback_hosts=["127.0.0.1"])
            await told_while_killed(hub, tmp_path, board)


async def told_while_killed(hub, tmp_path, board):
    (tmp_path / "token.pem").write_bytes(ECKey.generate_key("P-384").as_pem(private=True))
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    where = {
        "HUB_FACADE_PORT": str(port),
        "HUB_FACADE_URL": url,
        "HUB_TOKEN_KEY_FILE": str(tmp_path / "token.pem"),
    }
    one, two, three = (
        Sender(url, each.profile.ods, tmp_path, hub.run) for each in (hub.one, hub.two, hub.three)
    )
    services = [hub.start("serve", **where)]
    hub.start("dispatcher")
    headers = {"Content-Type": "application/fhir+json"}
    wanted = orjson.dumps(wish(board.url, max_count=7))
    made = await two.call("POST", "/Subscription", headers=headers, content=wanted)
    assert made.status_code == 201, made.text
    answered, fetched, kills, over = {}, [], 0, asyncio.Event()

    async def sends(sender, epr, first):
        """To the trust with a topic and to the one that fetches, in turn."""
        for number in range(first, first + EACH):
            receiver = (hub.two if epr is hub.one else hub.one, hub.three)[number % 2]
            message = epr.asks_to_transfer(
                patient_number(number),
                to=receiver.profile.ods,
                request_number=f"TR-{number}",
                encounter_number=f"V-{number}",
                at=datetime.now(UTC),
            )
            answer = await sender.send(message)
            answered[message.headers["x-request-id"]] = (answer.status_code, answer.text)

    async def fetches():
        while True:
            bundles = [
                each["resource"] for each in (await three.call("GET", "/$inbox")).json().get("entry", [])
            ]
            if not bundles and over.is_set():
                return
            fetched.extend(bundles)
            if bundles:
                parameters = [{"name": "message", "valueId": each["id"]} for each in bundles]
                body = orjson.dumps({"resourceType": "Parameters", "parameter": parameters})
                await three.call(
                    "POST", "/$ack", headers={"Content-Type": "application/fhir+json"}, content=body
                )
            await asyncio.sleep(0.05)

    async def kills_it():
        """Whenever a dozen more were answered, so that each process gets something done."""
        nonlocal kills
        while not over.is_set():
            if len(answered) >= 12 * (kills + 1):
                services[-1].kill()
                kills += 1
                services.append(hub.start("serve", **where))
            await asyncio.sleep(0.01)

    fetching, killing = asyncio.create_task(fetches()), asyncio.create_task(kills_it())
    await asyncio.gather(sends(one, hub.one, 0), sends(two, hub.two, 1000))
    over.set()
    await killing
    await fetching
    await hub.until_delivered()
    changes = len(await hub.rows("select 1 from subscription_event"))
    async with asyncio.timeout(30):
        while not board.numbers() or max(board.numbers()) < changes:  # noqa: ASYNC110
            await asyncio.sleep(0.1)

    # The second sends forty and is asked for twenty. What was told twice has the same number, and says the same.
    assert changes == EACH + EACH // 2
    assert set(board.numbers()) == set(range(1, changes + 1))
    first_told = list(dict.fromkeys(board.numbers()))
    assert first_told == sorted(first_told)
    assert kills >= 5
    # 409 is BaRS's "already delivered": the answer to the first attempt died with the process.
    assert {status for status, _ in answered.values()} <= {200, 409}, answered
    assert all("already delivered" in text for status, text in answered.values() if status == 409)
    firsts = await hub.rows("select message_id from message where disposition = 'accepted'")
    assert sorted(row["message_id"] for row in firsts) == sorted(answered)
    assert len(await hub.rows("select 1 from transfer")) == len(answered) == 2 * EACH
    on_topics = [record for epr in (hub.one, hub.two) for record in await hub.on(epr.profile.inbox_topic)]
    events = [dict(record.headers)["event-id"] for record in on_topics]
    assert len(events) == len(set(events)) == EACH
    assert len({each["id"] for each in fetched}) == EACH
    heard = await hub.audit("code = 'msg-received'")
    assert len(heard) == len(await hub.rows("select 1 from message"))
