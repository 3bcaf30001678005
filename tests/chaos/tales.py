"""Whole little stories in which a message could reach the wrong hospital: one patient, and mostly two hospitals that are asked for them.

What each message may come to, and who hears of which request what, is put into the ledger before it is sent. It follows from
who has told whom what until then, and from nothing that the hub has said: see `_Telling.leaving_for` and its neighbours.
"""

import asyncio
import itertools
import random
import uuid
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import orjson

from hub.demo.epr import Epr, Message, Patient, correlation_of
from tests.chaos.ledger import GaveUpError, Heard, Moment, Outcome, Tale

if TYPE_CHECKING:
    from tests.chaos.simulation import Hospitals

_NEWS_OF_ANSWER = {
    "received": "transfer.received",
    "on-hold": "transfer.query.raised",
    "accepted": "transfer.accepted",
    "ready": "transfer.bed.allocated",
    "rejected": "transfer.rejected",
}
_STATE_OF_ANSWER = {
    "received": "received",
    "on-hold": "info-requested",
    "accepted": "accepted",
    "ready": "bed-allocated",
    "rejected": "rejected",
}
_TAKEN = frozenset({"accepted", "bed-allocated"})
_ANSWERS = ((), ("received",), ("received", "on-hold"), ("accepted",), ("received", "accepted", "ready"))
_YES = (("accepted",), ("accepted", "ready"), ("received", "accepted", "ready"))
_REFUSES = ("received", "rejected")
_SPECIALTIES = ("320", "150", "340")
_NHS_NUMBER = "https://fhir.nhs.uk/Id/nhs-number"
_ODS_SITE = "https://fhir.nhs.uk/Id/ods-site-code"


