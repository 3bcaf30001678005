"""Searches: what is asked for, and the pages of the answer."""

import base64
import binascii
import json
import re
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Protocol
from urllib.parse import urlencode

from hub.domain.transfer import REQUEST_STATUS, TASK_STATUS, State, Transfer
from hub.facade import errors
from hub.facade.errors import FacadeError, bad_request
from hub.fhir.systems import HUB_STATE, ODS_ORGANISATION, canonical_system
from hub.fhir.tree import Tree
from hub.store.search import Token, Wanted

COUNT, COUNT_MAX = 50, 200
VALUES_MAX, IDS_MAX = 100, 500
"""So many values one search may hold in all, and so many ids (`_id`), which cost less. What many values are made of grows faster than
they do, and nobody asks for a thousand patients at once.
"""

_CHANGED = ("date", "When the transfer last changed; prefixes eq, gt, ge, lt, le")
_RECORDED = ("date", "When it was recorded; prefixes eq, gt, ge, lt, le")
_PATIENT = (
    "reference",
    "patient:identifier=system|value: an NHS number, or your own hospital's number; patient=Patient/{id}: the hub's id",
)
_SENDER = ("reference", "requester:identifier=system|ODS code: the sending trust")

SEARCHED: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "Task": {
        "_id": ("token", "The transfer's id"),
        "_lastUpdated": _CHANGED,
        "identifier": ("token", "The transfer's id, or the identifier of the request"),
        "status": ("token", "Task.status"),
        "business-status": ("token", "The state of the transfer"),
        "patient": _PATIENT,
        "subject": _PATIENT,
        "requester": _SENDER,
        "owner": ("reference", "owner:identifier=system|ODS code: the receiving trust"),
    },
    "ServiceRequest": {
        "_id": ("token", "The transfer's id"),
        "_lastUpdated": _CHANGED,
        "identifier": ("token", "The identifier of the request"),
        "status": ("token", "ServiceRequest.status"),
        "patient": _PATIENT,
        "subject": _PATIENT,
        "requester": _SENDER,
        "performer": ("reference", "performer:identifier=system|ODS code: the receiving trust"),
    },
    "Patient": {
        "_id": ("token", "The hub's id of the person"),
        "_lastUpdated": _CHANGED,
        "identifier": ("token", "An NHS number, or your own hospital's number"),
    },
    "Encounter": {
        "_id": ("token", "{transfer}-sender or -receiver"),
        "_lastUpdated": _CHANGED,
        "patient": _PATIENT,
        "subject": _PATIENT,
    },
    "Provenance": {
        "_id": ("token", "{transfer}-{version}"),
        "_lastUpdated": _CHANGED,
        "target": ("token", "Task/{id}: the transfer"),
        "patient": _PATIENT,
    },
    "MessageHeader": {"focus": ("token", "Task/{id}: the transfer")},
    "Location": {
        "identifier": ("token", "The ODS site code"),
        "name": ("string", "How the name begins"),
        "organization": ("token", "Organization/{ODS code}: the trust that runs it"),
    },
    "AuditEvent": {
        "_id": ("token", "The entry's number"),
        "_lastUpdated": _RECORDED,
        "date": _RECORDED,
        "patient": (
            "reference",
            "patient:identifier=system|value: an NHS number, or your own hospital's number; whoever was merged is followed",
        ),
        "agent": (
            "reference",
            "agent:identifier=system|value: a trust that acted or to which it was done, a user, a role or a client",
        ),
        "entity": (
            "reference",
            "entity:identifier=system|value: a transfer, an event (message) or an X-Request-Id",
        ),
        "type": ("token", "AuditEvent.type"),
        "subtype": ("token", "What happened: a code of the hub's, or one of the others that say the same"),
        "action": ("token", "C, R, U, D, E"),
        "outcome": ("token", "0, 4, 8, 12"),
        "source": (
            "reference",
            "source:identifier=system|value: the hub; source=word: a part of it, such as rest, kafka, cli",
        ),
    },
    "Subscription": {"status": ("token", "requested, active, error, off")},
    "Organization": {"identifier": ("token", "The ODS code"), "name": ("string", "How the name begins")},
}
"""What can be searched by, for each type: FHIR's kind of parameter and what it means here. Whatever the type, what is looked for are transfers of the asking
trust; a ServiceRequest and a Patient are found as part of one."""
PARTS = frozenset({"Encounter", "Provenance"})
"""Parts of a transfer: their ids are its id, a hyphen and which part."""
INCLUDES: Mapping[str, frozenset[str]] = {
    "Task": frozenset({"Task:focus", "Task:patient"}),
    "ServiceRequest": frozenset({"ServiceRequest:patient", "ServiceRequest:subject"}),
}
INCLUDED: Mapping[str, str] = {
    "Task:focus": "ServiceRequest",
    "Task:patient": "Patient",
    "ServiceRequest:patient": "Patient",
    "ServiceRequest:subject": "Patient",
}
"""What comes along, of which type: a token must let its holder read that too."""
RESULTS = frozenset({"_count", "_sort", "_summary", "_total", "_include", "_page", "_format"})
"""Parameters that say how the answer should look."""

