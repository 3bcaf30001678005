"""Actions are counted as they are done, by whoever does them; afterwards the audit has as many entries of each kind, and as
many AuditEvents: none is missing and none is too many.
"""

import random
from collections import Counter

import pytest

from hub.demo.epr import Message
from hub.demo.people import patient_number
from hub.domain.delivery import Outgoing, Placed
from hub.fhir.audit_event import Observer
from hub.fhir.systems import NHS_NUMBER
from hub.governance.disclosed import as_audit_events
from hub.store import book, feeds, outbox
from hub.store import tables as t
from tests.harness.log import exported, seal_all
from tests.stories.rest import System, facade_of

ACTIONS = 120
ANSWERED = {"accepted": "transfer-accepted", "ready": "bed-allocated", "rejected": "transfer-rejected"}


class Clerk:
    """Does something at random, and counts what must be written down about it."""

    def __init__(self, hub, seed, torbay, exeter, systems):
        self.hub, self.torbay, self.exeter = hub, torbay, exeter
        self.at_torbay, self.at_exeter, self.at_plymouth = systems
        self.rng, self.must = random.Random(seed), Counter()
        self.asked, self.last, self.patients = {}, None, set()

    async def do(self):
        self.hub.clock.later(minutes=1)
        choice = self.rng.choice(
            [
                self.ask, self.ask, self.answer, self.repeat, self.contradict, self.babble, self.pretend,
                self.deliver, self.fail, self.read, self.search, self.search_for_nobody, self.pry, self.knock,
                self.look_at_the_audit, self.fetch_an_export,
            ]
        )  # fmt: skip
        await choice()

    async def ask(self):
        number = len(self.asked) + 1
        patient = patient_number(number)
        self.last = self.torbay.epr.asks_to_transfer(
            patient,
            to="RH8",
            request_number=f"T-{number}",
            encounter_number=f"V-{number}",
            at=self.hub.clock(),
        )
        outcome = await self.torbay.send(self.last)
        self.asked[number] = (patient, outcome.transfer_id)
        self.must.update(["msg-received", "msg-repaired", "identity-unmatched", "transfer-created", "routed"])

    async def answer(self):
        waiting = [number for number in self.asked if number not in self.patients]
        if not waiting:
            return
        number = self.rng.choice(waiting)
        self.patients.add(number)
        status = self.rng.choice(list(ANSWERED))
        await self.exeter.answers(
            self.asked[number][0],
            status,
            request_number=f"T-{number}",
            requester=self.torbay.profile,
            bed="Bed 4",
            reason="RRNA",
        )
        self.must.update(["msg-received", "msg-repaired", ANSWERED[status], "routed"])

    async def repeat(self):
        if self.last is not None:
            await self.torbay.send(self.last)
            self.must.update(["msg-received", "msg-duplicate"])

    async def contradict(self):
        if self.last is not None:
            await self.torbay.send(Message(self.last.headers, self.last.key, self.last.body + b" "))
            self.must.update(["msg-received", "msg-conflict"])

    async def babble(self):
        await self.exeter.send(b"no message")
        self.must.update(["msg-received", "msg-quarantined"])

    async def pretend(self):
        if self.last is not None:
            headers = {**self.last.headers, "x-request-id": f"{self.rng.random()}"}
            await self.exeter.send(Message(headers, self.last.key, self.last.body))
            self.must.update(["msg-received", "org-mismatch", "msg-quarantined"])

    async def deliver(self):
        """All that waits for Exeter lies on its topics."""
        rows = await outbox.pending(self.hub.engine, "RH8", 500, self.hub.clock())
        placed = [Placed(row.seq, row.topic, 0, row.seq, row.event_id) for row in rows]
        for _ in range(2):  # once written down it is not written down again
            await outbox.mark_sent(self.hub.engine, placed, self.hub.clock())
        self.must.update(
            "disclosure-sent" if row.topic.endswith(".inbox") else "delivery-ack" for row in rows
        )

    async def fail(self):
        now = self.hub.clock()
        rows = await outbox.pending(self.hub.engine, "RA9", 1, now)
        if rows:
            assert isinstance(rows[0], Outgoing)
            await outbox.mark_failed(self.hub.engine, rows, "TimeoutError: it was too slow", now, now)
            self.must["delivery-retry"] += 1

    async def read(self):
        if self.asked:
            _, transfer_id = self.rng.choice(list(self.asked.values()))
            assert (await self.at_exeter.get(f"/Task/{transfer_id}")).status_code == 200
            self.must["record-read"] += 1

    async def search(self):
        found = (await self.at_torbay.get("/Task?_count=200")).json().get("entry", [])
        # One for each patient that was found; one if nobody was.
        self.must["record-search"] += max(
            1, len({each["resource"]["for"]["identifier"]["value"] for each in found})
        )

    async def search_for_nobody(self):
        await self.at_torbay.get(f"/Task?patient:identifier={NHS_NUMBER}|9990000018")
        self.must["record-search"] += 1

    async def pry(self):
        if self.asked:
            _, transfer_id = self.rng.choice(list(self.asked.values()))
            assert (await self.at_plymouth.get(f"/Task/{transfer_id}")).status_code == 404
            self.must["access-denied"] += 1

    async def knock(self):
        await self.at_torbay.http.get("/fhir/Task", headers={"Authorization": "Bearer no.good.token"})
        self.must["auth-failed"] += 1

    async def look_at_the_audit(self):
        answer = await self.at_torbay.get("/AuditEvent?_count=5")
        assert answer.status_code == 200
        self.must["audit-read"] += 1

    async def fetch_an_export(self):
        await seal_all(self.hub.engine)
        if await self.hub.rows(t.audit_checkpoint):
            await exported(self.hub.engine)
            self.must["audit-exported"] += 1


@pytest.mark.parametrize("seed", range(3))
async def test_actions_are_audit_events(hub, torbay, exeter, seed):
    facade = facade_of(hub)
    systems = [await (await System.join(facade, ods)).signed_in() for ods in ("RA9", "RH8", "RK9")]
    clerk = Clerk(hub, seed, torbay, exeter, systems)
    clerk.must["config-changed"] += len(systems)  # a client was registered for each
    for _ in range(ACTIONS):
        await clerk.do()
    written = Counter(row["code"] for row in await hub.rows(book.whole()))
    assert written == +clerk.must

    await seal_all(hub.engine)
    rows = await feeds.leaves(hub.engine, 0, 10_000)
    events = await as_audit_events(hub.engine, "hub.audit", {}, Observer())(rows)
    assert len(events) == clerk.must.total()
    assert [event.seq for event in events] == list(range(len(events)))
