"""Sending: an HTTP request becomes a `Received`, and what the journey decided becomes an HTTP answer."""

import base64
import binascii
import uuid
from collections.abc import Mapping
from datetime import datetime

import orjson

from hub.domain.ids import EventId, parse_uuid, time_ordered_id
from hub.domain.message import Received
from hub.domain.rejection import Disposition, Rejection, Why
from hub.facade.errors import FacadeError, bad_request
from hub.facade.tokens import Caller
from hub.fhir import headers
from hub.fhir.outgoing import in_words
from hub.journey.effects import Effects

_ABOUT_THE_CALLER = ("nhsd-end-user-organisation", "nhsd-requesting-practitioner", "nhsd-requesting-software")
"""BaRS's headers about who is behind the request; kept with the message for the audit. Base64 of FHIR JSON."""
_KEPT = headers.INWARD | {"nhsd-target-identifier", *_ABOUT_THE_CALLER}

_STRUCTURE = (400, "REC_BAD_REQUEST", "structure")
_REQUIRED = (400, "REC_BAD_REQUEST", "required")
_UNSUPPORTED = (422, "REC_UNPROCESSABLE_ENTITY", "not-supported")
_CONFLICT = (409, "REC_CONFLICT", "conflict")
_FAULT = (500, "REC_SERVER_ERROR", "exception")

ANSWERS: Mapping[Why, tuple[int, str, str]] = {
    **dict.fromkeys(
        (
            Why.NOT_JSON,
            Why.NOT_XML,
            Why.XML_UNSAFE,
            Why.NOT_FHIR,
            Why.RESOURCE_TYPE_UNKNOWN,
            Why.STRUCTURE_INVALID,
            Why.MESSAGE_TOO_DEEP,
            Why.MESSAGE_EMPTY,
            Why.NUL_CHARACTER,
        ),
        _STRUCTURE,
    ),
    **dict.fromkeys(
        (
            Why.MESSAGE_HEADER_MISSING,
            Why.PATIENT_MISSING,
            Why.PATIENT_UNIDENTIFIED,
            Why.ENCOUNTER_UNIDENTIFIED,
            Why.RECEIVER_MISSING,
            Why.REASON_MISSING,
            Why.SENDER_UNKNOWN,
        ),
        _REQUIRED,
    ),
    **dict.fromkeys(
        (Why.DIALECT_NOT_SUPPORTED, Why.MESSAGE_NOT_SUPPORTED, Why.STATUS_NOT_SUPPORTED), _UNSUPPORTED
    ),
    **dict.fromkeys((Why.TRANSFER_EXISTS, Why.MESSAGE_ID_REUSED), _CONFLICT),
    **dict.fromkeys((Why.HUB_FAULT, Why.PROCESS_KILLED), _FAULT),
    Why.ADDRESS_DIFFERS: (400, "SEND_BAD_REQUEST", "invalid"),
    Why.MESSAGE_TOO_LARGE: (413, "REC_BAD_REQUEST", "too-long"),
    Why.ROLE_NOT_ALLOWED: (403, "REC_FORBIDDEN", "forbidden"),
    Why.SENDER_NOT_TOPIC_OWNER: (403, "REC_FORBIDDEN", "forbidden"),
    Why.RECEIVER_UNKNOWN: (404, "REC_NOT_FOUND", "not-found"),
    Why.TRANSFER_UNKNOWN: (404, "REC_NOT_FOUND", "not-found"),
    Why.VERSION_STALE: (412, "REC_CONFLICT", "conflict"),
    Why.TRANSITION_DENIED: (422, "REC_UNPROCESSABLE_ENTITY", "business-rule"),
    Why.NEEDS_CONFIRMATION: (422, "REC_UNPROCESSABLE_ENTITY", "processing"),
    Why.SHARED_RECORD_ECHO: (422, "REC_UNPROCESSABLE_ENTITY", "informational"),
    Why.RECEIVER_IS_SENDER: (422, "REC_UNPROCESSABLE_ENTITY", "business-rule"),
    Why.RECEIVER_CHANGED: (422, "REC_UNPROCESSABLE_ENTITY", "business-rule"),
    **dict.fromkeys(
        (
            Why.VERSION_UNREADABLE,
            Why.NHS_NUMBER_INVALID,
            Why.NHS_NUMBER_REPEATED_DIGITS,
            Why.CLOCK_IMPLAUSIBLE,
        ),
        (400, "REC_BAD_REQUEST", "value"),
    ),
}
"""Each reason of the journey as HTTP says it: status, BaRS's code, FHIR's issue type."""


