"""The journey of one message, put together: understand (nothing known), then decide (with what the store knows).

Both are pure. `understand` is tried on each message by itself; `decide` in order, each seeing what the ones before did.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import TypedDict

from hub.audit.catalogue import TRANSFER_CODE
from hub.audit.entries import AuditEntry, Code, Outcome
from hub.codes.book import CodeBook
from hub.domain.clocks import Clocks
from hub.domain.ids import EventId, OdsCode, PersonId, TransferId, parse_uuid
from hub.domain.message import Canonical, FlagCode, Kind, Received
from hub.domain.rejection import Disposition, Rejection, Why
from hub.domain.roles import Role, may_do
from hub.domain.transfer import ALARMS, State, Step, Transfer, fold
from hub.domain.trust import Directory
from hub.domain.value import value
from hub.fhir import decimals, headers
from hub.fhir.outgoing import instant
from hub.journey.advance import advance, identity_changed
from hub.journey.disclose import KEPT_BACK, without_numbers
from hub.journey.effects import Effects, Happened, Outgoing
from hub.journey.identify import Identified, identify, somebody_new
from hub.journey.known import LINKED, FirstMessage, Known
from hub.journey.normalise import Rules, normalise
from hub.journey.read import Limits, read
from hub.journey.route import Told, event_type_of, news, receipt_for, told_of
from hub.journey.taken import Advanced, Taken
from hub.journey.which_transfer import ANOTHER_ADDRESSED, named_transfer


@value
class Understood:
    """A message as far as it can be understood alone. ``message_id`` is unique within the sending trust."""

    received: Received
    message_id: str
    sha256: str
    meaning: Canonical | Rejection
    dialect: str = ""
    """What it was read as; "" if it could not be read."""


@dataclass(frozen=True, slots=True)
class Journey:
    """The rules that all messages go by."""

    directory: Directory
    limits: Limits = field(default_factory=Limits)
    rules: Rules = field(default_factory=Rules)
    books: Mapping[str, CodeBook] = field(default_factory=dict)
    """ODS code of the sender → its code book; without one, codes stay as they were sent."""
    clocks: Clocks = field(default_factory=Clocks)
    """How long each part of a transfer may take; without limits no clock runs."""


def understand(received: Received, journey: Journey) -> Understood:
    """Steps 1 and 2. A fault of our own becomes this message's quarantine and nobody else's."""
    sha256 = hashlib.sha256(received.raw).hexdigest()
    dialect = ""
    try:
        book = journey.books.get(received.trust)
        found = read(received, journey.limits, journey.directory[received.trust], book)
        if isinstance(found, Rejection):
            meaning: Canonical | Rejection = found
        else:
            dialect = found.dialect.value
            meaning = normalise(received, found, journey.directory, journey.rules, book)
    except Exception as error:  # noqa: BLE001 - whatever it is, it must not reach the other messages
        meaning = _fault(error)
    return Understood(received, message_id_of(received, sha256), sha256, meaning, dialect)


def message_id_of(received: Received, sha256: str) -> str:
    """The sender's id for the message: X-Request-Id (BaRS); without one, its content is its id. A UUID is the same however it is written.

    Never Bundle.id: senders keep that through a chain of updates.
    """
    said = received.header(headers.REQUEST_ID)
    return parse_uuid(said) or said or f"sha256:{sha256}"


@value
class Choice:
    """A human's answer to a question that the hub asked: which transfer, or which person, is meant."""

    transfer_id: TransferId | None = None
    person_id: PersonId | None = None
    new_person: bool = False
    """It is somebody whom the hub has not met."""


def decide(
    understood: Understood,
    known: Known,
    journey: Journey,
    now: datetime,
    *,
    again: bool = False,
    choice: Choice | None = None,
) -> Effects:
    """Steps 3 to 5. ``known`` takes in what was decided. ``again``: a retry, so the id being used is no repetition;
    a human's brings their ``choice``, if only that it be run again.
    """
    first = None if again else _first(understood, known)
    if first is not None:
        return _repeated(understood, first, journey, now)
    try:
        effects = _decide(understood, known, journey, now, choice)
    except Exception as error:  # noqa: BLE001 - a bug in a step quarantines this message
        effects = _refused(understood, _fault(error), journey, now)
    _remember(effects, known)
    return effects


