"""Exeter's bed board subscribes: it is told each change of its transfers, sees when it missed one, and fetches that."""

import asyncio
import contextlib
import socket
import ssl
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import orjson
import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

from hub.demo.people import FENNIMOSS, MARSHWIGGLE, PEOPLE
from hub.destinations.push import PushAccess
from hub.domain.trust import Directory, Issuer
from hub.facade.issuers import Issuers
from hub.facade.notifier import Notifier
from hub.facade.subscribing import TOPIC, wanted_of
from hub.governance import reports
from hub.store import clients, subscriptions
from hub.store import tables as t
from hub.store.queries import NotFoundError
from tests.stories.rest import System, facade_of, issue
from tests.stories.test_facade import asked
from tests.stories.test_people import ISSUER, ROLES, Somebody, serving

BACKPORT = "http://hl7.org/fhir/uv/subscriptions-backport/StructureDefinition"


@dataclass
class Board:
    """A subscriber's server. ``answers`` is what it says next, then 200; ``heard`` are the Bundles that it took, ``asked`` all of them."""

    port: int
    answers: list = field(default_factory=list)
    heard: list = field(default_factory=list)
    asked: list = field(default_factory=list)
    headers: list = field(default_factory=list)
    waits: asyncio.Event | None = None
    drips: bool = False

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/told"

    async def take(self, request: Request):
        bundle = orjson.loads(await request.body())
        self.asked.append(bundle)
        self.headers.append(dict(request.headers))
        if self.waits is not None:
            await self.waits.wait()
        status = self.answers.pop(0) if self.answers else 200
        if status == 307:
            return Response(status_code=307, headers={"Location": "http://127.0.0.1:1/elsewhere"})
        if self.drips:
            return StreamingResponse(self._drops())
        if status == 200:
            self.heard.append(bundle)
        return Response(status_code=status)

    async def _drops(self):
        while True:
            yield b" "
            await asyncio.sleep(0.2)

    def kinds(self):
        return [value(each, "type") for each in self.heard]

    def numbers(self):
        return [number for each in self.heard for number in numbers(each)]


def parameters(bundle):
    status = bundle["entry"][0]["resource"]
    assert status["resourceType"] == "Parameters"
    return status["parameter"]


def value(bundle, name):
    [found] = [each for each in parameters(bundle) if each["name"] == name]
    return next(said for key, said in found.items() if key.startswith("value"))


def numbers(bundle):
    return [
        int(part["valueString"])
        for each in parameters(bundle)
        if each["name"] == "notification-event"
        for part in each["part"]
        if part["name"] == "event-number"
    ]


@pytest.fixture
async def board():
    async with listening() as found:
        yield found


@contextlib.asynccontextmanager
async def listening(**tls):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        found = Board(free.getsockname()[1])
    app = FastAPI()
    app.add_api_route("/told", found.take, methods=["POST"])
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=found.port, log_level="error", lifespan="off", **tls)
    )
    serving = asyncio.create_task(server._serve())
    while not server.started:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    yield found
    server.should_exit = True
    await serving


@pytest.fixture
def facade(hub):
    """Every trust has registered this machine for what its subscriptions are told."""
    trusts = [each.model_copy(update={"callback_hosts": ("127.0.0.1",)}) for each in hub.journey.directory]
    return facade_of(hub, directory=Directory(trusts))


@pytest.fixture
async def notifier(facade):
    found = Notifier(facade, PushAccess(), first_s=1, max_s=8)
    yield found
    await found.close()


def wish(url, *, content="id-only", heartbeat=None, timeout=None, max_count=None, filters=(), **more):
    extension = [
        {"url": f"{BACKPORT}/backport-{name}", key: said}
        for name, key, said in (
            ("heartbeat-period", "valueUnsignedInt", heartbeat),
            ("timeout", "valueUnsignedInt", timeout),
            ("max-count", "valuePositiveInt", max_count),
        )
        if said
    ]
    channel = {
        "type": "rest-hook",
        "endpoint": url,
        "payload": "application/fhir+json",
        "_payload": {"extension": [{"url": f"{BACKPORT}/backport-payload-content", "valueCode": content}]},
        **({"extension": extension} if extension else {}),
    }
    narrowed = [{"url": f"{BACKPORT}/backport-filter-criteria", "valueString": each} for each in filters]
    found = {
        "resourceType": "Subscription",
        "status": "requested",
        "reason": "The bed board",
        "criteria": TOPIC,
        **({"_criteria": {"extension": narrowed}} if narrowed else {}),
        "channel": channel,
    }
    return found | more


async def subscribes(system, resource, method="POST", path="/Subscription"):
    said = {"Content-Type": "application/fhir+json"}
    return await system.call(method, path, headers=said, content=orjson.dumps(resource))


