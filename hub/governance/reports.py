"""What information governance asks of the audit, as rows: who has seen a patient, what somebody did, what was refused, who broke
the glass, what moved without acceptance, what left a trust. Pure: entries in, rows out.

Rows name trusts by their codes, people by what they signed in with, patients and transfers by the hub's ids.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from zoneinfo import ZoneInfo

from hub.audit.catalogue import CATALOGUE
from hub.audit.entries import Code
from hub.domain.roles import Role
from hub.fhir.audit_event import GLASS_BROKEN

Row = Mapping[str, Any]

LONDON = ZoneInfo("Europe/London")
REVIEW_WITHIN = 5
"""Working days in which somebody must have looked at a broken glass (DOMAIN, 5.4). Bank holidays count as working days here."""


@dataclass(frozen=True, slots=True)
class Report:
    """One report: what it is called, its columns in order, and what is said when it is empty."""

    title: str
    columns: tuple[str, ...]
    empty: str


class How(StrEnum):
    """In which way somebody came to know something of a patient."""

    TOLD = "was told"
    READ = "read"
    SEARCHED = "found in a search"
    GLASS = "broke the glass"
    READ_BEHIND_GLASS = "read behind broken glass"
    AUDIT = "read the audit"
    EXPORTED = "exported audit"
    MESSAGE = "read a message as it came"


_HOW: Mapping[Code, How] = {
    Code.DISCLOSURE_SENT: How.TOLD,
    Code.RECORD_READ: How.READ,
    Code.RECORD_SEARCHED: How.SEARCHED,
    Code.GLASS_BROKEN: How.GLASS,
    Code.AUDIT_READ: How.AUDIT,
    Code.AUDIT_EXPORTED: How.EXPORTED,
    Code.MESSAGES_READ: How.MESSAGE,
}
SEEN = frozenset({*_HOW, Code.GLASS_REVIEWED})
"""The entries that "who has seen this patient" is made of."""
REFUSED = frozenset(
    {Code.ACCESS_DENIED, Code.AUTHENTICATION_FAILED, Code.TRANSITION_DENIED, Code.ORGANISATION_MISMATCH}
)
GLASS = frozenset({Code.GLASS_BROKEN, Code.GLASS_CLOSED, Code.GLASS_REVIEWED})

WHO_HAS_SEEN = Report(
    "Who has seen this patient",
    ("trust", "name", "how", "user", "role", "client", "times", "first_at", "last_at"),
    "Nothing of this patient was shown to anybody.",
)
DONE = Report(
    "Everything this user did",
    ("at", "code", "what", "outcome", "trust", "role", "person", "transfer", "interaction", "why", "entry"),
    "This user did nothing.",
)
REFUSALS = Report(
    "All refused access",
    ("at", "code", "why", "trust", "claimed", "user", "role", "client", "interaction", "transfer", "entry"),
    "Nothing was refused.",
)
BROKEN = Report(
    "Broken glass and its reviews",
    ("opened_at", "until", "trust", "user", "role", "person", "owners", "review", "reviewed_at", "reviewed_by", "grant"),
    "Nobody broke the glass.",
)  # fmt: skip
MOVED = Report(
    "Transfers moved without acceptance",
    (
        "happened_at",
        "recorded_at",
        "transfer",
        "moved_by",
        "what",
        "sender",
        "receiver",
        "state_now",
        "entry",
    ),
    "No transfer moved without acceptance.",
)
LEFT = Report(
    "What left the trust",
    ("at", "trust", "to", "to_name", "person", "transfer", "event", "through", "entry"),
    "Nothing left the trust.",
)


@dataclass(frozen=True, slots=True)
class Look:
    """One entry as somebody's sight of a patient. ``role`` is the hub's word for what the person is, "system" for a system."""

    at: datetime
    how: How
    trust: str | None
    user: str | None
    role: str | None
    client: str | None


def looks(entries: Iterable[Row]) -> list[Look]:
    """Those of the entries in which somebody came to know something, in their order."""
    return [_look(row, _HOW[Code(row["code"])]) for row in entries if row["code"] in _HOW]


def _look(row: Row, how: How) -> Look:
    told = how is How.TOLD
    detail = row["detail"]
    if how is How.READ and detail.get(GLASS_BROKEN):
        how = How.READ_BEHIND_GLASS
    role = Role.CLINICIAN.value if how is How.GLASS else detail.get("as")
    # Whoever runs the hub read it; the trust is whose message it was.
    trust = None if how is How.MESSAGE else row["trust"]
    return Look(
        row["at"],
        how,
        row["counterpart"] if told else trust,
        None if told else row["user_id"],
        Role.SYSTEM.value if told else role,
        # A person's client is the person again.
        None if row["user_id"] else row["client_id"],
    )


def who_has_seen(entries: Iterable[Row], names: Mapping[str, str]) -> list[Row]:
    """Each reader once for each way, the last first."""
    grouped: dict[tuple[Any, ...], list[Look]] = {}
    for each in looks(entries):
        grouped.setdefault((each.trust, each.how, each.user, each.role, each.client), []).append(each)
    rows = [
        {
            "trust": trust,
            "name": name_of(trust, names),
            "how": how.value,
            "user": user,
            "role": role,
            "client": client,
            "times": len(found),
            "first_at": min(each.at for each in found),
            "last_at": max(each.at for each in found),
        }
        for (trust, how, user, role, client), found in grouped.items()
    ]
    return sorted(rows, key=lambda row: row["last_at"], reverse=True)


def name_of(trust: str | None, names: Mapping[str, str]) -> str:
    """A trust by its name; who runs the hub has none."""
    return names.get(trust, trust) if trust and trust != "hub" else "The transfer hub"


def done(entries: Iterable[Row]) -> list[Row]:
    """What somebody did, in the entries' order."""
    return [
        {
            "at": row["at"],
            "code": row["code"],
            "what": CATALOGUE[Code(row["code"])].display,
            "outcome": row["outcome"],
            "trust": row["trust"],
            "role": row["role_id"],
            "person": row["person_id"],
            "transfer": row["transfer_id"],
            "interaction": row["detail"].get("interaction"),
            "why": row["detail"].get("why"),
            "entry": row["entry"],
        }
        for row in entries
    ]