def _first(understood: Understood, known: Known) -> FirstMessage | None:
    """The message that had this id before; one from the time when the hub kept ids as they were written, also as it is written here."""
    trust = understood.received.trust
    written = understood.received.header(headers.REQUEST_ID)
    return known.messages.get((trust, understood.message_id)) or known.messages.get((trust, written))


def _fault(error: Exception) -> Rejection:
    """An exception's type and place; never its text, which may quote the message."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f"{trace.tb_frame.f_code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}" if trace else ""
    return Rejection(Why.HUB_FAULT, detail=f"{type(error).__name__} at {where}.")


def _decide(
    understood: Understood, known: Known, journey: Journey, now: datetime, by_hand: Choice | None
) -> Effects:
    canonical, choice = understood.meaning, by_hand or Choice()
    if isinstance(canonical, Rejection):
        return _refused(understood, canonical, journey, now)
    named = named_transfer(canonical, known, choice.transfer_id)
    if isinstance(named, Rejection):
        return _refused(understood, named, journey, now, canonical)
    hint = choice.person_id or (named.person_id if named else None)
    identified = (
        somebody_new(canonical, known)
        if choice.new_person
        else identify(
            canonical,
            known,
            hint,
            chosen=choice.person_id is not None,
            is_their_transfer=choice.transfer_id is not None,
        )
    )
    if isinstance(identified, Rejection):
        if canonical.about and len(identified.candidates) > 1:
            identified = ANOTHER_ADDRESSED
        return _refused(understood, identified, journey, now, canonical)
    merges = {each.loser: each.survivor for each in identified.merged if each.survivor is not None}
    with known.merged({} if identified.created else merges):
        return _act(
            understood, canonical, identified, named, known, journey, now, by_hand=by_hand is not None
        )


def _act(
    understood: Understood,
    canonical: Canonical,
    identified: Identified,
    named: Transfer | None,
    known: Known,
    journey: Journey,
    now: datetime,
    *,
    by_hand: bool,
) -> Effects:
    """What it does, of a person who is known."""
    # A record that was to be made for this message is not made when the message is refused.
    whom = None if identified.created else identified.person_id
    theirs = {each.id for each in known.group(identified.person_id)}
    if canonical.person.told_as is not None and canonical.person.told_as not in theirs:
        return _refused(understood, ANOTHER_ADDRESSED, journey, now, canonical, person_id=whom)
    if named and named.person_id not in theirs:
        another = ANOTHER_ADDRESSED if canonical.about else _TRANSFER_OF_ANOTHER
        return _refused(understood, another, journey, now, canonical)
    if named is not None:
        canonical = _after_what_it_is_about(canonical, named)
    advanced = advance(canonical, identified.person_id, named, known)
    if isinstance(advanced, Rejection):
        return _refused(understood, advanced, journey, now, canonical, person_id=whom)
    # Whatever way the message found what it moves: it is what its address names, or nothing.
    acts = _acts(advanced.taken)
    moved = [each.transfer.id for each in advanced.taken if each.fact.step in acts]
    if canonical.about and moved != [canonical.about]:
        return _refused(understood, ANOTHER_ADDRESSED, journey, now, canonical, person_id=whom)
    if not may_do(_role(canonical.received), acts):
        not_allowed = Rejection(Why.ROLE_NOT_ALLOWED, "Authorization")
        return _refused(understood, not_allowed, journey, now, canonical, person_id=whom)
    if identified.changed and canonical.kind is Kind.PATIENT and not advanced.taken:
        advanced = identity_changed(canonical, _transfers_of(identified, known), identified.basis)
    told = told_of(canonical, advanced)
    for each in told:
        # Somebody who has left: that nobody else is told, a human may decide.
        if each.to not in journey.directory and not by_hand:
            unknown = Rejection(Why.RECEIVER_UNKNOWN, detail=f"{each.to} is a party of the transfer.")
            return _refused(understood, unknown, journey, now, canonical, person_id=whom)
    return _accepted(understood, canonical, identified, advanced, told, known, journey, now)


_TRANSFER_OF_ANOTHER = Rejection(
    Why.NEEDS_CONFIRMATION,
    "identifier",
    "The transfer that the message names is another person's. Say which transfer is meant.",
)


def _after_what_it_is_about(canonical: Canonical, transfer: Transfer) -> Canonical:
    """A decision with the time at which it was made, after all that it was made on: otherwise it would stand before that, and move nothing.

    * Who says on which version they decide knows what had happened by then, whatever their clock says. Who puts the Task back as it was read
      at that version says it too, though without If-Match.
    * What is put or patched at an address with a time that the Task was once read with was decided now: nobody has changed the time. A Task
      is read to the millisecond, some systems write it back to the second, and what it tells of can have happened a moment later.
    * What says no time, or one that is no time, was decided now, also where somebody else's clock is ahead.
    * A draft that is sent off with the time at which it was written is asked now.
    """
    at, now = canonical.occurred_at, canonical.received.received_at
    moved = [move.fact.occurred_at for move in fold(transfer.facts) if move.after is not None]
    last = max(moved, default=transfer.requested_at)
    is_now = knows_all = False
    if canonical.kind is Kind.ANSWER:
        is_now = canonical.about is not None and (at == now or _was_read(at, transfer))
        knows_all = transfer.version in {canonical.expected_version, _version_put_back(canonical)}
    elif canonical.kind is Kind.REQUEST and canonical.status != "draft":
        is_now = transfer.state is State.DRAFT and at <= last
    if is_now or (knows_all and at <= last):
        at = max(now if is_now else at, last + timedelta(microseconds=1))
    return replace(canonical, occurred_at=at)


def _was_read(at: datetime, transfer: Transfer) -> bool:
    """Whether a time is one that the Task of the transfer was read with, at this version or an earlier one."""
    times = {transfer.requested_at, transfer.changed_at or transfer.requested_at}
    times |= {time for fact in transfer.facts for time in (fact.occurred_at, fact.received_at)}
    return any(instant(at) == instant(each) or at == each.replace(microsecond=0) for each in times)


def _version_put_back(canonical: Canonical) -> int | None:
    """The version of the Task that is put at its own address, as far as it is the hub's: another server's Task has versions of its own."""
    if canonical.about is None:
        return None
    resources = (each["resource"] for each in canonical.resources)
    own = any((each["resourceType"], each.get("id")) == ("Task", canonical.about) for each in resources)
    return canonical.sequence if own else None


def _role(received: Received) -> Role:
    """Whose words they are. Only the facade proves a role: whatever a record in Kafka says of one is a system's."""
    said = received.proved(headers.ROLE)
    return Role(said) if said else Role.SYSTEM