class _Telling:
    """One patient's tale as it is told. ``asker`` is where the patient is, ``one`` and ``other`` are where they may go.

    ``state`` is where each request stands by what its two hospitals have said of it; what they hear next follows from that.
    """

    def __init__(self, hospitals: "Hospitals", tale: Tale, patient: Patient, rng: random.Random) -> None:
        self.rng, self.tale, self.patient = rng, tale, patient
        self.asker, self.one, self.other, *self.others = rng.sample(list(hospitals.ledger.trusts), len(hospitals.ledger.trusts))  # fmt: skip
        self.state: dict[str, str] = {}
        self.called: dict[str, Patient] = {}
        """By which record without an NHS number a hospital speaks of the patient."""
        self.may_use_rest = {each for each in hospitals.ledger.trusts if rng.random() < 0.3}
        self._hospitals = hospitals
        self._clock = datetime.now(UTC).replace(microsecond=0) - timedelta(days=2)
        self._not_known_as_taken_in: list[tuple[str, str, bytes]] = []
        self._beds = itertools.count(1)

    # -- what is said

    def at(self) -> datetime:
        """Some minutes later than what was said last."""
        self._clock += timedelta(minutes=self.rng.randint(5, 40))
        return self._clock

    def epr(self, trust: str) -> Epr:
        return Epr(self._hospitals.profile(trust))

    def who(self, trust: str) -> Patient:
        return self.called.get(trust, self.patient)

    def stay(self, trust: str) -> str:
        return f"{trust}-{self.tale.name}"

    def site(self, trust: str) -> str:
        return self._hospitals.profile(trust).sites[0].ods

    async def is_in_bed(self, trust: str, **more: Any) -> None:
        """They came from home, in an emergency: nobody else's business."""
        admits = self.epr(trust).admits(
            self.who(trust), encounter_number=self.stay(trust), ward="AMU", at=self.at(), source="19", method="21",
            form=self.rng.choice(["collection", "message", "bare"]), **more,
        )  # fmt: skip
        await self.says(trust, admits, "is in bed")

    def asking(self, sender: str, receiver: str, number: str, **more: Any) -> Message:
        """A request, which the ledger knows from here on."""
        self.tale.requests[number] = (sender, receiver)
        self.state[number] = "requested"
        more = {"specialty": _SPECIALTIES[len(self.state) % len(_SPECIALTIES)], **more}
        return self.epr(sender).asks_to_transfer(
            self.who(sender), to=receiver, request_number=number, encounter_number=self.stay(sender), at=self.at(), **more,
        )  # fmt: skip

    async def asks(self, sender: str, receiver: str, **more: Any) -> str:
        """Returns the request's number."""
        number = self.numbered()
        await self.says(
            sender,
            self.asking(sender, receiver, number, **more),
            "request",
            (receiver, number, "transfer.requested"),
        )
        return number

    def numbered(self) -> str:
        return f"{self.tale.name}-{len(self.tale.requests) + 1}"

    async def answer(self, number: str, status: str) -> tuple[str, Message, tuple[Heard, ...]]:
        """What the hospital says that is asked, by the request's number or by the hub's id of what lies in its inbox."""
        sender, receiver = self.tale.requests[number]
        more: dict[str, Any] = {"request_number": number}
        if self.rng.random() < 0.4:
            more = {"transfer_id": await self.sees(receiver, number)}
        if status == "ready":
            more["bed"] = f"{receiver} bed {next(self._beds)} {self.tale.name}"
            for each in {end for ends in self.tale.requests.values() for end in ends} - {sender, receiver}:
                self.keep_from(each, more["bed"])
        if status == "rejected":
            more["reason"] = "RRNA"
        if status == "on-hold":
            more["business_status"] = "info-requested"
        said = self.epr(receiver).answers(
            self.who(receiver), status, requester=self._hospitals.profile(sender), at=self.at(), **more
        )  # type: ignore[arg-type]  # fmt: skip
        self.state[number] = _STATE_OF_ANSWER[status]
        return receiver, said, (Heard(sender, number, _NEWS_OF_ANSWER[status]),)

    async def answers(self, number: str, *statuses: str) -> None:
        for status in statuses:
            who, said, heard = await self.answer(number, status)
            await self.says(who, said, f"answer: {status}", *heard)

    async def both_answer(self, *each: tuple[str, Iterable[str]]) -> None:
        """Two hospitals, neither waiting for the other: each is heard of by who asked it."""
        for statuses in itertools.zip_longest(*(said for _, said in each)):
            said = [
                await self.answer(n, status)
                for (n, _), status in zip(each, statuses, strict=True)
                if status is not None
            ]
            outcome = tuple(("accepted", heard) for _, _, heard in said)
            await self.at_once("answers of two", [(who, message) for who, message, _ in said], [outcome])

    async def cancels(self, number: str) -> None:
        sender, receiver = self.tale.requests[number]
        await self.says(sender, self.cancelling(number), "cancel", (receiver, number, "transfer.cancelled"))
        self.state[number] = "cancelled"

    def cancelling(self, number: str) -> Message:
        sender, receiver = self.tale.requests[number]
        return self.epr(sender).cancels_request(
            self.who(sender), to=receiver, request_number=number, at=self.at()
        )

    def leaving(self, sender: str, to: str | None, **more: Any) -> Message:
        to_site = None if to is None else self.site(to)
        return self.epr(sender).discharges(
            self.who(sender), encounter_number=self.stay(sender), at=self.at(), to_site=to_site, **more
        )

    def arriving(self, receiver: str, *, origin: str | None = None) -> Message:
        """Admitted as sent by another hospital; ``origin``, if the record says which."""
        form = "collection" if origin else self.rng.choice(["collection", "message", "bare"])
        message = self.epr(receiver).admits(
            self.who(receiver), encounter_number=self.stay(receiver), ward="Nine", at=self.at(), form=form  # type: ignore[arg-type]
        )  # fmt: skip
        return _edited(message, lambda tree: _comes_from(tree, self.site(origin))) if origin else message

    async def moves_ward(self, sender: str) -> None:
        """Whoever expects them hears of it, of its own request."""
        moved = self.epr(sender).moves(
            self.who(sender),
            encounter_number=self.stay(sender),
            from_ward="AMU",
            to_ward="Six",
            at=self.at(),
        )
        heard = [(receiver, n, "encounter.transferred") for n, receiver in self.expected_from(sender)]
        await self.says(sender, moved, "ward move", *heard)

    # -- what follows from it

    def expected_from(self, sender: str) -> list[tuple[str, str]]:
        """Which requests' receivers still expect the sender's patient: they were asked, have not refused, and it is not over."""
        over = {"rejected", "cancelled", "redirected", "completed", "failed"}
        return [(n, to) for n, (by, to) in self.tale.requests.items() if by == sender and self.state.get(n, "completed") not in over]  # fmt: skip

    def left_behind(self, number: str) -> tuple[Heard, ...]:
        """The others that expect the patient hear that they go elsewhere, and so does who asked them."""
        sender, _ = self.tale.requests[number]
        others = [(n, to) for n, to in self.expected_from(sender) if n != number]
        return tuple(Heard(who, n, "transfer.diverged") for n, to in others for who in (to, sender))

    def leaving_for(self, number: str) -> tuple[Heard, ...]:
        """What a departure is: news for who is to receive them, an alarm for both if they have not accepted, and the end for the others."""
        sender, receiver = self.tale.requests[number]
        told = [receiver] if self.state[number] in _TAKEN else [receiver, sender]
        return (*(Heard(who, number, "transfer.departed") for who in told), *self.left_behind(number))

    def left_before(self, number: str) -> list[tuple[Heard, ...]]:
        """What a departure may be that is told after the arrival: still an alarm if nobody had accepted them, and the others may have a
        second one, by the second hospital's word.
        """
        alarm: tuple[Heard, ...] = ()
        if self.state[number] not in _TAKEN:
            alarm = tuple(Heard(who, number, "transfer.departed") for who in self.tale.requests[number])
        return [alarm, (*alarm, *self.left_behind(number))]

    def arrived(self, number: str) -> tuple[Heard, ...]:
        return (Heard(self.tale.requests[number][0], number, "transfer.completed"),)

    async def leaves(self, number: str) -> None:
        sender, receiver = self.tale.requests[number]
        await self.says(sender, self.leaving(sender, receiver), "departure", *self.leaving_for(number))
        self.state[number] = "in-transit"

    async def arrives(self, number: str, **more: Any) -> None:
        _, receiver = self.tale.requests[number]
        await self.says(receiver, self.arriving(receiver, **more), "arrival", *self.arrived(number))
        self.state[number] = "completed"

    async def goes(self, number: str) -> None:
        await self.leaves(number)
        await self.arrives(number)

    def keep_from(self, trust: str, *words: str) -> None:
        """What no message to this hospital may contain."""
        self.tale.secrets.setdefault(trust, set()).update(words)

    # -- how it is sent

    async def says(self, trust: str, message: Message, what: str, *heard: tuple[str, str, str]) -> None:
        outcome = (("accepted", tuple(Heard(*each) for each in heard)),)
        await self.at_once(what, [(trust, message)], [outcome])

    async def at_once(self, what: str, messages: list[tuple[str, Message]], outcomes: list[Outcome]) -> None:
        """Send these without waiting for each other, when what was said before is taken in: but for one hospital's own messages
        about one record, which stay in the order in which they are sent.
        """
        messages = [
            (trust, _without_number(said) if trust in self.called else said) for trust, said in messages
        ]
        lines = {(trust, message.key) for trust, message in messages}
        if len(lines) > 1 or any((trust, key) not in lines for trust, _, key in self._not_known_as_taken_in):
            for trust, message_id, _ in self._not_known_as_taken_in:
                await self._hospitals.receipts(trust).wait_for_answers(
                    message_id, 1, self._hospitals.deadline
                )
            self._not_known_as_taken_in.clear()
        ids = tuple((trust, message.headers["x-request-id"]) for trust, message in messages)
        self.tale.moments.append(Moment(what, ids, tuple(outcomes)))
        may_be = [frozenset(outcome[n][0] for outcome in outcomes) for n in range(len(messages))]
        await asyncio.gather(
            *(self._send(*each, what, expected) for each, expected in zip(messages, may_be, strict=True))
        )

    async def _send(self, trust: str, message: Message, what: str, expected: frozenset[str]) -> None:
        named: dict[str, Any] = {"story": self.tale.name, "news": "?"}
        over_rest = self._hospitals.has_rest and trust in self.may_use_rest
        send = self._hospitals.send_over_rest if over_rest else self._hospitals.send
        await send(trust, message, what=what, expected=expected, **named)
        if not over_rest:
            self._not_known_as_taken_in.append((trust, message.headers["x-request-id"], message.key))
        if expected == {"accepted"} and self.rng.random() < 0.07:
            again = frozenset({"duplicate"})
            await self._hospitals.send(trust, message, what=f"{what}, again", expected=again, **named)

    async def sees(self, receiver: str, number: str) -> str:
        """Until the request lies in the receiver's inbox. Returns the id that the hub gave the transfer."""
        correlation = correlation_of(self.tale.requests[number][0], number)
        news = await self._hospitals.inbox(receiver).wait(
            "transfer.requested", lambda each: each.correlation_id == correlation, self._hospitals.deadline
        )
        return news.transfer_id


