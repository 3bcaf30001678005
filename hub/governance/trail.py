"""One transfer's story, told from its audit entries to somebody on a ward: times in London, plain words, no codes.

Told in the order in which things happened, not in which the hub heard of them. Nothing in it comes from a
message's body, and no patient is named.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from hub.audit.catalogue import TRANSFER_CODES
from hub.audit.entries import Code
from hub.domain.message import FlagCode
from hub.domain.transfer import HUB, State, Step

Row = Mapping[str, Any]

_LONDON = ZoneInfo("Europe/London")
_LATE = timedelta(minutes=10)
"""Heard of this much later than it happened, and it is said."""
_SHORT = timedelta(minutes=10)
"""A story shorter than this is told with seconds: with minutes alone everything would happen at once."""

_STEPS: Mapping[str, str] = {
    Step.DRAFT: "{by} began to prepare a request.",
    Step.REQUEST: "{by} asked {other} to take a patient.",
    Step.UPDATE: "{by} changed its request.",
    Step.CANCEL: "{by} withdrew.",
    Step.VOID: "{by} said that its request was a mistake.",
    Step.RECEIVE: "{by} has seen the request.",
    Step.QUERY: "{by} asked for more information.",
    Step.ANSWER_QUERY: "{by} gave the information.",
    Step.ACCEPT: "{by} accepted.",
    Step.REJECT: "{by} refused{reason}.",
    Step.REDIRECT: "{by} sends the patient elsewhere{reason}.",
    Step.AWAIT_BED: "{by} accepted and is waiting for a bed.",
    Step.ALLOCATE_BED: "{by} has a bed ready.",
    Step.RELEASE_BED: "The bed is no longer held.",
    Step.BOOK_TRANSPORT: "{by} has booked transport.",
    Step.DEPART: "The patient left {by} for {other}.",
    Step.ARRIVE: "The patient arrived at {by}.",
    Step.ADMIT: "{by} admitted the patient.",
    Step.RETURN: "The patient is back at {by}.",
    Step.FAIL: "{by} said that the transfer has failed{reason}.",
    Step.DIE: "{by}'s record says that the patient has died.",
    Step.DIVERGE: "Take note: the records do not agree. {why}.",
    Step.CONFIRM: "{by} confirmed the transfer, which nobody had asked for.",
    Step.IDENTIFY: "{by} corrected its records of who the patient is.",
    Step.RETRACT: "{by} took something back. {why}.",
    Step.ESCALATE: "Nobody acted in time. {why}.",
    Step.EXPIRE: "The duty team closed the transfer: nobody had acted.",
}
_REQUESTED_AGAIN = "{by} sent its request again."
_REASONS = {
    "RRNA": "what is needed is not available in time",
    "OTH": "for another reason than those on the list",
}
_NO_CHANGE_EXPECTED = frozenset({Step.REQUEST.value, Step.UPDATE.value})

_NOTES: Mapping[str, str] = {
    FlagCode.MOVED_WITHOUT_ACCEPTANCE: "Take note: the patient left before {other} had accepted.",
    FlagCode.CLOCK_SKEW: "The clock of {by}'s system was ahead, so this is the time at which the hub heard of it.",
    FlagCode.EVENT_TIME_ASSUMED: "{by} did not say when, so this is the time at which the hub heard of it.",
}
_SET_ASIDE: Mapping[str, str] = {
    Code.MESSAGE_DUPLICATE: "{by} sent one of its messages again. Nothing was done twice.",
    Code.MESSAGE_CONFLICT: "{by} sent a different message under an old message's number. It was not acted on.",
    Code.MESSAGE_REJECTED: "{by} sent something that this transfer does not allow. It was not acted on, and {by} was told.",
    Code.MESSAGE_QUARANTINED: "{by} sent something that could not be used. It is kept until it is put right, and {by} was told.",
}
_STATES: Mapping[str, str] = {
    State.DRAFT: "{sender} is preparing the request and has not sent it.",
    State.REQUESTED: "{receiver} has been asked and has not answered yet.",
    State.RECEIVED: "{receiver} has seen the request and has not decided yet.",
    State.INFO_REQUESTED: "{receiver} has asked a question that {sender} has not answered yet.",
    State.ACCEPTED: "{receiver} has accepted. It has not said yet that a bed is ready.",
    State.AWAITING_BED: "{receiver} has accepted and has no bed yet.",
    State.REJECTED: "{receiver} has refused. {sender} can withdraw the request, or ask another hospital.",
    State.REDIRECTED: "{receiver} will not take the patient; another hospital is asked.",
    State.BED_ALLOCATED: "A bed is ready at {receiver}. The patient has not left {sender} yet.",
    State.TRANSPORT_BOOKED: "A bed is ready at {receiver} and transport is booked. The patient has not left {sender} yet.",
    State.IN_TRANSIT: "The patient is on the way to {receiver}.",
    State.ARRIVED: "The patient has arrived at {receiver} and is not admitted yet.",
    State.COMPLETED: "The patient has arrived at {receiver}. The transfer is complete.",
    State.CANCELLED: "{sender} withdrew the request. The transfer will not take place.",
    State.ENTERED_IN_ERROR: "There was no such transfer: it was recorded by mistake.",
    State.FAILED: "The transfer failed: the patient did not come to stay at {receiver}.",
    State.EXPIRED: "Nobody acted in time, and the transfer was closed.",
}


@dataclass(slots=True)
class _Event:
    """The entries of one message."""

    entries: list[Row] = field(default_factory=list)

    def first(self, *codes: Code) -> Row | None:
        return next((row for row in self.entries if row["code"] in codes), None)

    @property
    def moved(self) -> Row | None:
        return self.first(*TRANSFER_CODES)

    @property
    def happened_at(self) -> datetime:
        """When it happened; for what was not acted on, when it came."""
        heard_at = self.heard_at
        told: datetime | None = self.moved["occurred_at"] if self.moved else None
        return told or heard_at

    @property
    def heard_at(self) -> datetime:
        found: datetime = min(row["at"] for row in self.entries)
        return found


def tell(
    transfer_row: Row, audit_entries: Sequence[Row], names_of_trusts: Mapping[str, str]
) -> Iterator[str]:
    """The story line by line, and how things stand at its end.

    ``transfer_row`` and ``audit_entries`` are as `hub.store.queries` gives them; ``names_of_trusts`` is ODS code → name.
    """
    names = {ods: short_name(name) for ods, name in names_of_trusts.items()}
    sender, receiver = (_name(names, transfer_row[end]) for end in ("sender", "receiver"))
    events = _in_order(audit_entries)
    requested_at: datetime = transfer_row["requested_at"]
    times_told = [requested_at, *(at for event in events for at in (event.happened_at, event.heard_at))]
    clock = "%H:%M:%S" if max(times_told) - min(times_told) < _SHORT else "%H:%M"
    day = _london(requested_at).date()
    yield f"Transfer from {sender} to {receiver}, asked for on {_day(day)}"
    yield ""
    for event in events:
        happened_on = _london(event.happened_at).date()
        if happened_on != day:
            day = happened_on
            yield f"{_day(day)}:"
        yield from _tell_event(event, transfer_row, names, clock)
    yield ""
    yield "Now: " + _STATES[transfer_row["state"]].format(sender=sender, receiver=receiver)
    reads = [row["at"] for row in audit_entries if row["code"] == Code.AUDIT_READ]
    if reads:
        times = "once" if len(reads) == 1 else f"{len(reads)} times"
        yield f"This record was looked at {times} before now, last on {_day(_london(max(reads)).date())} at {_london(max(reads)):%H:%M}."


def short_name(name: str) -> str:
    """A trust's name without what every trust's name ends in."""
    return re.sub(r" (University Healthcare |University )?NHS (Foundation )?Trust$", "", name)


def _in_order(entries: Iterable[Row]) -> list[_Event]:
    """By what happened first; the request opens the story whatever its time says."""
    events: dict[str, _Event] = {}
    for row in entries:
        if row["event_id"] is not None:
            events.setdefault(row["event_id"], _Event()).entries.append(row)
    worth_telling = [each for each in events.values() if each.moved or each.first(*map(Code, _SET_ASIDE))]
    return sorted(
        worth_telling,
        key=lambda each: (each.first(Code.TRANSFER_CREATED) is None, each.happened_at, each.heard_at),
    )


def _tell_event(event: _Event, transfer: Row, names: Mapping[str, str], clock: str) -> Iterator[str]:
    act = event.moved or event.first(*map(Code, _SET_ASIDE))
    assert act is not None, "only such events are told"
    at = f"{_london(event.happened_at):{clock}}"
    indent = " " * len(at)
    other = transfer["receiver"] if act["trust"] == transfer["sender"] else transfer["sender"]
    people = {"by": _name(names, act["trust"]), "other": _name(names, other)}
    yield f"{at}  {_sentence(act, people, names)}"
    for note in _notes(event, act, people, clock):
        yield f"{indent}  {note}"
    for told in _told(event, names, clock):
        yield f"{indent}  {told}"


def _in_words(why: str, names: Mapping[str, str]) -> str:
    """The record's own sentence with names for codes, and without what stands in brackets."""

    def name(found: re.Match[str]) -> str:
        return _name(names, found[0][:3]) if found[0][:3] in names else found[0]

    return re.sub(r"\b[A-Z0-9]{3}(?:[A-Z0-9]{2})?\b", name, re.sub(r" \([^()]*\)$", "", why))


