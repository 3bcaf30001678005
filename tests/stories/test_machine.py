"""Any story that three hospitals and three patients can make, told to the pure journey: whatever happens, some things hold."""

import random
from collections import Counter, defaultdict
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import orjson
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hub.audit.catalogue import TRANSFER_CODES
from hub.demo.epr import Epr
from hub.demo.people import FENNIMOSS, LARKENBY, MOONRAKER
from hub.domain.ids import EventId, OdsCode, time_ordered_id
from hub.domain.message import Position, Received
from hub.domain.rejection import Disposition, Why
from hub.domain.transfer import ENDED, LIFECYCLE, Step, final_state, fold
from hub.journey.decide import Journey, decide, understand
from hub.journey.known import Known
from hub.journey.ring import ring
from hub.trusts import load_books, load_clocks
from tests.stories.conftest import SCHEMAS, TRUSTS

JOURNEY = Journey(TRUSTS, books=load_books(SCHEMAS, TRUSTS), clocks=load_clocks(SCHEMAS, TRUSTS))
HOSPITALS = ("RA9", "RH8", "RK9")
PEOPLE = (FENNIMOSS, LARKENBY, MOONRAKER)
SITE = {"RA9": "RA901", "RH8": "RH801", "RK9": TRUSTS["RK9"].sites[0].ods}
ANSWERS = (
    ("received", None), ("on-hold", None), ("accepted", None), ("accepted", "awaiting-bed"), ("rejected", None),
    ("ready", None), ("completed", None), ("cancelled", None), ("requested", None), ("in-progress", None),
    ("ready", "transport-booked"), ("failed", None), ("entered-in-error", None), ("completed", "confirmed"),
)  # fmt: skip
EVENTS = (
    ("A01", "in-progress", "IMP"), ("A02", "in-progress", "IMP"), ("A04", "arrived", "EMER"), ("A05", "planned", "IMP"),
    ("A08", "in-progress", "IMP"), ("A11", "cancelled", "IMP"), ("A13", "in-progress", "IMP"), ("A21", "onleave", "IMP"),
    ("A22", "in-progress", "IMP"), ("x", "entered-in-error", "IMP"),
)  # fmt: skip

hospital, other = st.sampled_from(HOSPITALS), st.sampled_from(HOSPITALS)
person = st.sampled_from(PEOPLE)
ago = st.integers(0, 600)
"""Minutes: how late the hub hears of it."""