_PATIENTS = frozenset({"patient", "subject"})
_REFERENCES = _PATIENTS | {"requester", "owner", "performer"}
_WHOM = frozenset({"patient", "subject", "for"})
"""Whoever says one of these means one patient, whatever is searched: never passed over, because then others would be shown."""
_OF_PATIENTS = frozenset(
    {"name", "given", "family", "phonetic", "birthdate", "gender", "deceased", "death-date", "telecom", "phone", "email", "address",
     "address-city", "address-country", "address-postalcode", "address-state", "address-use", "general-practitioner", "organization",
     "link", "language", "active"}
)  # fmt: skip
"""What FHIR R4 searches Patients by besides numbers. Nobody is found by it here, and who asks for one person so must not be shown
all of their trust's: the first of them would be taken for that person.
"""
_NARROWING = frozenset({"_has", "_filter", "_query", "_list", "_text", "_content"})
"""FHIR's own ways to narrow any search that are not served here."""
_STATUS_OF: Mapping[str, Mapping[State, str]] = {"Task": TASK_STATUS, "ServiceRequest": REQUEST_STATUS}


class Opens(Protocol):
    """Who opens what was sealed (`hub.facade.tokens.TokenOffice`)."""

    def unsealed(self, token: str) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Question:
    """A search as it was understood: ``asked`` are the parameters that were used, for the self link."""

    wanted: Wanted
    asked: tuple[tuple[str, str], ...]
    ignored: tuple[str, ...]
    resource: str
    includes: frozenset[str] = frozenset()
    count_only: bool = False
    total: bool = False


def question(
    resource: str, parameters: Sequence[tuple[str, str]], *, strict: bool, base: str = ""
) -> Question:
    """Read a search for resources of one type. ``strict``: `Prefer: handling=strict`, what is not known is an error. ``base`` is how
    references to what is here may begin.

    Raises FacadeError (400).
    """
    wanted, ignored, asked = Wanted(), [], []
    includes: set[str] = set()
    count_only = total = False
    for name, value in parameters:
        if not value:
            must_hold_something(resource, name)
            continue
        known = _meaning(resource, name)
        if known is None or (known == "_include" and value not in INCLUDES.get(resource, ())):
            ignored.append(name)
            continue
        if known != "_page":
            asked.append((name, value))
        if known in _PATIENTS and not name.endswith("identifier"):
            wanted = replace(wanted, records=(*wanted.records, *_patient_ids(name, value, base)))
        elif known in _REFERENCES:
            wanted = _referring(wanted, known, name, value)
        elif known == "_summary" or is_none_wanted(known, value):
            # _count=0 asks for the same (R4, search, 3.1.1.5.4).
            count_only = value == "count" or known == "_count"
        elif known == "_total":
            total = value in {"accurate", "estimate"}
        elif known == "_include":
            includes.add(value)
        elif known != "_format":
            wanted = _narrowed(wanted, resource, known, value)
    if ignored and strict:
        raise not_known(resource, ignored)
    return Question(wanted, tuple(asked), tuple(ignored), resource, frozenset(includes), count_only, total)