# ----------------------------------------------------------------------------------------------------------------------
# Asked for at two hospitals
# ----------------------------------------------------------------------------------------------------------------------


async def _asks_two(t: _Telling) -> tuple[str, str]:
    await t.is_in_bed(t.asker)
    first = await t.asks(t.asker, t.one)
    second = await t.asks(t.asker, t.other)
    t.keep_from(t.one, second, t.stay(t.other))
    t.keep_from(t.other, first, t.stay(t.one))
    return first, second


async def _two_answered(t: _Telling, *, may_refuse: bool = True) -> tuple[str, str]:
    """Two are asked, and answer; one of them accepts, mostly. Returns the one to which the patient will go, and the other."""
    numbers = await _asks_two(t)
    gone, left = t.rng.sample(numbers, 2)
    loser = t.rng.choice((*_ANSWERS, _REFUSES) if may_refuse else _ANSWERS)
    await t.both_answer((gone, t.rng.choice((*_YES, *_YES, ()))), (left, loser))
    if t.rng.random() < 0.5:
        await t.moves_ward(t.asker)
    return gone, left


async def _withdraws(t: _Telling, *numbers: str) -> None:
    """Who asked withdraws what is left; not always."""
    for number in numbers:
        if t.rng.random() < 0.8:
            await t.cancels(number)