class Hospitals(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.known, self.now, self.offset = Known(), datetime(2026, 11, 23, 9, tzinfo=UTC), 0
        self.effects, self.rung, self.facts_audited = [], [], Counter()

    def tell(self, ods, message):
        self.offset += 1
        self.now += timedelta(minutes=7)
        at = Position(f"epr.{ods.lower()}.events", 0, self.offset)
        received = Received(
            EventId(time_ordered_id(self.now, ods, self.offset)), OdsCode(ods), at,
            message.headers, message.key, message.body, self.now,
        )  # fmt: skip
        effects = decide(understand(received, JOURNEY), self.known, JOURNEY, self.now)
        self.effects.append(effects)

    def at(self, minutes):
        return self.now - timedelta(minutes=minutes)

    @rule(
        ods=hospital,
        to=other,
        who=person,
        late=ago,
        stay=st.sampled_from("AB"),
        draft=st.booleans(),
        replaces=st.booleans(),
    )
    def asks(self, ods, to, who, late, stay, draft, replaces):
        number = f"{who.given}-{to}-{stay}"
        instead = f"{who.given}-{'RK9' if to == 'RH8' else 'RH8'}-{stay}" if replaces else None
        self.tell(ods, Epr(TRUSTS[ods]).asks_to_transfer(
            who, to=to, request_number=number, encounter_number=stay, at=self.at(late), draft=draft, replaces=instead,
            priority="stat",
        ))  # fmt: skip

    @rule(asker=other, to=other, who=person, late=ago, stay=st.sampled_from("AB"), said=st.sampled_from(ANSWERS),
          as_=st.sampled_from(("receiver", "receiver", "sender", "third")))  # fmt: skip
    def answers(self, asker, to, who, late, stay, said, as_):
        asked = [t for t in self.known.transfers.values() if t.requests]
        if asked:
            transfer = asked[self.offset % len(asked)]
            asker, number = transfer.sender, transfer.requests[0].value
            to = transfer.receiver
            who = next(each for each in PEOPLE if number.startswith(each.given))
        else:
            number = f"{who.given}-{to}-{stay}"
        ods = {"receiver": to, "sender": asker, "third": "RK9"}[as_]
        self.tell(ods, Epr(TRUSTS[ods]).answers(
            who, said[0], requester=TRUSTS[asker], request_number=number, at=self.at(late // 20),
            business_status=said[1], reason="RRNA",
        ))  # fmt: skip

    @rule(ods=hospital, to=other, who=person, stay=st.sampled_from("AB"), in_error=st.booleans())
    def cancels(self, ods, to, who, stay, in_error):
        number = f"{who.given}-{to}-{stay}"
        self.tell(
            ods,
            Epr(TRUSTS[ods]).cancels_request(
                who, to=to, request_number=number, at=self.now, in_error=in_error
            ),
        )

    @rule(
        ods=hospital,
        who=person,
        late=ago,
        stay=st.sampled_from("AB"),
        event=st.sampled_from(EVENTS),
        transferred=st.booleans(),
    )
    def reports(self, ods, who, late, stay, event, transferred):
        source = {
            "admitSource": {
                "coding": [
                    {
                        "system": "https://fhir.hl7.org.uk/CodeSystem/UKCore-SourceOfAdmissionEngland",
                        "code": "51",
                    }
                ]
            }
        }
        more = {"hospitalization": source} if transferred else {}
        self.tell(ods, Epr(TRUSTS[ods]).reports(
            event[0], who, encounter_number=stay, at=self.at(late), status=event[1], encounter_class=event[2], **more
        ))  # fmt: skip

    @rule(
        ods=hospital,
        to=other,
        who=person,
        late=ago,
        stay=st.sampled_from("AB"),
        code=st.sampled_from(("51", "19", "79")),
    )
    def discharges(self, ods, to, who, late, stay, code):
        site = SITE[to] if code == "51" and to != ods else None
        self.tell(
            ods,
            Epr(TRUSTS[ods]).discharges(
                who, encounter_number=stay, at=self.at(late), to_site=site, disposition=code
            ),
        )

    @rule(ods=hospital, who=person, into=person, unlink=st.booleans())
    def merges(self, ods, who, into, unlink):
        epr = Epr(TRUSTS[ods])
        survivor = {
            "identifier": {"system": epr.profile.identifier_systems.patient, "value": into.local[ods]}
        }
        loser = replace(who, local={ods: f"old-{who.given}"})
        link = (
            {"active": True}
            if unlink
            else {"active": False, "link": [{"type": "replaced-by", "other": survivor}]}
        )
        self.tell(ods, epr.tells_of_patient("A37" if unlink else "A40", loser, at=self.now, **link))

    @rule(hours=st.integers(1, 30))
    def waits(self, hours):
        self.now += timedelta(hours=hours)
        for transfer in list(self.known.transfers.values()):
            rung = ring(transfer, JOURNEY.clocks, TRUSTS, self.now)
            if rung is not None:
                self.known.add_transfer(rung.taken.transfer)
                self.rung.append(rung)

    @invariant()
    def nothing_is_a_fault_of_the_hub(self):
        faults = [
            e.rejection.detail for e in self.effects[-1:] if e.rejection and e.rejection.why is Why.HUB_FAULT
        ]
        assert faults == []

    @invariant()
    def every_state_is_the_fold_of_the_facts_in_any_order(self):
        for transfer in self.known.transfers.values():
            shuffled = list(transfer.facts)
            random.Random(self.offset).shuffle(shuffled)
            assert transfer.state is final_state(fold(shuffled))
            assert transfer.version == len(transfer.facts)

    @invariant()
    def no_state_is_entered_but_by_the_table(self):
        for transfer in self.known.transfers.values():
            for move in fold(transfer.facts):
                if move.after is None or move.fact.step is Step.RETRACT:
                    continue
                assert any(
                    each.step is move.fact.step
                    and move.fact.party in each.by
                    and each.moves.get(move.before) is move.after
                    for each in LIFECYCLE
                )

    @invariant()
    def only_the_parties_ever_hear_of_a_transfer(self):
        for out in [
            *(o for e in self.effects[-1:] for o in e.outbox),
            *(o for r in self.rung[-3:] for o in r.outbox),
        ]:
            if out.transfer_id is None:
                continue
            transfer = self.known.transfers[out.transfer_id]
            assert out.receiver in {transfer.sender, transfer.receiver}

    @invariant()
    def the_origin_sees_nothing_of_the_receivers_record_but_the_stay(self):
        for effects in self.effects[-1:]:
            for out in effects.outbox:
                if out.transfer_id and out.receiver == self.known.transfers[out.transfer_id].sender:
                    for entry in orjson.loads(out.payload)["entry"]:
                        assert (
                            "name" not in entry["resource"] or entry["resource"]["resourceType"] != "Patient"
                        )

    @invariant()
    def audit_entries_are_moves(self):
        audited = defaultdict(list)
        for entry in [*(a for e in self.effects for a in e.audit), *(a for r in self.rung for a in r.audit)]:
            if entry.code in TRANSFER_CODES:
                audited[entry.transfer_id] += [entry.event_id, *entry.detail.get("with_events", ())]
        facts = {each.id: sorted(f.event_id for f in each.facts) for each in self.known.transfers.values()}
        assert {key: sorted(found) for key, found in audited.items()} == facts

    @invariant()
    def one_open_transfer_for_a_stay_and_a_specialty(self):
        asked = Counter(
            (each.person_id, each.sender, each.origin_encounter, each.specialty)
            for each in self.known.transfers.values()
            if each.state not in ENDED and not each.inferred and each.version == 1
        )
        assert max(asked.values(), default=0) <= 1

    @invariant()
    def every_message_ends_in_one_disposition_and_is_answered(self):
        for effects in self.effects[-1:]:
            assert effects.disposition in Disposition
            assert sum(out.topic.endswith(".receipts") for out in effects.outbox) == 1


TestHospitals = Hospitals.TestCase
TestHospitals.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
