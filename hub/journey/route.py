"""Step 5, route: who must be told, at which topic, with what.

The party at the other end of a transfer hears of every step that was taken; both hear of what a third trust or the hub's
clock caused, of corrections and of alarms; the author hears what became of its message. A trust that has no part in a
transfer never appears here.
"""

from collections.abc import Iterable

from hub.domain.ids import EventId, OdsCode
from hub.domain.message import Canonical, Kind, Received
from hub.domain.rejection import Disposition, Rejection
from hub.domain.transfer import CORRECTED, ENDED, EVENT_TYPE, HUB, PHYSICAL, REOPENED, State, Step, Transfer
from hub.domain.trust import Directory
from hub.domain.value import value
from hub.fhir import headers
from hub.fhir.outgoing import Occasion, receipt, transfer_news
from hub.journey.disclose import Resource, is_shown, resources_for
from hub.journey.effects import Happened, Outgoing
from hub.journey.taken import Advanced, Taken

_ALWAYS_TOLD = frozenset({Step.DIVERGE, Step.CONFIRM, Step.IDENTIFY, Step.DIE})
"""Facts that are told although they moved nothing."""


@value
class Told:
    """Somebody who hears of a message: of which transfer, and what it did to it. ``taken`` None: nothing moved."""

    to: OdsCode
    transfer: Transfer
    taken: Taken | None


def told_of(canonical: Canonical, advanced: Advanced) -> list[Told]:
    """Who hears of a message; it may be somebody who has left, or who joined after this process began."""
    moved = [Told(to, taken.transfer, taken) for taken in advanced.taken for to in _told(canonical, taken)]
    return moved + [Told(transfer.receiver, transfer, None) for transfer in advanced.shared]


def news(
    happened: Happened, told: Iterable[Told], directory: Directory, *, sensitive: bool = False
) -> tuple[Outgoing, ...]:
    """What the parties are told of one message. ``sensitive``: the patient's whereabouts are kept back."""
    return tuple(
        _outgoing(happened, each, directory, sensitive=sensitive) for each in told if each.to in directory
    )


def event_type_of(taken: Taken) -> str:
    """What the news is called: by what it did where that is more than its own step."""
    before, after = taken.before, taken.transfer.state
    if before in ENDED and after not in ENDED:
        return REOPENED
    return CORRECTED if taken.corrects else EVENT_TYPE[taken.fact.step]


def _told(canonical: Canonical, taken: Taken) -> Iterable[OdsCode]:
    transfer, author = taken.transfer, canonical.trust
    if not _is_news(canonical, taken):
        return ()
    parties = (transfer.sender,) if _is_private(taken) else (transfer.sender, transfer.receiver)
    for_both = taken.is_alert or taken.corrects or taken.fact.step is Step.IDENTIFY
    return parties if author not in parties or for_both else tuple(each for each in parties if each != author)


def _is_private(taken: Taken) -> bool:
    """What nobody else has been asked is nobody else's business."""
    return not taken.transfer.was_asked or {taken.before, taken.transfer.state} <= {None, State.DRAFT}


def _is_news(canonical: Canonical, taken: Taken) -> bool:
    """A stay that changed nothing is nobody else's business."""
    moved = taken.before is not taken.transfer.state
    by_purpose = taken.fact.step not in PHYSICAL or canonical.kind not in {Kind.ENCOUNTER, Kind.PATIENT}
    return moved or by_purpose or taken.is_alert or taken.fact.step in _ALWAYS_TOLD


def _outgoing(happened: Happened, told: Told, directory: Directory, *, sensitive: bool) -> Outgoing:
    canonical, to, transfer, taken = happened.canonical, told.to, told.transfer, told.taken
    event_type = canonical.event_type if taken is None else event_type_of(taken)
    resources: tuple[Resource, ...] = ()
    shown = taken is None or (is_shown(taken.fact) and not _is_of_another(canonical, taken))
    if shown:
        resources = resources_for(
            canonical.resources, transfer.part_of(canonical.trust), transfer.part_of(to), sensitive=sensitive
        )
    note = taken.fact.because if taken is not None and _wants_note(taken) else ""
    payload = transfer_news(
        Occasion.of(canonical),
        transfer,
        event_type,
        to,
        resources=resources,
        written=happened.written if resources is canonical.resources else None,
        patient_url=canonical.patient_url,
        reason=canonical.reason if shown else (),
        note=note,
    )
    return Outgoing(
        receiver=to,
        topic=directory[to].inbox_topic,
        key=transfer.id,
        headers=_inbox_headers(canonical, transfer, event_type, shown=shown),
        payload=payload,
        event_id=canonical.event_id,
        transfer_id=transfer.id,
        person_id=transfer.person_id,
    )