async def leaves_for_one_of_two(t: _Telling) -> None:
    gone, left = await _two_answered(t)
    await t.goes(gone)
    await _withdraws(t, left)


async def arrives_before_they_left(t: _Telling) -> None:
    """The ward closes its record late: the admission is the first that the other hospital hears of it."""
    gone, left = await _two_answered(t)
    receiver = t.tale.requests[gone][1]
    departs, arrives = t.leaving(t.asker, receiver), t.arriving(receiver)
    await t.says(receiver, arrives, "arrival", *t.arrived(gone), *t.left_behind(gone))
    outcomes: list[Outcome] = [(("accepted", heard),) for heard in t.left_before(gone)]
    await t.at_once("departure, late", [(t.asker, departs)], outcomes)
    t.state[gone] = "completed"
    await _withdraws(t, left)


async def departure_and_arrival_cross(t: _Telling) -> None:
    """Whichever is first, the other hospital hears of it."""
    gone, left = await _two_answered(t)
    receiver = t.tale.requests[gone][1]
    departs, arrives = t.leaving(t.asker, receiver), t.arriving(receiver)
    first: Outcome = (("accepted", t.leaving_for(gone)), ("accepted", t.arrived(gone)))
    arrived = (*t.arrived(gone), *t.left_behind(gone))
    outcomes = [first, *((("accepted", heard), ("accepted", arrived)) for heard in t.left_before(gone))]
    await t.at_once("departure and arrival", [(t.asker, departs), (receiver, arrives)], outcomes)
    t.state[gone] = "completed"
    await _withdraws(t, left)


