"""Exeter has registered an address: what it must know is posted there, whatever becomes of its server."""

import asyncio
import contextlib
import socket
import ssl
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

from hub.demo.people import FENNIMOSS, MARSHWIGGLE, PEOPLE, QUILLFEATHER
from hub.destinations.push import PushAccess, PushDestination
from hub.domain.trust import Directory, Doors
from hub.services.dispatcher import Dispatcher, DispatcherConfig
from hub.store import outbox
from hub.store import tables as t
from hub.trusts import load_directory
from tests.stories.conftest import SCHEMAS, edited
from tests.stories.test_subscriptions import certified
from tests.stories.test_transfers import ask

CONFIG = DispatcherConfig(poll_s=0.01, gather_s=0, backoff_s=0.05, backoff_max_s=2, lease_s=5)


@dataclass
class Receiver:
    """A hospital's server. ``answers`` are what it says next: a status, "store then drop", "redirect"; then 200, or 409 to
    what it has.
    """

    port: int
    scheme: str = "http"
    answers: list = field(default_factory=list)
    refuse: set = field(default_factory=set)
    drip_s: float = 0
    flood: bool = False
    correlations: list = field(default_factory=list)
    asked: list = field(default_factory=list)
    has: dict = field(default_factory=dict)

    @property
    def url(self):
        return f"{self.scheme}://127.0.0.1:{self.port}/inbox"

    async def take(self, request: Request):
        body = await request.body()
        said = request.headers
        request_id, event_type = said["x-request-id"], said.get("event-type")
        self.asked.append((asyncio.get_running_loop().time(), request_id, event_type))
        self.correlations.append(next((v for k, v in said.raw if k == b"x-correlation-id"), None))
        answer = self.answers.pop(0) if self.answers else 200
        if any(each in body for each in self.refuse):
            return Response(status_code=422)
        if self.drip_s:
            return StreamingResponse(self._drops(self.drip_s))
        if self.flood:
            self.has[request_id] = (event_type, said.get("transfer-id"))
            return StreamingResponse(self._floods())
        if answer == "redirect":
            return Response(status_code=307, headers={"Location": "http://127.0.0.1:1/elsewhere"})
        if isinstance(answer, tuple):
            return Response(status_code=answer[0], headers={"Retry-After": str(answer[1])})
        if isinstance(answer, int) and answer != 200:
            return Response(status_code=answer)
        if request_id in self.has:
            return Response(status_code=409)
        self.has[request_id] = (event_type, said.get("transfer-id"))
        return Response(status_code=503 if answer == "store then drop" else 200)

    async def _floods(self):
        """Garbage, as fast as it goes."""
        while True:
            yield b"<html>" * 20_000
            await asyncio.sleep(0)

    async def _drops(self, every_s):
        """An answer that was begun this way never ends, also when the next one will be a good one."""
        while True:
            yield b" "
            await asyncio.sleep(every_s)


@contextlib.asynccontextmanager
async def listening(receiver, **tls):
    app = FastAPI()
    app.add_api_route("/inbox", receiver.take, methods=["POST"])
    app.add_api_route("/elsewhere", receiver.take, methods=["POST"])
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=receiver.port, log_level="error", lifespan="off", **tls)
    )
    serving = asyncio.create_task(server._serve())
    while not server.started:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    try:
        yield receiver
    finally:
        server.should_exit = True
        await serving


@pytest.fixture
def receiver():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return Receiver(free.getsockname()[1])


@contextlib.asynccontextmanager
async def dispatching(hub, *receivers, **access):
    """A dispatcher for RH8 (and RK9), each with its address; torbay's receipts wait."""
    trusts = load_directory(SCHEMAS)
    doors = dict(zip(("RH8", "RK9"), receivers, strict=False))
    directory = Directory(
        trusts[ods].model_copy(update={"doors": Doors(outward="push", url=each.url)})
        for ods, each in doors.items()
    )
    stop = asyncio.Event()
    dispatcher = Dispatcher(
        hub.engine,
        directory,
        lambda ods: PushDestination(doors[ods].url, PushAccess(answer_s=1, **access)),
        hub.log,
        CONFIG,
        now=lambda: datetime.now(UTC),
    )
    running = asyncio.create_task(dispatcher.run(stop))
    try:
        yield
    finally:
        stop.set()
        await running


async def delivered(hub, ods="RH8", within_s=20):
    async with asyncio.timeout(within_s):
        while any(each.receiver == ods for each in await outbox.waiting(hub.engine)):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def waiting_for(hub, ods):
    [waiting] = [each for each in await outbox.waiting(hub.engine) if each.receiver == ods]
    return waiting


