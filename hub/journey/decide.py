"""The journey of one message, put together: understand (nothing known), then decide (with what the store knows).

Both are pure. `understand` is tried on each message by itself; `decide` in order, each seeing what the ones before did.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from hub.audit.entries import AuditEntry, Code, Outcome
from hub.codes.book import CodeBook
from hub.domain.ids import EventId
from hub.domain.message import Canonical, Received
from hub.domain.rejection import Disposition, Rejection, Why
from hub.domain.transfer import EVENT_TYPE
from hub.domain.trust import Directory
from hub.fhir import headers
from hub.journey.advance import Advanced, advance, named_transfer
from hub.journey.effects import Effects, Happened, Outgoing
from hub.journey.identify import Identified, identify
from hub.journey.known import FirstMessage, Known
from hub.journey.normalise import Rules, normalise
from hub.journey.read import Limits, read
from hub.journey.route import news, receipt_for


@dataclass(frozen=True, slots=True)
class Understood:
    """A message as far as it can be understood alone. ``message_id`` is unique within the sending trust."""

    received: Received
    message_id: str
    sha256: str
    meaning: Canonical | Rejection


@dataclass(frozen=True, slots=True)
class Journey:
    """The rules that all messages go by."""

    directory: Directory
    limits: Limits = field(default_factory=Limits)
    rules: Rules = field(default_factory=Rules)
    books: Mapping[str, CodeBook] = field(default_factory=dict)
    """ODS code of the sender → its code book; without one, codes stay as they were sent."""


def understand(received: Received, journey: Journey) -> Understood:
    """Steps 1 and 2. A fault of our own becomes this message's quarantine and nobody else's."""
    sha256 = hashlib.sha256(received.raw).hexdigest()
    try:
        found = read(received, journey.limits, journey.directory[received.trust])
        meaning = (
            found
            if isinstance(found, Rejection)
            else normalise(
                received, found, journey.directory, journey.rules, journey.books.get(received.trust)
            )
        )
    except Exception as error:  # noqa: BLE001 - whatever it is, it must not reach the other messages
        meaning = _fault(error)
    return Understood(received, message_id_of(received, sha256), sha256, meaning)


def message_id_of(received: Received, sha256: str) -> str:
    """The sender's id for the message: X-Request-Id (BaRS); without one, its content is its id.

    Never Bundle.id: senders keep that through a chain of updates.
    """
    return received.header(headers.REQUEST_ID) or f"sha256:{sha256}"


def decide(
    understood: Understood, known: Known, journey: Journey, now: datetime, *, again: bool = False
) -> Effects:
    """Steps 3 to 5. ``known`` takes in what was decided. ``again``: a retry, so the id being used is no repetition."""
    received = understood.received
    first = None if again else known.messages.get((received.trust, understood.message_id))
    if first is not None:
        return _repeated(understood, first, journey, now)
    try:
        effects = _decide(understood, known, journey, now)
    except Exception as error:  # noqa: BLE001 - a bug in a step quarantines this message
        effects = _refused(understood, _fault(error), journey, now)
    _remember(effects, known)
    return effects


def _fault(error: Exception) -> Rejection:
    """An exception's type and place; never its text, which may quote the message."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f"{trace.tb_frame.f_code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}" if trace else ""
    return Rejection(Why.HUB_FAULT, detail=f"{type(error).__name__} at {where}.")


def _decide(understood: Understood, known: Known, journey: Journey, now: datetime) -> Effects:
    canonical = understood.meaning
    if isinstance(canonical, Rejection):
        return _refused(understood, canonical, journey, now)
    named = named_transfer(canonical, known)
    if isinstance(named, Rejection):
        return _refused(understood, named, journey, now, canonical)
    identified = identify(canonical, known, named.person_id if named else None)
    if isinstance(identified, Rejection):
        return _refused(understood, identified, journey, now, canonical)
    advanced = advance(canonical, identified.person_id, named, known)
    if isinstance(advanced, Rejection):
        return _refused(understood, advanced, journey, now, canonical)
    return _accepted(understood, canonical, identified, advanced, known, journey, now)


def _accepted(
    understood: Understood,
    canonical: Canonical,
    identified: Identified,
    advanced: Advanced,
    known: Known,
    journey: Journey,
    now: datetime,
) -> Effects:
    transfer = advanced.transfer
    before = known.transfers[transfer.id].state if transfer and not advanced.created else None
    happened = Happened(
        canonical,
        EVENT_TYPE[advanced.fact.step] if advanced.fact else canonical.event_type,
        identified,
        (*canonical.flags, *advanced.flags),
        transfer,
        before,
        advanced.fact,
        advanced.created,
    )
    told = news(canonical, advanced, transfer is not None and before != transfer.state, journey.directory)
    receipt = receipt_for(
        canonical.received,
        understood.message_id,
        Disposition.ACCEPTED,
        None,
        journey.directory,
        canonical.bundle_id,
    )
    outbox = (*told, receipt)
    return Effects(
        understood.received,
        understood.message_id,
        understood.sha256,
        Disposition.ACCEPTED,
        None,
        None,
        happened,
        outbox,
        tuple(_audit_accepted(understood, happened, outbox, now)),
    )