async def turned_round_and_goes_to_the_other(t: _Telling) -> None:
    """The discharge is cancelled, which both hear; then they leave for the other one after all."""
    gone, left = await _two_answered(t, may_refuse=False)
    before, told = t.state[gone], t.left_behind(gone)
    await t.leaves(gone)
    back = t.epr(t.asker).reports(
        "A13", t.who(t.asker), encounter_number=t.stay(t.asker), at=t.at(), status="in-progress"
    )
    both = [*((who, gone) for who in t.tale.requests[gone]), *((each.to, each.request) for each in told)]
    await t.says(t.asker, back, "discharge cancelled", *((who, n, "transfer.corrected") for who, n in both))
    t.state[gone] = before
    await t.goes(left)
    await _withdraws(t, gone)


async def the_discharge_named_the_wrong_one(t: _Telling) -> None:
    gone, left = await _two_answered(t, may_refuse=False)
    await t.leaves(gone)
    receiver = t.tale.requests[left][1]
    await t.says(
        receiver, t.arriving(receiver), "arrival at the other", *t.arrived(left), *t.left_behind(left)
    )
    t.state[left] = "completed"
    failed = t.epr(t.asker).answers(
        t.who(t.asker), "failed", requester=t.epr(t.asker).profile, request_number=gone, at=t.at(), reason="OTH"
    )  # fmt: skip
    await t.says(t.asker, failed, "failed", (t.tale.requests[gone][1], gone, "transfer.failed"))
    t.state[gone] = "failed"


async def goes_home(t: _Telling) -> None:
    """Both hospitals that expect them are alarmed, and who asked them, once for each request."""
    gone, left = await _two_answered(t, may_refuse=False)
    both = [(who, n, "transfer.diverged") for n in (gone, left) for who in t.tale.requests[n]]
    await t.says(t.asker, t.leaving(t.asker, None, disposition="19"), "goes home", *both)
    await _withdraws(t, gone, left)


async def dies(t: _Telling) -> None:
    gone, left = await _two_answered(t, may_refuse=False)
    both = [(t.tale.requests[n][1], n, "transfer.patient.died") for n in (gone, left)]
    await t.says(t.asker, t.leaving(t.asker, None, disposition="79"), "dies", *both)
    t.state |= {gone: "cancelled", left: "cancelled"}


async def is_admitted_by_a_third(t: _Telling) -> None:
    """A hospital that nobody asked: all others hear that it has them, and it hears nothing, before and after."""
    gone, left = await _two_answered(t, may_refuse=False)
    third = t.others[0]
    t.keep_from(third, t.tale.name)
    admits = t.epr(third).admits(
        t.who(third), encounter_number=t.stay(third), ward="Ten", at=t.at(), source="19", method="21"
    )
    both = [(who, n, "transfer.diverged") for n in (gone, left) for who in t.tale.requests[n]]
    await t.says(third, admits, "admitted by a third", *both)
    await _withdraws(t, gone, left)


# ----------------------------------------------------------------------------------------------------------------------
# At the same time, instead of, and one after the other
# ----------------------------------------------------------------------------------------------------------------------