async def decides(hub, system, transfer_id, status):
    hub.clock.later(minutes=1)
    task = (await system.get(f"/Task/{transfer_id}")).json()
    said = await system.put(task | {"status": status, "lastModified": hub.clock().isoformat()})
    hub.expected += 1
    assert said.status_code == 200, said.text


@pytest.mark.parametrize("content", ["empty", "id-only", "full-resource"])
async def test_from_the_handshake_to_an_admission(
    hub, torbay, at_torbay, at_exeter, board, notifier, content
):
    made = await subscribes(at_exeter, wish(board.url, content=content, heartbeat=60))
    assert (made.status_code, made.json()["status"]) == (201, "requested")
    address = made.headers["location"].rpartition("/fhir")[2]
    await notifier.once()
    assert board.kinds() == ["handshake"]
    assert (await at_exeter.get(address)).json()["status"] == "active"

    transfer_id = await asked(hub, torbay, at_torbay)
    await decides(hub, at_exeter, transfer_id, "received")
    await notifier.once()
    await decides(hub, at_exeter, transfer_id, "accepted")
    await notifier.once()
    assert board.kinds() == ["handshake", "event-notification", "event-notification"]
    assert board.numbers() == [1, 2, 3]
    tasks = [
        entry.get("resource", {}).get("status") for bundle in board.heard[1:] for entry in bundle["entry"][1:]
    ]
    assert (
        tasks
        == {
            "empty": [],
            "id-only": [None] * 3,
            "full-resource": ["requested", "received", "accepted"],
        }[content]
    )
    assert [value(each, "status") for each in board.heard] == ["requested", "active", "active"]
    assert (transfer_id in str(board.heard)) is (content != "empty")
    assert MARSHWIGGLE.family not in str(board.heard)

    hub.clock.later(seconds=61)
    await notifier.once()
    await notifier.once()
    assert board.kinds()[3:] == ["heartbeat"]
    assert value(board.heard[-1], "events-since-subscription-start") == "3"
    code = "disclosure-sent" if content == "full-resource" else "delivery-ack"
    told = [e for e in await hub.audit(code=code) if e["system"] == "notifier"]
    assert [e["detail"]["number"] for e in told] == [1, 2, 3]
    # What Exeter reads of the patient is Torbay's to answer for.
    assert {e["trust"] for e in told} == ({"RA9"} if content == "full-resource" else {None})
    left_torbay = reports.left(await hub.audit(code=code), {}, "RA9")
    assert [each["through"] for each in left_torbay if each["through"] == "notifier"] == (
        ["notifier"] * 3 if content == "full-resource" else []
    )


async def test_what_was_missed_shows_and_can_be_fetched(hub, torbay, at_torbay, at_exeter, board, notifier):
    """The board is down for three changes; it is in error, an incident is open; then it hears all of them, in order, once."""
    made = (await subscribes(at_exeter, wish(board.url, content="full-resource"))).json()
    await notifier.once()
    board.answers = [503, 500, 307, 404]
    transfer_id = await asked(hub, torbay, at_torbay)
    for _ in range(4):
        await notifier.once()
        hub.clock.later(seconds=10)
    stands = (await at_exeter.get(f"/Subscription/{made['id']}")).json()
    assert (stands["status"], stands["error"]) == ("error", "the endpoint answered HTTP 404")
    assert [row["closed_at"] for row in await hub.rows(t.incident)] == [None]
    await decides(hub, at_exeter, transfer_id, "received")

    missed = (await at_exeter.get(f"/Subscription/{made['id']}/$events?eventsSinceNumber=2")).json()
    assert (value(missed, "type"), numbers(missed)) == ("query-event", [2])
    assert missed["entry"][1]["resource"]["status"] == "received"
    [created] = await hub.audit(code="transfer-created")
    [looked] = await hub.audit(code="record-search")
    assert (looked["transfer_id"], looked["person_id"]) == (transfer_id, created["person_id"])
    status = (await at_exeter.get(f"/Subscription/{made['id']}/$status")).json()
    assert (status["type"], value(status, "events-since-subscription-start")) == ("searchset", "2")

    hub.clock.later(seconds=10)
    await notifier.once()
    assert board.numbers() == [1, 2]
    sent = [row for row in await hub.audit(code="disclosure-sent") if row["system"] == "notifier"]
    assert [(row["trust"], row["counterpart"], row["person_id"]) for row in sent] == [
        ("RA9", "RH8", created["person_id"])
    ] * 2
    assert (await at_exeter.get(f"/Subscription/{made['id']}")).json()["status"] == "active"
    assert all(row["closed_at"] for row in await hub.rows(t.incident))