def _audit_accepted(
    understood: Understood, happened: Happened, outbox: tuple[Outgoing, ...], now: datetime
) -> list[AuditEntry]:
    canonical, transfer, identified = happened.canonical, happened.transfer, happened.identified
    trust, event_id, person_id = canonical.trust, canonical.event_id, identified.person_id
    transfer_id = transfer.id if transfer else None

    def entry(code: Code, detail: dict[str, object], **more: object) -> AuditEntry:
        return AuditEntry(
            code,
            now,
            "kafka",
            trust=trust,
            event_id=event_id,
            person_id=person_id,
            transfer_id=transfer_id,
            occurred_at=canonical.occurred_at,
            detail=detail,
            **more,  # type: ignore[arg-type]
        )

    entries = [
        entry(Code.MESSAGE_RECEIVED, _message_detail(understood)),
        entry(
            Code.MESSAGE_NORMALISED,
            {
                "event_type": happened.event_type,
                "changes": dict(Counter(change.rule for change in canonical.changes)),
                "flags": [flag.code for flag in happened.flags],
            },
        ),
    ]
    if identified.created or identified.new_keys:
        code = Code.PERSON_CREATED if identified.created else Code.PERSON_MATCHED
        entries.append(entry(code, {"new_identifiers": sorted(key.authority for key in identified.new_keys)}))
    if transfer is not None and happened.fact is not None:
        move = {
            "from": happened.before,
            "to": transfer.state,
            "why": happened.fact.because,
            "version": transfer.version,
        }
        code = Code.TRANSFER_CREATED if happened.created else Code.TRANSFER_MOVED
        entries.append(entry(code, {"step": happened.fact.step, **move}))
    routed = [{"to": out.receiver, "topic": out.topic} for out in outbox if out.transfer_id]
    if routed:
        entries.append(entry(Code.ROUTED, {"routes": routed}, counterpart=routed[0]["to"]))
    return entries


def _message_detail(understood: Understood) -> dict[str, object]:
    position = understood.received.position
    return {
        "sha256": understood.sha256,
        "bytes": len(understood.received.raw),
        "topic": position.topic,
        "partition": position.partition,
        "offset": position.offset,
    }


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
    disposition: Disposition | None = None,
    first: FirstMessage | None = None,
) -> Effects:
    disposition = disposition or rejection.ruling.disposition
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
        tuple(_audit_refused(understood, disposition, rejection, canonical, first, now)),
    )


def _audit_refused(
    understood: Understood,
    disposition: Disposition,
    rejection: Rejection | None,
    canonical: Canonical | None,
    first: FirstMessage | None,
    now: datetime,
) -> list[AuditEntry]:
    received = understood.received
    transfer_id = first.transfer_id if first else None
    occurred_at = canonical.occurred_at if canonical else None
    detail: dict[str, object] = {"first_event_id": first.event_id} if first else {}
    if rejection is not None:
        detail |= {"why": rejection.why, "at": rejection.at, "owner": rejection.ruling.owner}

    def entry(code: Code, outcome: Outcome, said: dict[str, object]) -> AuditEntry:
        return AuditEntry(
            code,
            now,
            "kafka",
            outcome,
            trust=received.trust,
            event_id=received.event_id,
            transfer_id=transfer_id,
            occurred_at=occurred_at,
            detail=said,
        )

    entries = [entry(Code.MESSAGE_RECEIVED, Outcome.SUCCESS, _message_detail(understood))]
    if rejection is not None and rejection.why is Why.SENDER_NOT_TOPIC_OWNER:
        entries.append(entry(Code.ORGANISATION_MISMATCH, Outcome.SERIOUS_FAILURE, detail))
    if rejection is not None and rejection.why is Why.TRANSITION_DENIED:
        entries.append(entry(Code.TRANSITION_DENIED, Outcome.MINOR_FAILURE, detail))
    entries.append(entry(_REFUSAL_CODE[disposition], _REFUSAL_OUTCOME[disposition], detail))
    return entries


def _repeated(understood: Understood, first: FirstMessage, journey: Journey, now: datetime) -> Effects:
    """The id was used before: the same bytes are a duplicate, others a conflict.

    A duplicate of a message that failed is told the failure again, not that it was delivered (BaRS, errors).
    """
    if understood.sha256 != first.sha256:
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
    transfer = happened.transfer if happened else None
    known.messages[(effects.received.trust, effects.message_id)] = FirstMessage(
        EventId(effects.received.event_id),
        effects.sha256,
        effects.disposition,
        rejection.why if rejection else None,
        rejection.at if rejection else "",
        rejection.detail if rejection else "",
        transfer.id if transfer else None,
    )
    if happened is None:
        return
    identified = happened.identified
    if identified.created is not None:
        known.add_person(identified.created)
    elif identified.new_keys:
        person = known.persons[identified.person_id]
        person.keys.update(identified.new_keys)
        known.add_person(person)
    if transfer is not None:
        known.add_transfer(transfer)