def _sentence(act: Row, people: Mapping[str, str], names: Mapping[str, str]) -> str:
    if act["code"] in _SET_ASIDE:
        return _SET_ASIDE[act["code"]].format(**people)
    step = act["detail"].get("step")
    sentence = _STEPS.get(step, "{by} sent news of the transfer.")
    if step == Step.REQUEST and act["code"] != Code.TRANSFER_CREATED:
        sentence = _REQUESTED_AGAIN
    why = act["detail"].get("why") or ""
    return sentence.format(**people, reason=_reason(why), why=_in_words(why, names))


def _reason(why: str) -> str:
    """The words for the reason codes at the end of the entry's sentence; a code that has no words is left out."""
    found = re.search(r"\(([^()]*)\)$", why)
    codes = found.group(1).split(", ") if found else []
    words = [_REASONS[code] for code in codes if code in _REASONS]
    return f": {'; '.join(words)}" if words else ""


def _notes(event: _Event, act: Row, people: Mapping[str, str], clock: str) -> Iterator[str]:
    if act is not event.moved:
        return
    heard_at = _london(event.heard_at)
    if event.heard_at - event.happened_at > _LATE:
        same_day = heard_at.date() == _london(event.happened_at).date()
        yield f"The hub heard of it at {heard_at:{clock}}{'' if same_day else f' on {_day(heard_at.date())}'}."
    detail = act["detail"]
    if detail.get("from") == detail.get("to") and detail.get("step") not in _NO_CHANGE_EXPECTED:
        yield "This was news only; it did not change how the transfer stood."
    normalised = event.first(Code.MESSAGE_REPAIRED, Code.MESSAGE_ACCEPTED)
    for flag in normalised["detail"].get("flags", ()) if normalised else ():
        if flag in _NOTES:
            yield _NOTES[flag].format(**people)


def _told(event: _Event, names: Mapping[str, str], clock: str) -> Iterator[str]:
    """To whom the news went, and whether it has got there."""
    routed = event.first(Code.ROUTED)
    delivered = {
        row["counterpart"]: row["at"] for row in event.entries if row["code"] == Code.DISCLOSURE_SENT
    }
    for route in routed["detail"].get("routes", ()) if routed else ():
        name = _name(names, route["to"])
        at = delivered.get(route["to"])
        if at is None:
            yield f"{name} is to be told. The message has not been delivered yet."
            continue
        same_day = _london(at).date() == _london(event.happened_at).date()
        day = "" if same_day else f" on {_day(_london(at).date())}"
        yield f"{name} was told: delivered at {_london(at):{clock}}{day}."


def _name(names: Mapping[str, str], ods: str | None) -> str:
    return "The hub" if ods == HUB else names.get(ods or "", "a trust that the hub no longer knows")


def _london(at: datetime) -> datetime:
    return at.astimezone(_LONDON)


def _day(day: date) -> str:
    return f"{day:%A} {day.day} {day:%B %Y}"