async def test_a_slow_board_holds_nobody_else_up(hub, torbay, at_torbay, at_exeter, board, notifier):
    board.waits = asyncio.Event()
    async with listening() as quick:
        await subscribes(at_exeter, wish(board.url))
        await subscribes(at_torbay, wish(quick.url))
        await asked(hub, torbay, at_torbay)
        await notifier._begin()
        for _ in range(300):
            if quick.numbers():
                break
            await asyncio.sleep(0.01)
        assert (quick.numbers(), board.heard) == ([1], [])
        board.waits.set()
        await notifier.once()
        assert board.numbers() == [1]


async def test_a_board_whose_answer_never_ends_has_failed(hub, torbay, at_torbay, at_exeter, board, notifier):
    """Each drop of it comes in time, and the whole never: people must see that, and the next answer may be a good one."""
    made = (await subscribes(at_exeter, wish(board.url, timeout=1))).json()
    board.drips = True
    for _ in range(3):
        async with asyncio.timeout(10):
            await notifier.once()
        hub.clock.later(seconds=10)
    stands = (await at_exeter.get(f"/Subscription/{made['id']}")).json()
    assert (stands["status"], stands["error"]) == ("error", "TimeoutError")
    assert [row["closed_at"] for row in await hub.rows(t.incident)] == [None]
    board.drips = False
    await notifier.once()
    assert board.kinds() == ["handshake"]