def _acts(taken: Sequence[Taken]) -> set[Step]:
    """What a message does. That another hospital is told that the patient does not come is what follows of it, and nobody's act."""
    steps = {each.fact.step for each in taken}
    return steps - {Step.DIVERGE} or steps


def _transfers_of(identified: Identified, known: Known) -> list[Transfer]:
    """The transfers of everybody whose records were merged or parted."""
    ids = {identified.person_id, *(each for m in identified.merged for each in (m.loser, m.survivor) if each)}
    found = {t.id: t for each in ids if each in known.persons for t in known.transfers_of_person(each)}
    return [found[each] for each in sorted(found)]


def _accepted(
    understood: Understood,
    canonical: Canonical,
    identified: Identified,
    advanced: Advanced,
    told: Sequence[Told],
    known: Known,
    journey: Journey,
    now: datetime,
) -> Effects:
    first = next(iter(advanced.taken), None)
    happened = Happened(
        canonical,
        event_type_of(first) if first else canonical.event_type,
        identified,
        advanced,
        tuple(dict.fromkeys((*canonical.flags, *advanced.flags))),
        tuple(map(decimals.dumps, canonical.resources)),
    )
    sensitive = _is_sensitive(identified, known)
    receipt = receipt_for(
        canonical.received,
        understood.message_id,
        Disposition.ACCEPTED,
        None,
        journey.directory,
        canonical.bundle_id,
    )
    outbox = (*news(_as_told(happened, known), told, journey.directory, sensitive=sensitive), receipt)
    return Effects(
        understood.received,
        understood.message_id,
        understood.sha256,
        Disposition.ACCEPTED,
        None,
        None,
        happened,
        outbox,
        tuple(_audit_accepted(understood, happened, outbox, now, sensitive=sensitive)),
    )


