"""The Kafka headers the hub reads and writes. `schemas/asyncapi.yaml` describes them; a test compares.

Names are lower case and values are UTF-8 text.
"""

from typing import Final

CONTENT_TYPE_FHIR: Final = "application/fhir+json; fhirVersion=4.0"
"""The value of `content-type` on everything the hub sends."""

CHECKPOINT_TYPE: Final = "text/plain; charset=utf-8"
"""The value of `content-type` on a signed checkpoint of the audit (C2SP tlog-checkpoint)."""

# What a trust puts on a message, and what the hub repeats on its own.
REQUEST_ID: Final = "x-request-id"
"""The message's own id: new for each message, the same on a retry (BaRS, headers)."""
CORRELATION_ID: Final = "x-correlation-id"
"""The conversation's id, kept by answers and updates."""
CONTENT_TYPE: Final = "content-type"
TRACEPARENT: Final = "traceparent"
"""W3C Trace Context, if the trust traces; handed on unchanged."""

IF_MATCH: Final = "if-match"
"""The version of the transfer that a decision was made on; it is refused if the transfer has changed since."""

# What only the hub writes.
EVENT_ID: Final = "event-id"
TRANSFER_ID: Final = "transfer-id"
EVENT_TYPE: Final = "event-type"
SOURCE_ODS: Final = "source-ods"
"""The trust the news comes from, in upper case."""
OUTBOX_SEQ: Final = "outbox-seq"
"""The row's number in the outbox. Whoever takes over a receiver reads it back to learn what was sent."""
DISPOSITION: Final = "disposition"
WHY: Final = "why"
"""The reason code; absent where the message was accepted."""

# What only the facade keeps with a message: who sent it, as the token proved.
USER: Final = "hub-user"
"""Who signed in, as the issuer names them."""
ROLE: Final = "hub-role"
"""What they are to the hub (`hub.domain.roles`)."""
ROLE_ID: Final = "hub-role-id"
"""The role that they chose, as the issuer names it."""
CLIENT: Final = "hub-client"
"""Which system called, whoever sat before it."""

REQUEST_SHA256: Final = "hub-request-sha256"
"""Of a decision: method, address and body of the request, by which a repetition is known. What the message's own bytes are can depend
on the version that the request meets, and the same body at another address is another decision."""

ABOUT: Final = "hub-about"
"""The transfer that the request's address names: the only one that the message may move."""
RESOURCE: Final = "hub-resource"
"""The type of resource that the request's address takes: the message must be one."""

INWARD: Final = frozenset({REQUEST_ID, CORRELATION_ID, CONTENT_TYPE, TRACEPARENT, IF_MATCH})
"""On `epr.<ods>.events`."""

INBOX: Final = frozenset(
    {
        REQUEST_ID,
        CORRELATION_ID,
        CONTENT_TYPE,
        EVENT_ID,
        TRANSFER_ID,
        EVENT_TYPE,
        SOURCE_ODS,
        TRACEPARENT,
        OUTBOX_SEQ,
    }
)
"""On `hub.<ods>.inbox`."""

RECEIPT: Final = frozenset({REQUEST_ID, CORRELATION_ID, CONTENT_TYPE, EVENT_ID, DISPOSITION, WHY, OUTBOX_SEQ})
"""On `hub.<ods>.receipts`."""

AUDIT: Final = frozenset({CONTENT_TYPE, EVENT_ID, OUTBOX_SEQ})
"""On `hub.audit`."""

OUTWARD: Final = INBOX | RECEIPT | AUDIT
"""Everything the hub may write."""
