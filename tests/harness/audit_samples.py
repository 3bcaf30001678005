"""Audit entries of every code in every guise, as the store has them."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from hub.audit.catalogue import CATALOGUE
from hub.audit.entries import Code, Outcome
from hub.fhir.audit_event import KnownAs, LocalNumber, Observer

AT: Final = datetime(2025, 3, 4, 9, 10, 11, 123456, tzinfo=UTC)
NAMES: Final = {
    "RA9": "Torbay and South Devon NHS Foundation Trust",
    "RH8": "Royal Devon University Healthcare NHS Foundation Trust",
}
HUB: Final = Observer()
BY_NUMBER: Final = KnownAs(nhs_number="9990000018")
BY_LOCAL_NUMBER: Final = KnownAs(local=LocalNumber("RA9", "https://torbay.example/Id/mrn", "M-1"))
NOBODY_KNOWN: Final = KnownAs()


def entry(code: Code, number: int = 7, **columns: Any) -> dict[str, Any]:
    """One row: what the hub did of itself, to nobody, unless ``columns`` say more."""
    return {
        "entry": number,
        "code": code.value,
        "at": AT,
        "occurred_at": None,
        "outcome": Outcome.SUCCESS.value,
        "trust": None,
        "system": "worker",
        "counterpart": None,
        "event_id": None,
        "person_id": None,
        "transfer_id": None,
        "request_id": None,
        "user_id": None,
        "role_id": None,
        "client_id": None,
        "detail": {},
    } | columns


_A_TRANSFER: Final = {
    "person_id": "01955f6a-0000-7000-8000-000000000001",
    "transfer_id": "01955f6a-0000-7000-8000-000000000002",
    "event_id": "01955f6a-0000-7000-8000-000000000003",
    "occurred_at": AT - timedelta(minutes=3),
}
_A_TOPIC: Final = {"topic": "epr.ra9.events", "partition": 2, "offset": 41, "sha256": "0" * 64}

GUISES: Final[Mapping[str, tuple[KnownAs | None, Mapping[str, Any]]]] = {
    "the hub, about nobody": (None, {}),
    "the hub, named": (None, {"trust": "hub", "system": "clock"}),
    "a trust's message": (
        BY_NUMBER,
        {
            "trust": "RA9",
            "system": "kafka",
            "request_id": "req-1",
            "detail": _A_TOPIC | {"from": "requested", "to": "accepted", "version": 3, "flags": ["a", "b"]},
            **_A_TRANSFER,
        },
    ),
    "without an NHS number": (
        BY_LOCAL_NUMBER,
        {"trust": "RA9", "system": "kafka", **_A_TRANSFER},
    ),
    "a patient without any number": (NOBODY_KNOWN, {"trust": "RA9", "system": "kafka", **_A_TRANSFER}),
    "to another hospital": (
        BY_NUMBER,
        {
            "trust": "RA9",
            "counterpart": "RH8",
            "system": "dispatcher",
            "detail": {
                "topic": "hub.rh8.inbox",
                "routes": [{"to": "RH8", "topic": "hub.rh8.inbox"}],
                "found": True,
            },
            **_A_TRANSFER,
        },
    ),
    "fetched by its system": (
        BY_NUMBER,
        {
            "counterpart": "RH8",
            "system": "rest",
            "client_id": "RH8|epr",
            "request_id": "req-2",
            **_A_TRANSFER,
        },
    ),
    "a clinician who broke the glass": (
        BY_NUMBER,
        {
            "trust": "RH8",
            "system": "rest",
            "user_id": "555000000017",
            "role_id": "555000000025",
            "client_id": "RH8|555000000017",
            "request_id": "req-3",
            "detail": {"interaction": "Task.read", "glass_broken": True, "grant": "g-1"},
            **_A_TRANSFER,
        },
    ),
    "a person of another sign-in": (
        None,
        {
            "trust": "RH8",
            "system": "rest",
            "user_id": "j.bloggs",
            "role_id": "bed-manager",
            "client_id": "RH8|j.bloggs",
            "detail": {"interaction": "Task.search-type", "parameters": ["status", "_count"]},
        },
    ),
    "an operator": (None, {"trust": "RA9", "system": "cli", "user_id": "op", "detail": {"operator": "op"}}),
    "somebody claimed to be another": (
        None,
        {
            "trust": "RA9",
            "system": "kafka",
            "outcome": Outcome.SERIOUS_FAILURE.value,
            "event_id": _A_TRANSFER["event_id"],
            "detail": {"why": "sender-not-topic-owner", "at": "MessageHeader.sender", "claimed": "RH8"},
        },
    ),
}
"""What an entry may look like → by what its patient is known, and the columns."""


class Sample(NamedTuple):
    name: str
    entry: dict[str, Any]
    person: KnownAs | None


def every_sample() -> Iterator[Sample]:
    """Each code in each guise, numbered."""
    number = 0
    for code in CATALOGUE:
        for guise, (person, columns) in GUISES.items():
            number += 1
            yield Sample(f"{code.value}: {guise}", entry(code, number, **columns), person)