def refusals(entries: Iterable[Row]) -> list[Row]:
    """Who was not let in, or not to what they asked for."""
    return [
        {
            "at": row["at"],
            "code": row["code"],
            "why": row["detail"].get("why"),
            "trust": row["trust"],
            "claimed": row["detail"].get("claimed"),
            "user": row["user_id"],
            "role": row["role_id"],
            "client": row["client_id"],
            "interaction": row["detail"].get("interaction"),
            "transfer": row["transfer_id"],
            "entry": row["entry"],
        }
        for row in entries
        if row["code"] in REFUSED
    ]


def broken(
    entries: Sequence[Row], now: datetime, *, until: datetime | None = None, trust: str | None = None
) -> list[Row]:
    """Each breaking of the glass (before ``until``; by ``trust``'s people or for its patients) with what was thought of it, the last
    first. The reason is not in the audit.
    """
    reviews = {row["detail"].get("grant"): row for row in entries if row["code"] == Code.GLASS_REVIEWED}
    rows = [
        _broken(row, reviews.get(row["detail"].get("grant")), now)
        for row in entries
        if row["code"] == Code.GLASS_BROKEN
        and (until is None or row["at"] < until)
        and (trust is None or trust == row["trust"] or trust in row["detail"].get("owners", ()))
    ]
    return sorted(rows, key=lambda row: row["opened_at"], reverse=True)


def _broken(opened: Row, review: Row | None, now: datetime) -> Row:
    detail = opened["detail"]
    return {
        "opened_at": opened["at"],
        "until": detail.get("until"),
        "trust": opened["trust"],
        "user": opened["user_id"],
        "role": opened["role_id"],
        "person": opened["person_id"],
        "owners": ", ".join(detail.get("owners", ())),
        "review": review["detail"].get("verdict") if review else _waits(opened["at"], now),
        "reviewed_at": review["at"] if review else None,
        "reviewed_by": review["user_id"] if review else None,
        "grant": detail.get("grant"),
    }


def _waits(opened_at: datetime, now: datetime) -> str:
    due = opened_at.astimezone(LONDON).date()
    days = 0
    while days < REVIEW_WITHIN:
        due += timedelta(days=1)
        days += due.weekday() < 5
    return "overdue" if now.astimezone(LONDON).date() > due else "waits"


def moved(entries: Iterable[Row], transfers: Mapping[str, Row]) -> list[Row]:
    """Patients who left, or came, before anybody had accepted. ``transfers`` as they stand now, by id."""
    return [
        {
            "happened_at": row["occurred_at"],
            "recorded_at": row["at"],
            "transfer": row["transfer_id"],
            "moved_by": row["trust"],
            "what": CATALOGUE[Code(row["code"])].display,
            "sender": transfers.get(row["transfer_id"], {}).get("sender"),
            "receiver": transfers.get(row["transfer_id"], {}).get("receiver"),
            "state_now": transfers.get(row["transfer_id"], {}).get("state"),
            "entry": row["entry"],
        }
        for row in entries
        if row["detail"].get("without_acceptance")
    ]


LEAVES = frozenset({Code.DISCLOSURE_SENT, Code.RECORD_READ, Code.RECORD_SEARCHED})
"""The entries that "what left the trust" is made of: what was sent, and what others fetched."""


def left(entries: Iterable[Row], names: Mapping[str, str], trust: str) -> list[Row]:
    """Each disclosure of ``trust``'s and each reading by others: to whom, of which patient (the hub's id) and transfer, through which
    door.
    """
    return [
        {
            "at": row["at"],
            "trust": trust,
            "to": to,
            "to_name": name_of(to, names),
            "person": row["person_id"],
            "transfer": row["transfer_id"],
            "event": row["event_id"],
            "through": row["detail"].get("topic") or row["detail"].get("interaction") or row["system"],
            "entry": row["entry"],
        }
        for row in entries
        if row["code"] in LEAVES
        and (to := row["counterpart"] if row["code"] == Code.DISCLOSURE_SENT else row["trust"]) != trust
    ]


def month(year: int, number: int) -> tuple[datetime, datetime]:
    """A calendar month as London has it: from its first midnight to the next month's."""
    first = datetime(year, number, 1, tzinfo=LONDON)
    return first, datetime(year + number // 12, number % 12 + 1, 1, tzinfo=LONDON)


def last_month(now: datetime) -> tuple[datetime, datetime]:
    """The calendar month before this one."""
    here = now.astimezone(LONDON)
    return month(here.year - (here.month == 1), (here.month - 2) % 12 + 1)
