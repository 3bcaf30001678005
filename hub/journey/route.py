"""Step 5, route: who must be told, at which topic, with what.

The party at the other end of a transfer hears of every step that was taken and of nothing else; the sender
hears what became of its message. A trust that has no part in a transfer never appears here.
"""

from hub.domain.ids import TransferId
from hub.domain.message import Canonical, Kind, Received
from hub.domain.rejection import Disposition, Rejection
from hub.domain.transfer import EVENT_TYPE
from hub.domain.trust import Directory
from hub.fhir import headers
from hub.fhir.outgoing import receipt, transfer_news
from hub.journey.advance import Advanced
from hub.journey.effects import Outgoing


def news(
    canonical: Canonical, advanced: Advanced, state_changed: bool, directory: Directory
) -> tuple[Outgoing, ...]:
    """What the other party is told. A stay that changed nothing is nobody else's business."""
    transfer, fact = advanced.transfer, advanced.fact
    if transfer is None or fact is None or (canonical.kind is Kind.ENCOUNTER and not state_changed):
        return ()
    to = transfer.other(canonical.trust)
    event_type = EVENT_TYPE[fact.step]
    return (
        Outgoing(
            receiver=to,
            topic=directory[to].inbox_topic,
            key=transfer.id,
            headers=_inbox_headers(canonical, transfer.id, event_type),
            payload=transfer_news(canonical, transfer, event_type, to),
            event_id=canonical.event_id,
            transfer_id=transfer.id,
            person_id=transfer.person_id,
        ),
    )


def _inbox_headers(canonical: Canonical, transfer_id: TransferId, event_type: str) -> dict[str, str]:
    found = {
        headers.REQUEST_ID: canonical.event_id,
        headers.CONTENT_TYPE: headers.CONTENT_TYPE_FHIR,
        headers.EVENT_ID: canonical.event_id,
        headers.TRANSFER_ID: transfer_id,
        headers.EVENT_TYPE: event_type,
        headers.SOURCE_ODS: canonical.trust,
    }
    trace = canonical.received.header(headers.TRACEPARENT)
    return found | {
        name: value
        for name, value in ((headers.CORRELATION_ID, canonical.correlation_id), (headers.TRACEPARENT, trace))
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
    """The receipt for the trust that sent the message."""
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