def not_known(resource: str, parameters: Iterable[str]) -> FacadeError:
    """400, for who asked to be told (`Prefer: handling=strict`)."""
    return bad_request(
        f"These parameters are not known here: {_names(parameters)}. {resource} is searched by "
        f"{', '.join(sorted(SEARCHED[resource]))}; leave them out, or send Prefer: handling=lenient to have them ignored.",
        "",
        "not-supported",
    )


def _meaning(resource: str, name: str) -> str | None:
    """A parameter's name without how it is asked by; None: not known. Raises FacadeError (400)."""
    plain = plain_name(name)
    if plain in RESULTS:
        return plain if plain == name else None
    if plain in SEARCHED[resource] and name in _forms(plain):
        return plain
    must_not_be_meant(resource, name)
    return None


def _forms(plain: str) -> frozenset[str]:
    """How a parameter may be written: references by identifier, patients by the hub's id too, others as they are."""
    if plain not in _REFERENCES:
        return frozenset({plain})
    by_identifier = {f"{plain}:identifier", f"{plain}.identifier"}
    if plain not in _PATIENTS:
        return frozenset(by_identifier)
    return frozenset({*by_identifier, plain, f"{plain}:Patient", f"{plain}:Patient.identifier"})


def opened(
    resource: str, parameters: Sequence[tuple[str, str]], office: Opens
) -> list[tuple[str, str]] | None:
    """The parameters that a `page` has sealed, with what was added to its link; None: nothing is sealed. Raises FacadeError (400)."""
    sealed = [value for name, value in parameters if name == "_page" and value.count(".") == _DOTS]
    if not sealed:
        return None
    kind, *asked = json.loads(office.unsealed(sealed[0]) or "[null]")
    if len(sealed) > 1 or kind != resource:
        raise not_ours()
    return [(name, value) for name, value in asked] + [each for each in parameters if each[0] != "_page"]


_DOTS = 4
"""Of a JWE in its compact form (RFC 7516, 3.1); a place has none."""


def not_ours() -> FacadeError:
    """400: a page that this server did not name."""
    return bad_request(
        "_page is not one of this server's, or is too old: follow the link `next` of a page as it is, or ask anew.",
        "_page",
        "value",
    )


def not_too_many(parameters: Sequence[tuple[str, str]]) -> None:
    """That a search holds no more values than it may, counted before anything is made of them. Raises FacadeError (400)."""
    ids = sum(1 + value.count(",") for name, value in parameters if name == "_id")
    others = sum(1 + value.count(",") for name, value in parameters if name != "_id")
    if ids > IDS_MAX or others > VALUES_MAX:
        raise too_many()


def too_many() -> FacadeError:
    return bad_request(
        f"A search may hold {VALUES_MAX} values in all, those between commas counted each, and {IDS_MAX} more for _id: ask in parts.",
        "",
        "too-costly",
    )


def plain_name(name: str) -> str:
    """A parameter's name without modifier or chain."""
    return name.partition(":")[0].partition(".")[0]


def must_not_be_meant(resource: str, name: str) -> None:
    """A parameter that is served, but not as it is asked by here, or that names a patient, is never passed over, even where others
    are (R4, search, 3.1.1.4.4 and .5): the answer would hold what was not asked for. Raises FacadeError (400).
    """
    plain = plain_name(name)
    if plain in SEARCHED[resource]:
        meant = SEARCHED[resource][plain][1]
        raise bad_request(
            f"{plain} is not searched by in this way. {plain}: {meant}.", plain, "not-supported"
        )
    if _is_not_served(resource, plain):
        instead = " Ask by a number: identifier=system|value." if resource == "Patient" else ""
        raise bad_request(f"{resource} is not searched by {plain}.{instead}", plain, "not-supported")