def _as_told(happened: Happened, known: Known) -> Happened:
    """What others are told of it: without numbers that were found not to be the patient's, which a human's answer lets it give all the same."""
    others = known.not_theirs(known.group(happened.identified.person_id))
    if not others:
        return happened
    canonical = happened.canonical
    resources = without_numbers(canonical.resources, canonical.patient_url, canonical.trust, others)
    return replace(
        happened,
        canonical=replace(canonical, resources=resources),
        written=tuple(map(decimals.dumps, resources)),
    )


def _is_sensitive(identified: Identified, known: Known) -> bool:
    """Whether any record of the person is restricted, this message included."""
    if identified.sensitivity in {"R", "V"}:
        return True
    taken_back = (identified.record_id or identified.person_id) if identified.sensitivity else None
    records = [identified.created] if identified.created else known.group(identified.person_id)
    return any(each.sensitivity in {"R", "V"} and each.id != taken_back for each in records)


def _audit_accepted(
    understood: Understood,
    happened: Happened,
    outbox: tuple[Outgoing, ...],
    now: datetime,
    *,
    sensitive: bool,
) -> list[AuditEntry]:
    canonical, identified = happened.canonical, happened.identified
    entry: Callable[..., AuditEntry] = partial(
        AuditEntry,
        at=now,
        system=understood.received.door,
        trust=canonical.trust,
        event_id=canonical.event_id,
        person_id=identified.person_id,
        transfer_id=happened.transfer_id,
        occurred_at=canonical.occurred_at,
        **_by(understood),
    )
    flags = [flag.code for flag in happened.flags]
    entries = [
        entry(Code.MESSAGE_RECEIVED, detail=_message_detail(understood)),
        _audit_understood(happened, flags, entry),
        *(entry(_NOTED[flag], detail={"flag": flag}) for flag in flags if flag in _NOTED),
        *(entry(code, detail=detail) for code, detail in _audit_identity(identified)),
    ]
    for taken in happened.taken:
        entries.append(_audit_taken(taken, entry))
        if taken.came_late:
            late = {"step": taken.fact.step}
            entries.append(entry(Code.OUT_OF_ORDER, detail=late, transfer_id=taken.transfer.id))
    routed: dict[str, list[Outgoing]] = {}
    for out in outbox:
        if out.transfer_id:
            routed.setdefault(out.transfer_id, []).append(out)
    for transfer_id, outs in routed.items():
        routes = [{"to": out.receiver, "topic": out.topic} for out in outs]
        told = {"routes": routes}
        entries.append(entry(Code.ROUTED, detail=told, transfer_id=transfer_id, counterpart=routes[0]["to"]))
    if sensitive and routed:
        kept_back = {"kept_back": list(KEPT_BACK)}
        entries.append(entry(Code.SENSITIVITY_APPLIED, detail=kept_back))
    return entries


_NOTED = {
    FlagCode.CLOCK_SKEW: Code.CLOCK_SKEW,
    FlagCode.TIME_ZONE_ASSUMED: Code.TIME_ZONE_ASSUMED,
}
"""Doubts about times: each has an entry of its own, since the order of events hangs on it."""


class _By(TypedDict):
    request_id: str
    user_id: str | None
    role_id: str | None
    client_id: str | None


def _by(understood: Understood) -> _By:
    """Which request it was and who signed in to send it, as far as the door can prove that."""
    proved = understood.received.proved
    return {
        "request_id": understood.message_id,
        "user_id": proved(headers.USER) or None,
        "role_id": proved(headers.ROLE_ID) or None,
        "client_id": proved(headers.CLIENT) or None,
    }


def _audit_understood(
    happened: Happened, flags: Sequence[str], entry: Callable[..., AuditEntry]
) -> AuditEntry:
    """That it was understood, and what had to be changed or doubted for that."""
    changes: dict[str, int] = {}
    for change in happened.canonical.changes:
        changes[change.rule] = changes.get(change.rule, 0) + 1
    said: dict[str, object] = {"event_type": happened.event_type}
    if not changes and not flags:
        return entry(Code.MESSAGE_ACCEPTED, detail=said)
    return entry(Code.MESSAGE_REPAIRED, detail=said | {"changes": changes, "flags": list(flags)})