async def test_what_exeter_must_know_is_posted_to_it_in_order(hub, torbay, receiver):
    asked = await ask(torbay)
    hub.clock.later(minutes=5)
    await torbay.updates_request(MARSHWIGGLE, to="RH8", request_number="TR-1", encounter_number="V-1")
    async with listening(receiver), dispatching(hub, receiver):
        await delivered(hub)
    transfer = asked.transfer_id
    assert list(receiver.has.values()) == [("transfer.requested", transfer), ("transfer.updated", transfer)]
    sent = await hub.audit(transfer_id=transfer, code="disclosure-sent")
    assert [entry["counterpart"] for entry in sent] == ["RH8", "RH8"]


@pytest.mark.parametrize("fault", [503, 500, 429, 408, 401, "store then drop", "redirect"])
async def test_a_server_that_is_not_well_gets_everything_once_it_is(hub, torbay, receiver, fault):
    """Each message is offered under the same id until it is taken; 409 means that it has it; nobody is followed elsewhere."""
    for number, patient in enumerate((MARSHWIGGLE, QUILLFEATHER, FENNIMOSS)):
        await ask(torbay, patient, number=f"TR-{number}", encounter_number=f"V-{number}")
    receiver.answers = [200, fault, fault]
    async with listening(receiver), dispatching(hub, receiver):
        await delivered(hub)
    assert Counter(kind for kind, _ in receiver.has.values()) == {"transfer.requested": 3}
    offered = Counter(request_id for _, request_id, _ in receiver.asked)
    # What was stored before the answer was lost is 409 at the second offer.
    failures = 1 if fault == "store then drop" else 2
    assert sorted(offered.values()) == [1, 1, 1 + failures]
    rows = [row for row in await hub.rows(t.outbox) if row["receiver"] == "RH8"]
    assert {row["state"] for row in rows} == {"sent"}
    failed = await hub.audit(code="delivery-retry")
    assert len(failed) == failures
    expected = {"redirect": "HTTP 307", "store then drop": "HTTP 503"}.get(fault, f"HTTP {fault}")
    assert all(entry["detail"]["error"].startswith(expected) for entry in failed)


async def test_a_server_that_asks_for_patience_gets_it(hub, torbay, receiver):
    await ask(torbay)
    receiver.answers = [(429, 1)]
    async with listening(receiver), dispatching(hub, receiver):
        await delivered(hub)
    first, second = (at for at, _, _ in receiver.asked)
    assert second - first >= 0.9


async def test_a_server_whose_answer_never_ends_is_a_failure_that_people_see(hub, torbay, receiver):
    await ask(torbay)
    receiver.drip_s = 0.2
    async with listening(receiver), dispatching(hub, receiver):
        async with asyncio.timeout(20):
            while (waiting := await waiting_for(hub, "RH8")).last_error is None:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        assert waiting.last_error.startswith("TimeoutError")
        receiver.drip_s = 0
        await delivered(hub)
    assert len(receiver.has) == 1


async def test_a_server_that_takes_a_message_and_talks_without_end_is_listened_to_for_a_moment_only(
    hub, torbay, receiver
):
    """It said 200: it has the message. What it says besides is nobody's, and must not fill the hub's memory."""
    await ask(torbay)
    receiver.flood = True
    async with listening(receiver), dispatching(hub, receiver):
        await delivered(hub, within_s=5)
    assert len(receiver.asked) == 1


@pytest.mark.parametrize(
    ("said", "arrives"),
    [("Überweisung 7", "Überweisung 7".encode()), ("a\r\nx-evil: b", None), (" ", None)],
)
async def test_a_correlation_id_that_http_has_no_room_for_stops_nobodys_messages(
    hub, torbay, receiver, said, arrives
):
    """A Kafka header takes any text. One hospital's must not keep Exeter from what all others tell it."""
    await torbay.send(edited(_request(hub, torbay), lambda tree: None, **{"x-correlation-id": said}))
    await ask(torbay, QUILLFEATHER, number="TR-2", encounter_number="V-2")
    async with listening(receiver), dispatching(hub, receiver):
        await delivered(hub, within_s=5)
    assert receiver.correlations[0] == arrives
    assert [kind for kind, _ in receiver.has.values()] == ["transfer.requested"] * 2


def _request(hub, torbay):
    return torbay.epr.asks_to_transfer(
        MARSHWIGGLE, to="RH8", request_number="TR-1", encounter_number="V-1", at=hub.clock()
    )