def _is_not_served(resource: str, plain: str) -> bool:
    """Whether a parameter narrows in FHIR, and so much that what is shown without it would be taken for what was asked for."""
    return plain in _WHOM | _NARROWING or (resource == "Patient" and plain in _OF_PATIENTS)


def must_hold_something(resource: str, name: str) -> None:
    """That a parameter without a value is none of those that narrow. Raises FacadeError (400)."""
    plain = plain_name(name)
    if plain in SEARCHED[resource] or _is_not_served(resource, plain):
        raise bad_request(f"{plain} is empty: give it a value, or leave it out.", plain, "value")


def plainly(
    resource: str, parameters: Sequence[tuple[str, str]], *, strict: bool, more: Iterable[str] = ()
) -> tuple[dict[str, str], tuple[str, ...]]:
    """A search by parameters that are given once and as they are: what each holds, and which are not known. ``more`` are known besides.

    Raises FacadeError (400).
    """
    found: dict[str, str] = {}
    ignored = []
    for name, value in parameters:
        if not value:
            must_hold_something(resource, name)
        elif name in found:
            raise bad_request(f"Give {plain_name(name)} once.", plain_name(name), "not-supported")
        elif name in SEARCHED[resource] or name in {"_format", *more}:
            found[name] = value
        else:
            must_not_be_meant(resource, name)
            ignored.append(name)
    if ignored and strict:
        raise not_known(resource, ignored)
    return found, tuple(ignored)


class Understood(Protocol):
    """What a page says of the question that it answers."""

    @property
    def resource(self) -> str: ...
    @property
    def asked(self) -> tuple[tuple[str, str], ...]: ...
    @property
    def ignored(self) -> tuple[str, ...]: ...


def page(
    question: Understood,
    found: Sequence[Tree],
    base: str,
    *,
    included: Sequence[Tree] = (),
    after: tuple[datetime, object] | None,
    total: int | None,
    aged_out: int = 0,
    sealed: Callable[[str], str] | None = None,
) -> Tree:
    """A searchset. ``after`` is the place of the last of this page if there are more; links hold for as long as the server does.
    ``aged_out``: of so many that were found the content is kept no longer. ``sealed``: what was asked for came in a form, so that it stands in
    no address; in the links' addresses it is sealed.
    """
    address = f"{base}/{question.resource}"

    def link(relation: str, asked: Sequence[tuple[str, str]]) -> Tree:
        if sealed is not None and asked:
            asked = [("_page", sealed(json.dumps([question.resource, *asked])))]
        return {"relation": relation, "url": f"{address}?{urlencode(asked)}" if asked else address}

    links = [link("self", question.asked)]
    if after is not None:
        links.append(link("next", (*question.asked, ("_page", _token(*after)))))
    bundle: Tree = {"resourceType": "Bundle", "type": "searchset", "link": links}
    if total is not None:
        bundle["total"] = total
    entries: list[Tree] = [
        {"fullUrl": f"{base}/{each['resourceType']}/{each['id']}", "resource": each, "search": {"mode": mode}}
        for mode, resources in (("match", found), ("include", included))
        for each in resources
    ]
    if entries:
        bundle["entry"] = entries
    with_ignored(bundle, question.ignored)
    if aged_out:
        bundle.setdefault("entry", []).append(warning(errors.aged_out(aged_out)))
    return bundle


def with_ignored(bundle: Tree, names: Sequence[str]) -> Tree:
    """The same searchset, which says which parameters were passed over."""
    if names:
        issue = {
            "severity": "warning",
            "code": "not-supported",
            "diagnostics": f"Ignored, because they are not known here: {_names(names)}.",
        }
        outcome = {"resourceType": "OperationOutcome", "issue": [issue]}
        bundle.setdefault("entry", []).append(warning(outcome))
    return bundle


def warning(outcome: Tree) -> Tree:
    """An OperationOutcome as an entry of a searchset."""
    return {"fullUrl": f"urn:uuid:{uuid.uuid4()}", "resource": outcome, "search": {"mode": "outcome"}}