def _audit_identity(identified: Identified) -> Iterator[tuple[Code, dict[str, object]]]:
    """What is new about who this is: kinds of identifiers and the hub's own ids, never a number."""
    if identified.created or identified.new_keys or identified.birth_date:
        code = Code.IDENTITY_UNMATCHED if identified.created else Code.IDENTITY_MATCHED
        born = {"birth_date": "learned"} if identified.birth_date else {}
        yield code, {"new_identifiers": sorted(key.authority for key in identified.new_keys), **born}
    if identified.superseded:
        yield Code.IDENTITY_SUPERSEDED, {}
    for each in identified.merged:
        code = Code.IDENTITY_MERGED if each.survivor else Code.IDENTITY_UNMERGED
        yield code, {"loser": each.loser, "survivor": each.survivor, "basis": each.basis}
    if identified.sensitivity:
        yield Code.SENSITIVITY_CHANGED, {"to": identified.sensitivity}


def _audit_taken(taken: Taken, entry: Callable[..., AuditEntry]) -> AuditEntry:
    transfer = taken.transfer
    detail = taken.detail
    if taken.created and transfer.inferred:
        detail["inferred"] = True
    adopted = [fact.event_id for fact in taken.facts if fact is not taken.fact]
    if adopted:
        detail["with_events"] = adopted
    outcome = Outcome.SUCCESS
    if taken.moved_without_acceptance:
        detail["without_acceptance"] = True
        outcome = Outcome.MINOR_FAILURE
    code = Code.TRANSFER_CREATED if taken.created else TRANSFER_CODE[event_type_of(taken)]
    return entry(code, detail=detail, transfer_id=transfer.id, outcome=outcome)


def _message_detail(understood: Understood) -> dict[str, object]:
    received = understood.received
    said: dict[str, object] = {"sha256": understood.sha256, "bytes": len(received.raw)}
    at = received.position
    return said | ({"topic": at.topic, "partition": at.partition, "offset": at.offset} if at else {})


_REFUSAL_CODE = {
    Disposition.QUARANTINED: Code.MESSAGE_QUARANTINED,
    Disposition.REJECTED: Code.MESSAGE_REJECTED,
    Disposition.CONFLICT: Code.MESSAGE_CONFLICT,
    Disposition.DUPLICATE: Code.MESSAGE_DUPLICATE,
}
_REFUSAL_OUTCOME = {
    Disposition.QUARANTINED: Outcome.SERIOUS_FAILURE,
    Disposition.REJECTED: Outcome.MINOR_FAILURE,
    Disposition.CONFLICT: Outcome.SERIOUS_FAILURE,
    Disposition.DUPLICATE: Outcome.SUCCESS,
}


def _refused(
    understood: Understood,
    rejection: Rejection,
    journey: Journey,
    now: datetime,
    canonical: Canonical | None = None,
    first: FirstMessage | None = None,
    person_id: PersonId | None = None,
) -> Effects:
    disposition = rejection.ruling.disposition
    received = understood.received
    receipt = receipt_for(
        received,
        understood.message_id,
        disposition,
        rejection,
        journey.directory,
        canonical.bundle_id if canonical else None,
    )
    return Effects(
        received,
        understood.message_id,
        understood.sha256,
        disposition,
        rejection,
        first.event_id if first else None,
        None,
        (receipt,),
        tuple(_audit_refused(understood, disposition, rejection, canonical, first, now, person_id)),
    )


def _audit_refused(
    understood: Understood,
    disposition: Disposition,
    rejection: Rejection | None,
    canonical: Canonical | None,
    first: FirstMessage | None,
    now: datetime,
    person_id: PersonId | None = None,
) -> list[AuditEntry]:
    received, by = understood.received, _by(understood)
    transfer_id = first.transfer_id if first else None
    person_id = first.person_id if first else person_id
    occurred_at = canonical.occurred_at if canonical else None
    detail: dict[str, object] = {"first_event_id": first.event_id} if first else {}
    if rejection is not None:
        detail |= {"why": rejection.why, "at": rejection.at, "owner": rejection.ruling.owner}
        detail |= {"candidates": list(rejection.candidates)} if rejection.candidates else {}
        detail |= {"claimed": rejection.claimed} if rejection.claimed else {}

    def entry(code: Code, outcome: Outcome, said: dict[str, object]) -> AuditEntry:
        return AuditEntry(
            code,
            now,
            received.door,
            outcome,
            trust=received.trust,
            event_id=received.event_id,
            person_id=person_id,
            transfer_id=transfer_id,
            occurred_at=occurred_at,
            detail=said,
            **by,
        )

    entries = [entry(Code.MESSAGE_RECEIVED, Outcome.SUCCESS, _message_detail(understood))]
    if rejection is not None and rejection.why is Why.SENDER_NOT_TOPIC_OWNER:
        entries.append(entry(Code.ORGANISATION_MISMATCH, Outcome.SERIOUS_FAILURE, detail))
    if rejection is not None and rejection.why is Why.TRANSITION_DENIED:
        entries.append(entry(Code.TRANSITION_DENIED, Outcome.MINOR_FAILURE, detail))
    entries.append(entry(_REFUSAL_CODE[disposition], _REFUSAL_OUTCOME[disposition], detail))
    return entries