async def test_a_message_that_is_refused_holds_up_its_own_transfer_only(hub, torbay, receiver):
    """422 is about the message: later news of that transfer wait behind it, other transfers go on, and people can see it."""
    await ask(torbay, MARSHWIGGLE, number="TR-1", encounter_number="V-1")
    await torbay.updates_request(MARSHWIGGLE, to="RH8", request_number="TR-1", encounter_number="V-1")
    await ask(torbay, QUILLFEATHER, number="TR-2", encounter_number="V-2")
    receiver.refuse = {b'"TR-1"'}
    async with listening(receiver), dispatching(hub, receiver):
        async with asyncio.timeout(20):
            # What the receiver has is written down a moment later.
            while len(receiver.asked) < 4 or (await waiting_for(hub, "RH8")).rows > 2:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert len(receiver.has) == 1
        waiting = await waiting_for(hub, "RH8")
        assert (waiting.rows, waiting.last_error[:8]) == (2, "HTTP 422")
        assert len({request_id for _, request_id, _ in receiver.asked}) == 2
        receiver.refuse = set()
        await delivered(hub)
    assert [kind for kind, _ in receiver.has.values()] == [
        "transfer.requested", "transfer.requested", "transfer.updated",
    ]  # fmt: skip


@pytest.mark.parametrize(("status", "may_be_the_certificate"), [(400, True), (422, False)])
async def test_a_400_may_be_about_the_certificate_of_the_hub(
    hub, torbay, receiver, status, may_be_the_certificate
):
    """nginx says it when a client's certificate has run out: who looks for the fault in the message alone looks for a long time."""
    await ask(torbay)
    receiver.answers = [status] * 100
    async with listening(receiver), dispatching(hub, receiver):
        async with asyncio.timeout(20):
            while (waiting := await waiting_for(hub, "RH8")).last_error is None:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    assert waiting.last_error.startswith(f"HTTP {status}: the receiver refuses this message")
    assert ("HUB_PUSH_CERTIFICATE_FILE" in waiting.last_error) is may_be_the_certificate


async def test_a_certificate_that_is_renewed_after_it_ran_out_delivers_what_waited(
    hub, torbay, receiver, tmp_path
):
    """The receiver takes the new one only: nothing has to be restarted, and nothing is lost."""
    mine, its, taken = tmp_path / "mine.pem", tmp_path / "its.pem", tmp_path / "taken.pem"
    new = certified("hub, renewed")
    mine.write_bytes(certified("hub"))
    its.write_bytes(certified("exeter"))
    taken.write_bytes(new)
    tls = {"ssl_certfile": its, "ssl_ca_certs": str(taken), "ssl_cert_reqs": ssl.CERT_REQUIRED}
    receiver.scheme = "https"
    await ask(torbay)
    async with listening(receiver, **tls), dispatching(hub, receiver, ca_file=its, certificate_file=mine):
        async with asyncio.timeout(20):
            while (await waiting_for(hub, "RH8")).last_error is None:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert receiver.has == {}
        mine.write_bytes(new)
        await delivered(hub)
    assert len(receiver.has) == 1


async def test_a_server_that_is_down_delays_nobody_else(hub, torbay, receiver):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        down = Receiver(free.getsockname()[1])
    for number, patient in enumerate(PEOPLE[:6]):
        to = ("RH8", "RK9")[number % 2]
        await ask(torbay, patient, number=f"TR-{number}", encounter_number=f"V-{number}", to=to)
    async with listening(receiver), dispatching(hub, receiver, down):
        await delivered(hub, "RH8", within_s=5)
        assert len(receiver.has) == 3
        error = None
        async with asyncio.timeout(5):
            while error is None:
                await asyncio.sleep(0.05)
                [error] = [e.last_error for e in await outbox.waiting(hub.engine) if e.receiver == "RK9"]
        assert error.startswith("ConnectError")
        async with listening(down):
            await delivered(hub, "RK9")
    assert len(down.has) == 3


@pytest.mark.parametrize(
    "doors",
    [
        {"outward": "push"},
        {"outward": "kafka", "url": "https://ehr.example/inbox"},
        {"outward": "push", "url": "http://ehr.example/inbox"},
        {"outward": "push", "url": "https://user@ehr.example/inbox"},
    ],
)
def test_an_address_is_https_and_belongs_to_push(doors):
    with pytest.raises(ValueError, match=r"doors\.url"):
        Doors(**doors)