def _names(names: Iterable[str]) -> str:
    """What a caller called its parameters, cut to what a parameter's name can be: it may have put a value there."""
    return ", ".join(
        sorted({name if name.replace(":", "").replace("-", "").replace("_", "").isalpha() and len(name) < 40 else "?" for name in names})
    )  # fmt: skip


def _narrowed(wanted: Wanted, resource: str, name: str, value: str) -> Wanted:
    if resource == "Patient" and name == "_id":
        return replace(wanted, persons=(*wanted.persons, *value.split(",")))
    if resource == "Patient" and name == "identifier":
        return replace(wanted, patients=(*wanted.patients, *map(token_of, value.split(","))))
    if resource in PARTS and name == "_id":
        return replace(wanted, ids=(*wanted.ids, *(each.rpartition("-")[0] for each in value.split(","))))
    if name == "target":
        ids = tuple(each.rpartition("Task/")[2].partition("/")[0] for each in value.split(","))
        return replace(wanted, ids=(*wanted.ids, *ids))
    if name == "_id":
        return replace(wanted, ids=(*wanted.ids, *value.split(",")))
    if name == "identifier":
        return replace(wanted, identifiers=(*wanted.identifiers, *map(token_of, value.split(","))))
    if name in {"status", "business-status"}:
        return replace(
            wanted,
            states=_states(wanted.states, _STATUS_OF[resource] if name == "status" else _STATE, name, value),
        )
    if name == "_lastUpdated":
        return replace(wanted, changed=(*wanted.changed, range_of("_lastUpdated", value)))
    if name == "_count":
        return replace(wanted, limit=count_of(value))
    if name == "_sort":
        if value not in {"_lastUpdated", "-_lastUpdated"}:
            raise bad_request(
                "_sort must be _lastUpdated or -_lastUpdated (the default).", "_sort", "not-supported"
            )
        return replace(wanted, oldest_first=value == "_lastUpdated")
    return replace(wanted, after=place_after(value))


def whole_number(name: str, value: str) -> int:
    """A whole number, however many noughts it begins with and however large. Raises FacadeError (400)."""
    if not value.isascii() or not value.isdigit():
        raise bad_request(f"{name} must be a whole number.", name, "value")
    # Nothing that is counted here has more digits, and Python reads no number of thousands of them.
    digits = value.lstrip("0") or "0"
    return int(digits) if len(digits) <= _DIGITS_MAX else 10**_DIGITS_MAX


_DIGITS_MAX = 18


def count_of(value: str) -> int:
    """What `_count` says, as far as one page holds so many. Raises FacadeError (400)."""
    return min(max(whole_number("_count", value), 1), COUNT_MAX)


def is_none_wanted(known: str, value: str) -> bool:
    """Whether it says `_count=0`."""
    return known == "_count" and not value.strip("0")


def _patient_ids(name: str, value: str, base: str) -> list[str]:
    """The ids in references to patients of the hub. Raises FacadeError (400)."""
    said = [each.removeprefix(f"{base}/").removeprefix("Patient/") for each in value.split(",")]
    if any("/" in each or "|" in each for each in said):
        raise bad_request(
            f"{name} is Patient/{{id}}, the hub's id of the patient; by a number: {plain_name(name)}:identifier=system|value.",
            plain_name(name),
            "value",
        )
    return said


def _referring(wanted: Wanted, known: str, name: str, value: str) -> Wanted:
    tokens = tuple(map(token_of, value.split(",")))
    if known in {"patient", "subject"}:
        return replace(wanted, patients=(*wanted.patients, *tokens))
    for each in tokens:
        if each.system not in {None, ODS_ORGANISATION}:
            raise bad_request(f"{name} is an ODS code, of {ODS_ORGANISATION}.", name, "value")
    codes = tuple(each.value.upper() for each in tokens)
    if known == "requester":
        return replace(wanted, senders=(*wanted.senders, *codes))
    return replace(wanted, receivers=(*wanted.receivers, *codes))


_STATE: Mapping[State, str] = {state: state.value for state in State}