def certified(name):
    """A certificate that signs itself, with its key, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    who = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    begins = datetime.now(UTC) - timedelta(days=1)
    made = (
        x509.CertificateBuilder(who, who, key.public_key(), x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    plain = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return made.public_bytes(Encoding.PEM) + key.private_bytes(*plain)


async def test_a_certificate_that_is_renewed_on_the_disk_is_shown_at_once(
    hub, torbay, at_torbay, at_exeter, facade, tmp_path
):
    """The board takes the new one only; while the old one's place holds half a file, nothing is worse than before."""
    mine, its = tmp_path / "mine.pem", tmp_path / "its.pem"
    old, new = certified("hub"), certified("hub, renewed")
    its.write_bytes(certified("board"))
    (tmp_path / "taken.pem").write_bytes(new)
    mine.write_bytes(old)
    tls = {
        "ssl_certfile": its,
        "ssl_ca_certs": str(tmp_path / "taken.pem"),
        "ssl_cert_reqs": ssl.CERT_REQUIRED,
    }
    notifier = Notifier(facade, PushAccess(ca_file=its, certificate_file=mine), first_s=1, max_s=8)
    async with listening(**tls) as board:
        assert (await subscribes(at_exeter, wish(board.url.replace("http:", "https:")))).status_code == 201
        await notifier.once()
        mine.write_bytes(new[: len(new) // 2])
        hub.clock.later(minutes=1)
        await notifier.once()
        assert board.kinds() == []
        mine.write_bytes(new)
        hub.clock.later(minutes=1)
        await notifier.once()
        assert board.kinds() == ["handshake"]
        await notifier.close()


async def while_it_is_being_told(notifier, board, doing):
    """Let somebody do something while the board has an event and has not answered yet."""
    board.waits = asyncio.Event()
    asked_before = len(board.asked)
    telling = asyncio.create_task(notifier.once())
    while len(board.asked) == asked_before:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await doing()
    board.waits.set()
    board.waits = None
    await telling


async def test_a_board_that_is_moved_while_it_is_being_told_hears_the_rest_at_its_new_address(
    hub, torbay, at_torbay, at_exeter, board, notifier
):
    """The old address may be somebody else's by now: nothing more goes there, and the new one is met before it is told."""
    made = (await subscribes(at_exeter, wish(board.url, content="full-resource", max_count=1))).json()
    await notifier.once()
    for number, patient in enumerate(PEOPLE[:3]):
        await asked(hub, torbay, at_torbay, patient=patient, number=f"TR-{number}", stay=f"V-{number}")
    path = f"/Subscription/{made['id']}"
    async with listening() as moved:

        async def move():
            resource = wish(moved.url, content="full-resource", max_count=1) | {"id": made["id"]}
            assert (await subscribes(at_exeter, resource, "PUT", path)).status_code == 200

        await while_it_is_being_told(notifier, board, move)
        assert (board.numbers(), (await at_exeter.get(path)).json()["status"]) == ([1], "requested")
        await notifier.once()
        assert board.numbers() == [1]
        # What was told elsewhere and not written down in time is told again under its number.
        assert (moved.kinds()[0], moved.numbers()) == ("handshake", [1, 2, 3])
    told = [e for e in await hub.audit(code="disclosure-sent") if e["system"] == "notifier"]
    assert [e["detail"]["number"] for e in told] == [1, 1, 2, 3]


async def test_what_went_wrong_at_the_old_address_is_not_the_new_ones_fault(
    hub, torbay, at_torbay, at_exeter, board, notifier
):
    made = (await subscribes(at_exeter, wish(board.url))).json()
    await notifier.once()
    await asked(hub, torbay, at_torbay)
    path = f"/Subscription/{made['id']}"
    async with listening() as moved:

        async def move():
            resource = wish(moved.url) | {"id": made["id"]}
            assert (await subscribes(at_exeter, resource, "PUT", path)).status_code == 200

        board.answers = [503]
        await while_it_is_being_told(notifier, board, move)
        assert "error" not in (await at_exeter.get(path)).json()
        await notifier.once()
        assert (moved.kinds()[0], moved.numbers()) == ("handshake", [1])


async def test_an_incident_ends_when_the_board_that_began_again_takes_something(
    hub, torbay, at_torbay, at_exeter, board, notifier
):
    made = (await subscribes(at_exeter, wish(board.url))).json()
    await notifier.once()
    board.answers = [503] * 3
    await asked(hub, torbay, at_torbay)
    for _ in range(3):
        await notifier.once()
        hub.clock.later(seconds=10)
    assert [row["closed_at"] for row in await hub.rows(t.incident)] == [None]
    path = f"/Subscription/{made['id']}"
    await subscribes(at_exeter, wish(board.url) | {"id": made["id"]}, "PUT", path)
    await notifier.once()
    assert board.numbers() == [1]
    assert all(row["closed_at"] for row in await hub.rows(t.incident))


async def test_a_board_that_fails_again_after_it_was_off_is_an_incident_again(
    hub, torbay, at_torbay, at_exeter, board, notifier
):
    made = (await subscribes(at_exeter, wish(board.url))).json()
    await notifier.once()
    await asked(hub, torbay, at_torbay)
    path = f"/Subscription/{made['id']}"

    async def fails_three_times():
        board.answers = [503] * 3
        for _ in range(3):
            await notifier.once()
            hub.clock.later(seconds=10)

    await fails_three_times()
    assert (await at_exeter.call("DELETE", path)).status_code == 200
    assert all(row["closed_at"] for row in await hub.rows(t.incident))
    await subscribes(at_exeter, wish(board.url) | {"id": made["id"]}, "PUT", path)
    await fails_three_times()
    assert (await at_exeter.get(path)).json()["status"] == "error"
    assert [row["closed_at"] for row in await hub.rows(t.incident)][1:] == [None]


async def test_only_failures_in_a_row_count(hub, torbay, at_torbay, at_exeter, board, notifier):
    """A board that takes one of two each time is slow, and not in error."""
    made = (await subscribes(at_exeter, wish(board.url, max_count=1))).json()
    await notifier.once()
    for number, patient in enumerate(PEOPLE[:6]):
        await asked(hub, torbay, at_torbay, patient=patient, number=f"TR-{number}", stay=f"V-{number}")
    for _ in range(5):
        board.answers = [200, 503]
        await notifier.once()
        hub.clock.later(seconds=10)
        assert (await at_exeter.get(f"/Subscription/{made['id']}")).json()["status"] == "active"
    board.answers = []
    await notifier.once()
    assert board.numbers() == [1, 2, 3, 4, 5, 6]
    assert await hub.rows(t.incident) == []


async def test_a_hundred_boards_that_do_not_answer_hold_nobody_else_up(
    hub, torbay, at_torbay, at_exeter, facade, board, notifier
):
    board.waits = asyncio.Event()
    profile = facade.directory["RH8"]
    for number in range(100):
        slow = wish(f"{board.url}?{number}", timeout=30)
        await subscriptions.add(
            hub.engine,
            subscriptions.Subscription(
                f"slow-{number}",
                "RH8",
                at_exeter.client.id,
                slow,
                wanted_of(slow, profile),
                "requested",
                hub.clock(),
            ),
        )
    try:
        await notifier._begin()
        while len(board.asked) < 100:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        async with listening() as quick:
            await subscribes(at_torbay, wish(quick.url, timeout=1))
            await notifier._begin()
            async with asyncio.timeout(5):
                while not quick.heard:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
    finally:
        board.waits.set()
    await notifier.once()


async def test_filters_and_trusts(hub, torbay, at_torbay, at_exeter, facade, board, notifier):
    """Only what was asked for is told; Plymouth, which has no part in it, hears nothing at all."""
    at_plymouth = await (await System.join(facade, "RK9")).signed_in()
    async with listening() as other, listening() as accepted:
        for system, resource in (
            (at_exeter, wish(board.url)),
            (at_plymouth, wish(other.url)),
            (at_exeter, wish(accepted.url, filters=["Task?status=accepted&requester:identifier=RA9"])),
        ):
            assert (await subscribes(system, resource)).status_code == 201
        first = await asked(hub, torbay, at_torbay)
        await asked(hub, torbay, at_torbay, patient=FENNIMOSS, number="TR-2", stay="V-2")
        await decides(hub, at_exeter, first, "accepted")
        await notifier.once()
        assert (board.numbers(), other.kinds(), accepted.numbers()) == ([1, 2, 3], ["handshake"], [1])
        theirs = (await at_exeter.get("/Subscription")).json()["entry"]
        for each in theirs:
            path = f"/Subscription/{each['resource']['id']}"
            for tried in (path, f"{path}/$status", f"{path}/$events"):
                assert (await at_plymouth.get(tried)).status_code == 404
            assert (await at_plymouth.call("DELETE", path)).status_code == 404


async def test_a_draft_is_not_told_to_whom_it_is_not_sent_yet(
    hub, torbay, at_torbay, at_exeter, board, notifier
):
    from tests.stories.test_access import status_is

    async with listening() as own:
        await subscribes(at_exeter, wish(board.url))
        await subscribes(at_torbay, wish(own.url))
        await asked(hub, torbay, at_torbay, change=status_is("draft"))
        await notifier.once()
        assert (board.kinds(), own.numbers()) == (["handshake"], [1])
        hub.clock.later(minutes=1)
        await torbay.cancels_request(MARSHWIGGLE, to="RH8", request_number="TR-1")
        await notifier.once()
        assert (board.kinds(), own.numbers()) == (["handshake"], [1, 2])


async def test_what_was_told_and_not_written_down_is_told_again_under_its_number(
    hub, torbay, at_torbay, at_exeter, facade, board, notifier, monkeypatch
):
    """The process dies between telling and writing down; another takes over. Twelve transfers, pages of five, no gap."""
    await subscribes(at_exeter, wish(board.url, max_count=5))
    await notifier.once()
    for number, patient in enumerate((PEOPLE * 12)[:12]):
        await asked(hub, torbay, at_torbay, patient=patient, number=f"TR-{number}", stay=f"V-{number}")

    async def dies(*_, **__):
        raise asyncio.CancelledError

    with monkeypatch.context() as dying:
        dying.setattr("hub.store.subscriptions.took", dies)
        with contextlib.suppress(asyncio.CancelledError):
            await notifier.once()
    await notifier.close()
    after = Notifier(facade, PushAccess())
    await after.once()
    await after.close()
    assert board.numbers() == [1, 2, 3, 4, 5, *range(1, 13)]
    assert [len(numbers(each)) for each in board.heard] == [0, 5, 5, 5, 2]


async def test_headers_are_sent_and_not_shown(hub, torbay, at_torbay, at_exeter, board, notifier):
    resource = wish(board.url)
    resource["channel"]["header"] = ["Authorization: Bearer board-secret"]
    made = await subscribes(at_exeter, resource)
    await notifier.once()
    assert board.headers[0]["authorization"] == "Bearer board-secret"
    shown = (await at_exeter.get("/Subscription")).text + made.text
    assert "board-secret" not in shown
    assert "Authorization: (kept)" in shown


async def test_off_and_on_again(hub, torbay, at_torbay, at_exeter, facade, board, notifier):
    made = (await subscribes(at_exeter, wish(board.url))).json()
    path = f"/Subscription/{made['id']}"
    await notifier.once()
    assert (await at_exeter.call("DELETE", path)).status_code == 200
    await asked(hub, torbay, at_torbay)
    await notifier.once()
    assert (await at_exeter.get(path)).json()["status"] == "off"
    again = await subscribes(at_exeter, wish(board.url) | {"id": made["id"]}, "PUT", path)
    assert (again.status_code, again.json()["status"]) == (200, "requested")
    await asked(hub, torbay, at_torbay, patient=FENNIMOSS, number="TR-2", stay="V-2")
    await notifier.once()
    assert (board.kinds(), board.numbers()) == (["handshake", "handshake", "event-notification"], [1])
    await subscribes(at_exeter, wish(board.url) | {"end": "2020-01-01T00:00:00Z"}, "PUT", path)
    await notifier.once()
    assert (await at_exeter.get(path)).json()["status"] == "off"


async def test_a_subscription_that_is_posted_again_under_its_id_is_one(
    hub, torbay, at_torbay, at_exeter, board, notifier
):
    """The first answer did not come in time: the board is told once, under the id that it hears at last."""

    async def posts(resource, request_id):
        said = {"Content-Type": "application/fhir+json", "X-Request-Id": request_id}
        return await at_exeter.call("POST", "/Subscription", headers=said, content=orjson.dumps(resource))

    name = str(uuid.uuid4())
    made = await asyncio.gather(*(posts(wish(board.url), each) for each in (name, name.upper(), name)))
    made.append(await posts(wish(board.url), name))
    assert [each.status_code for each in made] == [201] * 4
    assert len({(each.headers["location"], each.text) for each in made}) == 1
    await notifier.once()
    await asked(hub, torbay, at_torbay)
    await notifier.once()
    assert (board.kinds(), board.numbers()) == (["handshake", "event-notification"], [1])
    again = await posts(wish(board.url), name)
    assert (again.status_code, again.json()["status"]) == (201, "active")

    # Something else under the same id is not what was asked for before.
    other = await posts(wish(board.url, content="full-resource"), name)
    assert (other.status_code, issue(other)) == (409, ("REC_CONFLICT", "conflict"))
    # Another id, or one that is none, is another wish.
    assert len({(await posts(wish(board.url), each)).text for each in (str(uuid.uuid4()), "1", "1")}) == 3
    added = [
        e for e in await hub.audit(code="config-changed") if e["detail"]["change"] == "subscription-added"
    ]
    assert len(await hub.rows(t.subscription)) == len(added) == 4


async def test_a_subscription_that_is_prolonged_in_the_moment_it_ends_goes_on(
    hub, torbay, at_torbay, at_exeter, board, notifier, monkeypatch
):
    """The answer was 200 and `requested`: then it is on, and its hospital is told."""
    until = hub.clock() + timedelta(days=1)
    made = (await subscribes(at_exeter, wish(board.url) | {"end": until.isoformat()})).json()
    path, look = f"/Subscription/{made['id']}", subscriptions.to_tell
    await notifier.once()
    hub.clock.later(days=2)
    await at_exeter.signed_in()
    longer = wish(board.url) | {"id": made["id"], "end": (until + timedelta(days=30)).isoformat()}

    async def looks_and_it_is_put(*asked):
        found = await look(*asked)
        assert (await subscribes(at_exeter, longer, "PUT", path)).status_code == 200
        return found

    monkeypatch.setattr(subscriptions, "to_tell", looks_and_it_is_put)
    await notifier.once()
    monkeypatch.undo()
    shown = (await at_exeter.get(path)).json()
    assert (shown["status"], shown["end"]) == ("requested", longer["end"])
    await notifier.once()
    assert board.kinds() == ["handshake", "handshake"]

    hub.clock.later(days=31)
    for _ in range(2):
        await notifier.once()
    await at_exeter.signed_in()
    assert (await at_exeter.get(path)).json()["status"] == "off"
    ends = [each for each in await hub.audit(code="config-changed") if each["detail"].get("why") == "ended"]
    assert [each["system"] for each in ends] == ["notifier"]


async def test_a_host_that_is_no_longer_registered_is_not_told(
    hub, torbay, at_torbay, at_exeter, facade, board
):
    await subscribes(at_exeter, wish(board.url))
    facade.directory = hub.journey.directory
    notifier = Notifier(facade, PushAccess())
    await notifier.once()
    await notifier.close()
    [shown] = (await at_exeter.get("/Subscription")).json()["entry"]
    assert (board.asked, "not registered" in shown["resource"]["error"]) == ([], True)


def channel(**more):
    return lambda found: found["channel"].update(more)


@pytest.mark.parametrize(
    ("change", "at"),
    [
        (channel(endpoint="https://elsewhere.example/told"), "Subscription.channel.endpoint"),
        (channel(endpoint="http://127.0.0.1@evil.example/"), "Subscription.channel.endpoint"),
        (channel(endpoint="https://127.0.0.1:x/"), "Subscription.channel.endpoint"),
        (channel(endpoint=7), "Subscription.channel.endpoint"),
        (channel(type="email"), "Subscription.channel.type"),
        (channel(payload="text/plain"), "Subscription.channel.payload"),
        (channel(header=["Host: evil.example"]), "Subscription.channel.header"),
        (channel(header=["X-A: b\r\nX-C: d"]), "Subscription.channel.header"),
        (channel(header="X-A: b"), "Subscription.channel.header"),
        (lambda found: found.update(criteria="Task?status=accepted"), "Subscription.criteria"),
        (lambda found: found.update(status="active"), "Subscription.status"),
        (lambda found: found.update(end="tomorrow"), "Subscription.end"),
        (lambda found: found.update(end="9999-12-31T23:59:59-14:00"), "Subscription.end"),
        (lambda found: found.update(end="0001-01-01T00:00:00+14:00"), "Subscription.end"),
        (lambda found: found.update(status=[]), "Subscription.status"),
        (lambda found: found.update(status={"a": 1}), "Subscription.status"),
        (lambda found: found.update(_criteria={"extension": None}), "Subscription._criteria.extension"),
        (lambda found: found.update(_criteria={"extension": 5}), "Subscription._criteria.extension"),
        (lambda found: found.update(_reason=[1]), "Subscription._reason"),
        (lambda found: found.update(reason={"a": 1}), "Subscription.reason"),
        (lambda found: found.update(contact=[None]), "Subscription.contact[0]"),
        (lambda found: found.update(resourceType="Task"), "resourceType"),
    ],
)
async def test_a_wish_that_cannot_be_met_says_why(hub, at_exeter, board, change, at):
    resource = wish(board.url)
    change(resource)
    said = await subscribes(at_exeter, resource)
    assert said.status_code in {400, 422}
    assert said.json()["issue"][0]["expression"] == [at]
    assert await hub.rows(t.subscription) == []


async def test_filters_that_are_not_known_are_refused(hub, at_exeter, board):
    for text in (
        "Task?colour=red",
        "Patient?name=x",
        "Task",
        "Task?status=blue",
        "Task?patient:identifier=1",
    ):
        said = await subscribes(at_exeter, wish(board.url, filters=[text]))
        assert said.status_code in {400, 422}, text
    unknown = await at_exeter.get(f"/Subscription/{uuid.uuid4()}/$events")
    assert (unknown.status_code, issue(unknown)[0]) == (404, "REC_NOT_FOUND")


async def test_what_a_revoked_client_asked_for_is_told_no_more(
    hub, torbay, at_torbay, at_exeter, facade, board, notifier
):
    """Its subscription goes off with it and says why; another of the trust's clients can take it over, as itself."""
    made = (await subscribes(at_exeter, wish(board.url, content="full-resource"))).json()
    await notifier.once()
    await clients.revoke(hub.engine, at_exeter.client.id, hub.clock(), "hub-team")
    await asked(hub, torbay, at_torbay)
    await notifier.once()
    assert board.kinds() == ["handshake"]
    [entry] = [
        e for e in await hub.audit(code="config-changed") if e["detail"].get("why") == "client-revoked"
    ]
    assert (entry["detail"]["subscription"], entry["trust"]) == (made["id"], "RH8")
    other = await (await System.join(facade, "RH8")).signed_in()
    path = f"/Subscription/{made['id']}"
    shown = (await other.get(path)).json()
    assert (shown["status"], "was revoked" in shown["error"]) == ("off", True)
    again = await subscribes(other, wish(board.url) | {"id": made["id"]}, "PUT", path)
    assert again.status_code == 200
    await notifier.once()
    assert board.kinds() == ["handshake", "handshake"]


@pytest.fixture
async def at_its_own(hub, facade):
    """A system of Exeter's that signs in at Exeter's own issuer."""
    with serving() as sign_in:
        exeter = facade.directory["RH8"]
        own = Issuer(url=ISSUER, jwks_url=sign_in.address)
        others = [each for each in facade.directory if each.ods != "RH8"]
        facade.directory = Directory([*others, exeter.model_copy(update={"issuers": (own,)})])
        facade.issuers = Issuers(facade.directory, facade.base)
        yield Somebody(facade, sign_in.token(hub.clock, client_id="board", scope="system/*.cruds"))


async def test_what_a_client_of_an_issuer_that_is_gone_asked_for_is_told_no_more(
    hub, torbay, at_torbay, at_its_own, facade, board, notifier
):
    """Exeter takes its sign-in out of its profile; the subscription says why, and goes on when the sign-in is back."""
    made = (await subscribes(at_its_own, wish(board.url, content="full-resource"))).json()
    await notifier.once()
    profile, with_issuer = facade.directory["RH8"], facade.directory
    for issuers in (
        (),
        (Issuer(url=ISSUER, jwks_url=profile.issuers[0].jwks_url, people=True, roles=ROLES),),
    ):
        without = profile.model_copy(update={"issuers": issuers})
        facade.directory = Directory([*(e for e in with_issuer if e.ods != "RH8"), without])
        await asked(
            hub,
            torbay,
            at_torbay,
            **({"patient": FENNIMOSS, "number": "TR-2", "stay": "V-2"} if issuers else {}),
        )
        hub.clock.later(minutes=2)
        await notifier.once()
        [row] = await hub.rows(t.subscription)
        assert (board.kinds(), "issuer" in row["error"]) == (["handshake"], True)
    facade.directory = with_issuer
    hub.clock.later(minutes=2)
    await notifier.once()
    assert board.numbers() == [1, 2]
    assert made["id"] == row["subscription_id"]


async def test_a_client_that_is_shut_out_at_its_own_issuer_is_shut_out_here(
    hub, torbay, at_torbay, at_its_own, board, notifier
):
    """The hub does not hear of it: the duty team says so, by the id that the audit has."""
    await subscribes(at_its_own, wish(board.url, content="full-resource"))
    await notifier.once()
    with pytest.raises(NotFoundError):
        await clients.revoke(hub.engine, "RH8|another", hub.clock(), "hub-team")
    await clients.revoke(hub.engine, "RH8|board", hub.clock(), "hub-team")
    await asked(hub, torbay, at_torbay)
    await notifier.once()
    [row] = await hub.rows(t.subscription)
    assert (board.kinds(), row["status"], "was revoked" in row["error"]) == (["handshake"], "off", True)
    said = [(e["trust"], e["detail"]["change"]) for e in await hub.audit(code="config-changed")]
    assert said[-2:] == [("RH8", "subscription-off"), ("RH8", "client-revoked")]
    with pytest.raises(NotFoundError):
        await clients.revoke(hub.engine, "RH8|board", hub.clock(), "hub-team")


async def test_a_client_revoked_while_it_is_being_told_hears_no_more(
    hub, torbay, at_torbay, at_exeter, facade, board, notifier
):
    """Not even by a subscription that it made in the last second of its token."""
    made = (await subscribes(at_exeter, wish(board.url, max_count=1))).json()
    await notifier.once()
    await asked(hub, torbay, at_torbay)
    await asked(hub, torbay, at_torbay, patient=FENNIMOSS, number="TR-2", stay="V-2")
    board.waits = asyncio.Event()
    telling = asyncio.create_task(notifier.once())
    while len(board.asked) < 2:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await clients.revoke(hub.engine, at_exeter.client.id, hub.clock())
    board.waits.set()
    await telling
    assert board.numbers() == [1]
    async with hub.engine.begin() as connection:
        await connection.execute(
            t.subscription.update()
            .where(t.subscription.c.subscription_id == made["id"])
            .values(status="active")
        )
    await notifier.once()
    assert board.numbers() == [1]


async def test_who_is_shown_tasks_must_be_allowed_to_read_them(hub, torbay, at_torbay, facade, board):
    """By the scope for Task, whichever way they come: told, or fetched as events."""
    narrow = await (await System.join(facade, "RH8", scopes="system/Subscription.cruds")).signed_in()
    refused = await subscribes(narrow, wish(board.url, content="full-resource"))
    assert (refused.status_code, issue(refused)) == (403, ("SEND_FORBIDDEN", "forbidden"))
    made = (await subscribes(narrow, wish(board.url, content="id-only"))).json()
    path = f"/Subscription/{made['id']}"
    await asked(hub, torbay, at_torbay)
    assert (await narrow.get(f"{path}/$events")).status_code == 200
    assert (await narrow.get(f"{path}/$events?content=full-resource")).status_code == 403
    widened = await subscribes(narrow, wish(board.url, content="full-resource"), "PUT", path)
    assert widened.status_code == 403
    reader = await (
        await System.join(facade, "RH8", scopes="system/Subscription.cruds system/Task.r")
    ).signed_in()
    assert (await reader.get(f"{path}/$events?content=full-resource")).status_code == 200
    # Made by one who may, it is not for one who may not to fetch by it.
    full = (await subscribes(reader, wish(board.url, content="full-resource"))).json()
    assert (await narrow.get(f"/Subscription/{full['id']}/$events")).status_code == 403


async def test_u_0000_in_a_wish_is_said(hub, at_exeter, board):
    said = await subscribes(at_exeter, wish(board.url) | {"reason": "a\x00b"})
    assert (said.status_code, await hub.rows(t.subscription)) == (400, [])


async def test_a_thousand_filters_are_too_many(hub, at_exeter, board):
    said = await subscribes(at_exeter, wish(board.url, filters=["Task?owner:identifier=RH8"] * 1_000))
    assert (said.status_code, issue(said)[1]) == (400, "too-costly")


async def test_a_subscription_that_is_read_and_put_back_keeps_its_headers(
    hub, facade, at_exeter, board, notifier
):
    """For its own address only: another must not be sent what it was not given."""
    resource = wish(board.url)
    resource["channel"]["header"] = ["Authorization: Bearer board-secret", "X-Ward: Taw"]
    made = (await subscribes(at_exeter, resource)).json()
    path = f"/Subscription/{made['id']}"
    await notifier.once()
    back = (await at_exeter.get(path)).json() | {"status": "requested"}
    back["channel"]["header"][1] = "X-Ward: Exe"
    assert (await subscribes(at_exeter, back, "PUT", path)).status_code == 200
    await notifier.once()
    assert [each["authorization"] for each in board.headers] == ["Bearer board-secret"] * 2
    assert [each["x-ward"] for each in board.headers] == ["Taw", "Exe"]
    back["channel"]["endpoint"] += "/elsewhere"
    moved = await subscribes(at_exeter, back, "PUT", path)
    assert (moved.status_code, moved.json()["issue"][0]["expression"]) == (
        422,
        ["Subscription.channel.header"],
    )
    back["channel"] = made["channel"] | {"header": ["X-Other: (kept)"]}
    assert (await subscribes(at_exeter, back, "PUT", path)).status_code == 422
    new = await subscribes(at_exeter, {k: v for k, v in made.items() if k != "id"})
    assert new.status_code == 422
    assert len(await hub.rows(t.subscription)) == 1