def received(
    said: Mapping[str, str],
    body: bytes,
    caller: Caller,
    now: datetime,
    more: Mapping[str, str] | None = None,
) -> Received:
    """The request as the journey takes it. ``said`` are its headers, names in lower case; ``more`` is kept with them. Raises FacadeError (400).

    BaRS wants a UUID as X-Request-Id: it is what makes a repetition harmless, so nothing is taken without.
    """
    request_id = _uuid(said, headers.REQUEST_ID, required=True)
    _uuid(said, headers.CORRELATION_ID, required=False)
    for name in _ABOUT_THE_CALLER:
        _is_base64_json(said, name)
    kept = {name: said[name] for name in _KEPT if said.get(name)}
    kept[headers.CLIENT] = caller.client_id
    if caller.person is not None:
        kept |= {
            headers.USER: caller.person.id,
            headers.ROLE: caller.person.role.value,
            headers.ROLE_ID: caller.person.role_id,
        }
    return Received(
        event_id=EventId(time_ordered_id(now, caller.client_id, request_id, uuid.uuid4().hex)),
        trust=caller.trust,
        position=None,
        headers=kept | dict(more or {}),
        key=None,
        raw=body,
        received_at=now,
    )


def answer(effects: Effects) -> bytes:
    """The receipt, a message Bundle with `response`, if the message was taken in. Raises FacadeError otherwise."""
    rejection = effects.rejection
    if effects.disposition is Disposition.ACCEPTED:
        return effects.receipt.payload
    if rejection is None:
        raise FacadeError(
            409,
            "REC_CONFLICT",
            "duplicate",
            "This message was already delivered: this is its X-Request-Id and these are its bytes. Do not send it again.",
            "X-Request-Id",
        )
    raise refusal(effects, rejection)


def refusal(effects: Effects, rejection: Rejection) -> FacadeError:
    """A refusal in HTTP. What is kept in quarantine says so: it need not be sent again to be run again."""
    status, code, issue = ANSWERS[rejection.why]
    kept = (
        f" It is kept as event {effects.first_event_id or effects.received.event_id}; when its cause is mended outside the "
        "message, it is run again as it is."
        if rejection.ruling.disposition is Disposition.QUARANTINED
        else ""
    )
    at = "X-Request-Id" if rejection.at == headers.REQUEST_ID else rejection.at
    return FacadeError(status, code, issue, in_words(rejection) + kept, at, rejection.why.value)


def request_id_of(said: Mapping[str, str]) -> str:
    """X-Request-Id as it is written. Raises FacadeError (400)."""
    _uuid(said, headers.REQUEST_ID, required=True)
    return said[headers.REQUEST_ID].strip()


def _uuid(said: Mapping[str, str], name: str, *, required: bool) -> str:
    value = said.get(name, "").strip()
    if not value and not required:
        return ""
    found = parse_uuid(value)
    if found is None:
        shown = "-".join(part.capitalize() for part in name.split("-"))
        raise bad_request(
            f"{shown} must be a UUID: a new one for each message, the same one when you send that message again.",
            shown,
            "value" if value else "required",
        )
    return found


def _is_base64_json(said: Mapping[str, str], name: str) -> None:
    value = said.get(name)
    if not value:
        return
    try:
        orjson.loads(base64.b64decode(value, validate=True))
    except (binascii.Error, ValueError):
        raise bad_request(f"{name} must be Base64 of a FHIR resource in JSON.", name, "value") from None