def _states(
    before: Sequence[State] | None, said_as: Mapping[State, str], name: str, value: str
) -> tuple[State, ...]:
    values = {token_of(each).value for each in value.split(",")}
    if values - set(said_as.values()):
        raise bad_request(f"{name} must be of: {', '.join(sorted(set(said_as.values())))}.", name, "value")
    states = {state for state, said in said_as.items() if said in values}
    return tuple(sorted(states if before is None else states & set(before)))


def token_of_identifier(identifier: object) -> Token | None:
    """A FHIR Identifier as a search token; None if it is none, or holds what no identifier has."""
    if not isinstance(identifier, dict):
        return None
    system, value = identifier.get("system"), identifier.get("value")
    if not isinstance(value, str) or not isinstance(system, str | None):
        return None
    if "\x00" in value or "\x00" in (system or ""):
        return None
    return Token(canonical_system(system) if system else None, value)


def token_of(text: str) -> Token:
    """A search token as it is written: system|value, |value or value."""
    system, bar, value = text.rpartition("|")
    if not bar:
        return Token(None, text.strip())
    return Token(system if system == HUB_STATE else canonical_system(system), value.strip())


_PREFIXES = ("eq", "gt", "ge", "lt", "le")


def range_of(name: str, value: str) -> tuple[datetime | None, datetime | None]:
    """A FHIR date with a prefix as a half-open range: 2026-11-24 is that whole day, 2026-11-24T09:00Z that minute (R4, search, date)."""
    prefix, text = (value[:2], value[2:]) if value[:2] in _PREFIXES else ("eq", value)
    try:
        begin, width = _begin_and_width(text.replace(" ", "+"))
        end = begin + width
    except (ValueError, OverflowError):
        raise bad_request(
            f"{name} must be a FHIR date or time, for example ge2026-11-24 or lt2026-11-24T09:30:00Z.",
            name,
            "value",
        ) from None
    return {
        "eq": (begin, end),
        "gt": (end, None),
        "ge": (begin, None),
        "lt": (None, begin),
        "le": (None, end),
    }[prefix]


_DATE = re.compile(
    r"\d{4}(?:-\d\d(?:-\d\d(?:T\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:\d\d)?)?)?)?", re.ASCII
)
"""FHIR's date and dateTime, and a time to the minute (R4, search, date): what else Python reads as a time, 20261124 or 2026-W48-2, would mean another span."""


def _begin_and_width(text: str) -> tuple[datetime, timedelta]:
    """Raises ValueError, OverflowError."""
    if not _DATE.fullmatch(text):
        raise ValueError(text)
    if len(text) == 4:
        begin = datetime(int(text), 1, 1, tzinfo=UTC)
        return begin, datetime(int(text) + 1, 1, 1, tzinfo=UTC) - begin
    if len(text) == 7:
        year, month = int(text[:4]), int(text[5:])
        begin = datetime(year, month, 1, tzinfo=UTC)
        return begin, datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC) - begin
    begin = datetime.fromisoformat(text)
    begin = (begin if begin.tzinfo else begin.replace(tzinfo=UTC)).astimezone(UTC)
    if len(text) == 10:
        return begin, timedelta(days=1)
    if "." in text:
        return begin, timedelta(microseconds=1000)
    has_seconds = text[11:19].count(":") == 2
    return begin, timedelta(seconds=1) if has_seconds else timedelta(minutes=1)


def place_of(transfer: Transfer) -> tuple[datetime, str]:
    """Where a page that ends with this transfer ends."""
    return transfer.changed_at or transfer.requested_at, transfer.id


def _token(at: datetime, key: object) -> str:
    text = f"{at.astimezone(UTC).isoformat()} {key}"
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def place_after(token: str) -> tuple[datetime, str]:
    """What `_page` says. Raises FacadeError (400)."""
    try:
        text = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode()
        at, _, transfer_id = text.partition(" ")
        if "\x00" not in transfer_id:
            return datetime.fromisoformat(at).astimezone(UTC), transfer_id
    except (binascii.Error, ValueError, OverflowError):
        pass
    raise not_ours()