async def _says_yes_meanwhile(
    t: _Telling, number: str, what: str, by_asker: Message, heard: tuple[Heard, ...]
) -> None:
    """The asker says something that ends the request while its receiver accepts. If that is second, it is too late."""
    sender, receiver = t.tale.requests[number]
    t.may_use_rest -= {receiver}
    _, accepts, accepted = await t.answer(number, "accepted")
    await t.sees(receiver, number)
    outcomes: list[Outcome] = [
        (("accepted", heard), ("accepted", accepted)),
        (("accepted", heard), ("rejected", ())),
    ]
    await t.at_once(what, [(sender, by_asker), (receiver, accepts)], outcomes)


async def cancelled_while_accepted(t: _Telling) -> None:
    """One of two is no longer needed and has just accepted; the patient goes to the other, and it hears no more of that."""
    withdrawn, gone = await _asks_two(t)
    await t.both_answer(
        (withdrawn, t.rng.choice(((), ("received",)))), (gone, t.rng.choice(((), ("received",))))
    )
    cancels = (Heard(t.one, withdrawn, "transfer.cancelled"),)
    await _says_yes_meanwhile(t, withdrawn, "cancel and acceptance", t.cancelling(withdrawn), cancels)
    t.state[withdrawn] = "cancelled"
    await t.answers(gone, *t.rng.choice(_YES))
    await t.goes(gone)


async def redirected(t: _Telling) -> None:
    """Who was asked first, and has perhaps accepted or just accepts, hears that it is over, and nothing of where they go instead."""
    await t.is_in_bed(t.asker)
    first = await t.asks(t.asker, t.one)
    how = t.rng.choice(["meanwhile", *_ANSWERS, _REFUSES])
    if how != "meanwhile":
        await t.answers(first, *how)
    second = t.numbered()
    t.keep_from(t.one, second)
    instead = t.asking(t.asker, t.other, second, replaces=first, specialty="150")
    heard = (Heard(t.other, second, "transfer.requested"), Heard(t.one, first, "transfer.redirected"))
    if how == "meanwhile":
        await _says_yes_meanwhile(t, first, "redirect and acceptance", instead, heard)
    else:
        await t.says(t.asker, instead, "redirect", *heard)
    t.state[first] = "redirected"
    await t.answers(second, *t.rng.choice(_YES))
    if t.rng.random() < 0.5:
        await t.moves_ward(t.asker)
    await t.goes(second)


async def merged_while_two_are_asked(t: _Telling) -> None:
    """The asker has two records of the patient and asks by the one; then one is merged into the other, which both hospitals hear.
    By the record that is gone the departure is found, and by the number that only the other had the arrival.
    """
    t.may_use_rest -= {t.asker}
    local = t.patient.local[t.asker]
    nameless = replace(t.patient, local={t.asker: f"9{local}"})
    asks_by_it = t.rng.random() < 0.5
    registers = t.epr(t.asker).tells_of_patient
    if asks_by_it:
        await t.says(t.asker, registers("A28", t.patient, at=t.at()), "the record with a number")
        t.called[t.asker] = nameless
    else:
        await t.says(t.asker, _without_number(registers("A28", nameless, at=t.at())), "a record without one")
    gone, left = t.rng.sample(await _asks_two(t), 2)
    survivor = {"identifier": {"system": t.epr(t.asker).profile.identifier_systems.patient, "value": local}}
    linked = {"active": False, "link": [{"type": "replaced-by", "other": survivor}]}
    merge = _without_number(registers("A40", nameless, at=t.at(), **linked))
    both = [(who, n, "transfer.patient.identified") for n in (gone, left) for who in t.tale.requests[n]]
    await t.says(t.asker, merge, "merge", *both)
    t.called = {t.asker: nameless} if t.rng.random() < 0.5 else {}
    await t.both_answer((gone, t.rng.choice(_YES)), (left, t.rng.choice(_ANSWERS)))
    await t.goes(gone)
    t.called.clear()
    await _withdraws(t, left)