def _is_of_another(canonical: Canonical, taken: Taken) -> bool:
    """Whether the message is the request to another hospital, which stands in for this one: nobody here is asked by it."""
    return canonical.kind is Kind.REQUEST and taken.fact.step is Step.REDIRECT


def _wants_note(taken: Taken) -> bool:
    """Whether the reader needs the reason in words: what happened is not what they would expect."""
    is_odd = taken.is_alert or taken.corrects or taken.is_outdated
    return is_odd or taken.fact.step in _ALWAYS_TOLD or taken.transfer.inferred


def from_the_hub(
    occasion: Occasion, transfer: Transfer, event_type: str, note: str, directory: Directory
) -> tuple[Outgoing, ...]:
    """What both hospitals are told of the hub's own doing: a clock that ran out. Nothing clinical is in it."""
    said = {
        headers.REQUEST_ID: occasion.event_id,
        headers.CONTENT_TYPE: headers.CONTENT_TYPE_FHIR,
        headers.EVENT_ID: occasion.event_id,
        headers.TRANSFER_ID: transfer.id,
        headers.EVENT_TYPE: event_type,
        headers.SOURCE_ODS: HUB,
    }
    if transfer.correlation_id:
        said[headers.CORRELATION_ID] = transfer.correlation_id
    parties = (end for end in (transfer.sender, transfer.receiver) if transfer.party(end) is not None)
    return tuple(
        Outgoing(
            receiver=to,
            topic=directory[to].inbox_topic,
            key=transfer.id,
            headers=said,
            payload=transfer_news(occasion, transfer, event_type, to, note=note),
            event_id=EventId(occasion.event_id),
            transfer_id=transfer.id,
            person_id=transfer.person_id,
        )
        for to in parties
        if to in directory
    )


def _inbox_headers(
    canonical: Canonical, transfer: Transfer, event_type: str, *, shown: bool
) -> dict[str, str]:
    # Whoever is not shown the message is not given its conversation either: it is about another transfer than theirs.
    correlation_id = canonical.correlation_id if shown else transfer.correlation_id
    found = {
        headers.REQUEST_ID: canonical.event_id,
        headers.CONTENT_TYPE: headers.CONTENT_TYPE_FHIR,
        headers.EVENT_ID: canonical.event_id,
        headers.TRANSFER_ID: transfer.id,
        headers.EVENT_TYPE: event_type,
        headers.SOURCE_ODS: canonical.trust,
    }
    trace = canonical.received.header(headers.TRACEPARENT)
    return found | {
        name: value
        for name, value in ((headers.CORRELATION_ID, correlation_id), (headers.TRACEPARENT, trace))
        if value
    }


def receipt_for(
    received: Received,
    message_id: str,
    disposition: Disposition,
    rejection: Rejection | None,
    directory: Directory,
    bundle_id: str | None = None,
) -> Outgoing:
    """The receipt for the trust that sent the message, with its id as that trust wrote it."""
    message_id = received.header(headers.REQUEST_ID) or message_id
    found = {
        headers.REQUEST_ID: message_id,
        headers.CONTENT_TYPE: headers.CONTENT_TYPE_FHIR,
        headers.EVENT_ID: received.event_id,
        headers.DISPOSITION: disposition.value,
    }
    correlation_id = received.header(headers.CORRELATION_ID)
    if correlation_id:
        found[headers.CORRELATION_ID] = correlation_id
    if rejection is not None:
        found[headers.WHY] = rejection.why.value
    return Outgoing(
        receiver=received.trust,
        topic=directory[received.trust].receipts_topic,
        key=message_id,
        headers=found,
        payload=receipt(received, disposition, rejection, bundle_id, message_id),
        event_id=received.event_id,
    )