def _repeated(understood: Understood, first: FirstMessage, journey: Journey, now: datetime) -> Effects:
    """The id was used before: the same bytes, or the same request, are a duplicate, others a conflict.

    A duplicate of a message that failed is told the failure again, not that it was delivered (BaRS, errors).
    """
    if not first.is_repeated_by(understood.sha256, understood.received.proved(headers.REQUEST_SHA256)):
        return _refused(
            understood, Rejection(Why.MESSAGE_ID_REUSED, headers.REQUEST_ID), journey, now, first=first
        )
    failure = Rejection(first.why, first.at, first.detail) if first.why else None
    told_as = first.disposition if failure else Disposition.DUPLICATE
    receipt = receipt_for(understood.received, understood.message_id, told_as, failure, journey.directory)
    return Effects(
        understood.received,
        understood.message_id,
        understood.sha256,
        Disposition.DUPLICATE,
        failure,
        first.event_id,
        None,
        (receipt,),
        tuple(_audit_refused(understood, Disposition.DUPLICATE, failure, None, first, now)),
    )


def _remember(effects: Effects, known: Known) -> None:
    happened, rejection = effects.happened, effects.rejection
    first_taken = happened.first if happened else None
    known.messages[(effects.received.trust, effects.message_id)] = FirstMessage(
        EventId(effects.received.event_id),
        effects.sha256,
        effects.disposition,
        rejection.why if rejection else None,
        rejection.at if rejection else "",
        rejection.detail if rejection else "",
        first_taken.transfer.id if first_taken else None,
        happened.identified.person_id if happened else None,
        effects.received.proved(headers.REQUEST_SHA256),
    )
    if happened is None:
        return
    _remember_person(happened.identified, happened.canonical.trust, known)
    for taken in happened.taken:
        known.add_transfer(taken.transfer)
        for fact in taken.facts:
            if fact.step not in ALARMS:
                known.remove_stay(fact.event_id)
    # As the database has it: a stay whose news went to a transfer's receiver belongs to that transfer, moved or not. What took something back
    # is looked at again, also when a transfer that became known after it has taken it in.
    # What a draft's receiver told is still to be looked at when the request is made, and what was only an alarm when the request comes that it is
    # an arrival by: a hospital's topic can be hours behind another's.
    stay = happened.canonical.stay
    is_drafts = any(
        each.transfer.state is State.DRAFT and each.transfer.receiver == happened.canonical.trust
        for each in happened.taken
    )
    is_alarm = bool(happened.taken) and {each.fact.step for each in happened.taken} <= ALARMS
    if stay is not None and (happened.transfer_id is None or is_drafts or is_alarm):
        known.add_stay(happened.identified.person_id, stay)


def _remember_person(identified: Identified, trust: OdsCode, known: Known) -> None:
    if identified.created is not None:
        known.add_person(identified.created)
    person = known.persons[identified.record_id or identified.person_id]
    if identified.created is None:
        person.keys.update(identified.new_keys)
        person.birth_date = person.birth_date or identified.birth_date
    if identified.sensitivity is not None:
        person.sensitivity = None if identified.sensitivity == "U" else identified.sensitivity
        person.restricted_by = trust if person.sensitivity else None
    if person is not identified.created:
        known.add_person(person)
    for each in identified.merged:
        loser = known.persons[each.loser]
        loser.merged_into = each.survivor
        loser.merged_by = trust if each.basis == LINKED else None
        known.add_person(loser)