async def on_from_the_bed_they_came_to(t: _Telling) -> None:
    """From the first hospital to the second, whose discharge belongs to the next transfer and not to the one that brought them: of the
    way from there the first hospital hears only what it is asked itself.
    """
    await t.is_in_bed(t.asker)
    first = await t.asks(t.asker, t.one)
    await t.answers(first, *t.rng.choice(_YES))
    await t.goes(first)
    onward = await t.asks(t.one, t.other)
    t.keep_from(t.asker, onward)
    t.keep_from(t.other, first)
    if t.rng.random() < 0.5:
        home = await t.asks(t.one, t.asker, kind="repatriation")
        t.keep_from(t.other, home)
        await t.both_answer((onward, t.rng.choice(_YES)), (home, t.rng.choice(_ANSWERS)))
        await t.moves_ward(t.one)
        await t.goes(onward)
        await _withdraws(t, home)
    else:
        await t.answers(onward, *t.rng.choice(_YES))
        await t.goes(onward)


async def asked_by_two(t: _Telling) -> None:
    """Two hospitals have a bed of the patient's and ask the same one, which says yes to the one and takes them from there."""
    await t.is_in_bed(t.asker)
    await t.is_in_bed(t.other)
    numbers = [await t.asks(asker, t.one) for asker in (t.asker, t.other)]
    t.keep_from(t.asker, numbers[1])
    t.keep_from(t.other, numbers[0])
    gone, left = t.rng.sample(numbers, 2)
    await t.answers(left, *t.rng.choice((*_ANSWERS, _REFUSES)))
    await t.answers(gone, *t.rng.choice(_YES))
    if t.rng.random() < 0.5:
        await t.leaves(gone)
    await t.arrives(gone, origin=t.tale.requests[gone][0])
    await _withdraws(t, left)


TALES: tuple[Callable[[_Telling], Awaitable[None]], ...] = (
    leaves_for_one_of_two,
    cancelled_while_accepted,
    departure_and_arrival_cross,
    redirected,
    merged_while_two_are_asked,
    arrives_before_they_left,
    on_from_the_bed_they_came_to,
    turned_round_and_goes_to_the_other,
    asked_by_two,
    the_discharge_named_the_wrong_one,
    goes_home,
    dies,
    is_admitted_by_a_third,
)
"""Told in turn."""


async def tell(
    hospitals: "Hospitals", name: str, place: int, patient: Patient, delay: float, rng: random.Random
) -> None:
    """One tale, after `delay`. ``place``: of `TALES` the how manieth, from 0, and round again."""
    telling_it = TALES[place % len(TALES)]
    tale = Tale(name, telling_it.__name__, patient.nhs_number)
    hospitals.ledger.tales[name] = tale
    telling = _Telling(hospitals, tale, patient, rng)
    await asyncio.sleep(delay)
    try:
        await telling_it(telling)
        tale.states = dict(telling.state)
        tale.finished = True
    except GaveUpError as late:
        tale.waited_for = str(late)


# ----------------------------------------------------------------------------------------------------------------------
# Changes of a message
# ----------------------------------------------------------------------------------------------------------------------


def _edited(message: Message, change: Callable[[Any], None]) -> Message:
    tree = orjson.loads(message.body)
    change(tree)
    return Message({**message.headers, "x-request-id": str(uuid.uuid4())}, message.key, orjson.dumps(tree))


def _all_of(tree: Any, resource_type: str) -> list[Any]:
    found = [each["resource"] for each in tree.get("entry", ())] or [tree, *tree.get("contained", ())]
    return [each for each in found if each["resourceType"] == resource_type]


def _comes_from(tree: Any, site: str) -> None:
    origin = {"type": "Location", "identifier": {"system": _ODS_SITE, "value": site}}
    _all_of(tree, "Encounter")[0]["hospitalization"]["origin"] = origin


def _without_number(message: Message) -> Message:
    """The same without the patient's NHS number."""

    def change(tree: Any) -> None:
        for each in _all_of(tree, "Patient"):
            each["identifier"] = [i for i in each["identifier"] if i["system"] != _NHS_NUMBER]

    return _edited(message, change)
